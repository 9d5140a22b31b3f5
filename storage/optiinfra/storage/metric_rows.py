"""What the metric store takes and gives: rows, and series thinned for a screen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import Any

MAX_POINTS = 500
_HOUR_MS = 3_600_000
_TINY_MS = 0.001
"""More than a float of today's times is off by."""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One sample. `value` None means *unknown*, and then `unknown_reason` says why."""

    tenant: str
    deployment: str
    metric: str
    at: datetime
    value: float | None
    unit: str
    event_id: str
    replica: str | None = None
    unknown_reason: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError("a sample's time needs a time zone")
        if (self.value is None) != bool(self.unknown_reason):
            raise ValueError("a sample has either a value or the reason why it is unknown")
        if self.value is not None and not isfinite(self.value):
            raise ValueError("a sample that is not a finite number is unknown")


@dataclass(slots=True)
class MetricColumns:
    """Samples column by column, as they are inserted; the lists are equally long.

    `ts` is in ms since the epoch (`ticks_ms`). A `value` None has its `unknown_reason`, which else
    is empty; no replica is an empty one.
    """

    tenant: list[str] = field(default_factory=list)
    deployment: list[str] = field(default_factory=list)
    replica: list[str] = field(default_factory=list)
    metric: list[str] = field(default_factory=list)
    ts: list[int] = field(default_factory=list)
    value: list[float | None] = field(default_factory=list)
    unknown_reason: list[str] = field(default_factory=list)
    unit: list[str] = field(default_factory=list)
    labels: list[Mapping[str, str]] = field(default_factory=list)
    event_id: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.event_id)

    def add(self, row: MetricRow) -> None:
        """One more sample."""
        self.tenant.append(row.tenant)
        self.deployment.append(row.deployment)
        self.replica.append(row.replica or "")
        self.metric.append(row.metric)
        self.ts.append(ticks_ms(row.at))
        self.value.append(row.value)
        self.unknown_reason.append(row.unknown_reason or "")
        self.unit.append(row.unit)
        self.labels.append(dict(row.labels))
        self.event_id.append(row.event_id)

    def lists(self) -> list[list[Any]]:
        """All of them, in the order of their names here."""
        return [getattr(self, name.name) for name in fields(self)]

    def hours(self) -> set[tuple[str, str, int]]:
        """Tenant, deployment and begin (s since the epoch) of the hours that these belong to."""
        hours = [ts // _HOUR_MS * 3_600 for ts in self.ts]
        return set(zip(self.tenant, self.deployment, hours, strict=True))


def ticks_ms(at: datetime) -> int:
    """Whole milliseconds since the epoch, as the store keeps a time (after 1970)."""
    return int(at.timestamp() * 1_000 + _TINY_MS)


class Resolution(StrEnum):
    """Which table a series is read from."""

    RAW = "raw"
    HOURLY = "hourly"
    DAILY = "daily"


@dataclass(frozen=True, kw_only=True)
class SeriesQuery:
    """A metric over [since, until) in at most `points` steps; all replicas unless one is named.

    `resolution` None chooses the finest table that still holds the window; hourly and daily ones
    begin at the whole hour or day (UTC) that holds `since`.
    """

    tenant: str
    deployment: str
    metric: str
    since: datetime
    until: datetime
    replica: str | None = None
    points: int = MAX_POINTS
    resolution: Resolution | None = None

    def __post_init__(self) -> None:
        if self.since.tzinfo is None or self.until.tzinfo is None:
            raise ValueError("a window's ends need a time zone")
        if self.until <= self.since:
            raise ValueError("a window ends after it begins")
        if not 1 <= self.points <= MAX_POINTS:
            raise ValueError(f"a series has 1 to {MAX_POINTS} points")


@dataclass(frozen=True, kw_only=True)
class SeriesPoint:
    """One step of a series, `at` its beginning; statistics are None where nothing was known.

    Steps without any sample are absent: they are unknown as well.
    """

    at: datetime
    mean: float | None
    low: float | None
    high: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    known: int
    unknown: int
