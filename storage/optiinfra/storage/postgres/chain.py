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

    def sealed(self) -> Link:
        """This link with its hash set."""
        object.__setattr__(self, "hash", self.computed_hash())
        return self

    def computed_hash(self) -> str:
        """SHA-256 over the canonical text, which ends with `prev_hash`'s key."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no spaces, times in UTC with microseconds.

        Written by hand, key by key, since it is most of what an event costs; a property test
        compares it with `json.dumps` of the same content.
        """
        return (
            f'{{"at":"{_utc(self.at)}","body":{_text(self.body)}'
            f',"causation":{_optional(self.causation)},"chain":{_text(self.chain)}'
            f',"correlation":{_optional(self.correlation)},"event_id":{_text(self.event_id)}'
            f',"prev":{_text(self.prev_hash)},"said_at":"{_utc(self.said_at)}"'
            f',"source":{_text(self.source)},"subject":{_text(self.subject)}'
            f',"tenant":{_text(self.tenant)},"type":{_text(self.type)},"version":{self.version}}}'
        )


_text = json.encoder.encode_basestring


def _optional(value: str | None) -> str:
    return "null" if value is None else _text(value)


def _utc(at: datetime) -> str:
    return (at if at.tzinfo is UTC else at.astimezone(UTC)).isoformat(timespec="microseconds")


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
