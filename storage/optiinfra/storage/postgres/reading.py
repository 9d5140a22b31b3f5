"""What can be asked of a list: which rows, from where on, how many."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Page:
    """`after` is the sort key of the last row seen, `limit` how many rows are wanted."""

    limit: int
    after: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events; None means "any". `kind` is a tag as `vote.cast`."""

    change: str | None = None
    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """Which changes, by their state and by what they change; None means "any"."""

    state: str | None = None
    deployment: str | None = None
    kind: str | None = None
    asleep: bool | None = None


@dataclass(frozen=True, slots=True)
class ConflictFilter:
    """Which conflicts; None means "any". `change` stands on either side."""

    change: str | None = None
    verdict: str | None = None
    rule: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows of the audit trail; None means "any"."""

    allowed: bool | None = None
    actor: str | None = None
    target: str | None = None
    since: datetime | None = None
