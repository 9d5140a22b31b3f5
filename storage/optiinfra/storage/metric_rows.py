"""What the metric store takes and gives: rows, and series thinned for a screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from math import isfinite

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


StoredRow = tuple[
    str, str, str, str, int, float | None, str, str, Mapping[str, str], str,
]  # fmt: skip
"""Tenant, deployment, replica, metric, time, value, reason, unit, labels, event id: a sample as
it is inserted. The time is in ms since the epoch (`ticks_ms`); no replica and no reason are empty.
"""


def stored(row: MetricRow) -> StoredRow:
    """The row as it is inserted."""
    return (
        row.tenant, row.deployment, row.replica or "", row.metric, ticks_ms(row.at), row.value,
        row.unknown_reason or "", row.unit, dict(row.labels), row.event_id,
    )  # fmt: skip


def hours(rows: Iterable[StoredRow]) -> set[tuple[str, str, int]]:
    """Tenant, deployment and begin (s since the epoch) of the hours that these belong to."""
    return {(row[0], row[1], row[4] // _HOUR_MS * 3_600) for row in rows}


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


@dataclass(frozen=True, slots=True)
class PartPoint:
    """One step of one part of a series (`part` is empty where all are put together)."""

    part: str
    step: int
    value: float | None
    known: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Steps:
    """Points by part and step; step `n` begins at `since` + `n` × `width_s`."""

    since: datetime
    width_s: float
    points: list[PartPoint]
