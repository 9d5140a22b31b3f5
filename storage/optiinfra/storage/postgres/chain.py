"""The hash chain of a log: each link covers the event and the link before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

GENESIS = "0" * 64


class Link(NamedTuple):
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
        return self._replace(hash=self.computed_hash())

    def computed_hash(self) -> str:
        """SHA-256 over the canonical text, which ends with `prev_hash`'s key."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()


def canonical(fields: Sequence[Any]) -> str:
    """Canonical JSON: sorted keys, no spaces, times in UTC with microseconds.

    `fields` are those of a `Link` in its order, up to `prev_hash`; what follows is left out.
    Written by hand, key by key, since it is most of what an event costs; a property test compares
    it with `json.dumps` of the same content.
    """
    (event_id, tenant, chain, version, kind, subject, source, at, said_at, correlation, causation,
     body, prev, *_) = fields  # fmt: skip
    return (
        f'{{"at":"{_utc(at)}","body":{_text(body)},"causation":{_optional(causation)}'
        f',"chain":{_text(chain)},"correlation":{_optional(correlation)}'
        f',"event_id":{_text(event_id)},"prev":{_text(prev)},"said_at":"{_utc(said_at)}"'
        f',"source":{_text(source)},"subject":{_text(subject)},"tenant":{_text(tenant)}'
        f',"type":{_text(kind)},"version":{version}}}'
    )


_text = json.encoder.encode_basestring


def _optional(value: str | None) -> str:
    return "null" if value is None else _text(value)


def _utc(at: datetime) -> str:
    return (at if at.tzinfo is UTC else at.astimezone(UTC)).isoformat(timespec="microseconds")


@dataclass(frozen=True, slots=True)
class Break:
    """The first place where a chain does not hold; `position` is that of the log (0: no row)."""

    chain: str
    version: int
    event_id: str
    what: str
    position: int = 0


MISSING = "an event is missing or out of order"
_CHAIN, _VERSION, _PREV, _HASH, _POSITION = 2, 3, 12, 13, 14


class Walker:
    """Walks chains one after the other, each in its order, whatever their number.

    `ends` are the version and the hash that each chain which was walked led to; whoever compares
    them takes them out.
    """

    def __init__(self) -> None:
        self.events = 0
        self.chains = 0
        self.breaks: list[Break] = []
        self.ends: dict[str, tuple[int, str]] = {}
        self._chain: str | None = None
        self._version = 0
        self._prev = GENESIS
        self._broken = False

    def walk(self, rows: Iterable[Sequence[Any]]) -> None:
        """Rows hold the fields of a `Link` in its order, then perhaps the position."""
        for row in rows:
            self.events += 1
            if row[_CHAIN] != self._chain:
                self._begin(row[_CHAIN])
            if not self._broken:
                self._step(row)

    def finish(self) -> None:
        """The last chain has ended."""
        self._begin(None)

    def _begin(self, chain: str | None) -> None:
        if self._chain is not None:
            self.chains += 1
            if not self._broken:
                self.ends[self._chain] = (self._version, self._prev)
        self._chain, self._version, self._prev, self._broken = chain, 0, GENESIS, False

    def _step(self, row: Sequence[Any]) -> None:
        version, prev, known = row[_VERSION], row[_PREV], row[_HASH]
        if version != self._version + 1:
            self._break(row, f"version {version} follows {self._version}: {MISSING}")
        elif prev != self._prev:
            self._break(row, "it does not continue from the event before it")
        elif hashlib.sha256(canonical(row).encode()).hexdigest() != known:
            self._break(row, "its content does not match its hash")
        self._version, self._prev = version, known

    def _break(self, row: Sequence[Any], what: str) -> None:
        self._broken = True
        position = row[_POSITION] if len(row) > _POSITION else 0
        self.breaks.append(Break(row[_CHAIN], row[_VERSION], row[0], what, position))


def first_break(links: Iterable[Link]) -> Break | None:
    """Walks one chain from its beginning; None when every link holds."""
    walker = Walker()
    walker.walk(links)
    return walker.breaks[0] if walker.breaks else None
