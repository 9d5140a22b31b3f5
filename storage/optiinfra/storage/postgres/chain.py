"""The hash chain of a log: each link covers the event and the link before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class Link:
    """One event of a log as it is hashed; `body` is the very text of the fact."""

    event_id: str
    tenant: str
    chain: str
    version: int
    type: str
    subject: str
    source: str
    at: datetime
    said_at: datetime
    correlation: str | None
    causation: str | None
    body: str
    prev_hash: str
    hash: str = ""

    def computed_hash(self) -> str:
        """SHA-256 over canonical JSON (sorted keys, no spaces, times in UTC) with `prev_hash`."""
        content = {
            "event_id": self.event_id,
            "tenant": self.tenant,
            "chain": self.chain,
            "version": self.version,
            "type": self.type,
            "subject": self.subject,
            "source": self.source,
            "at": self.at.astimezone(UTC).isoformat(timespec="microseconds"),
            "said_at": self.said_at.astimezone(UTC).isoformat(timespec="microseconds"),
            "correlation": self.correlation,
            "causation": self.causation,
            "body": self.body,
            "prev": self.prev_hash,
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a chain does not hold."""

    chain: str
    version: int
    event_id: str
    what: str


def first_break(links: Iterable[Link]) -> Break | None:
    """Walks one chain from its beginning; None when every link holds."""
    version, prev = 0, GENESIS
    for link in links:
        what = _what_is_wrong(link, version, prev)
        if what is not None:
            return Break(link.chain, link.version, link.event_id, what)
        version, prev = link.version, link.hash
    return None


def _what_is_wrong(link: Link, version: int, prev: str) -> str | None:
    if link.version != version + 1:
        return f"version {link.version} follows {version}: an event is missing or out of order"
    if link.prev_hash != prev:
        return "it does not continue from the event before it"
    if link.hash != link.computed_hash():
        return "its content does not match its hash"
    return None
