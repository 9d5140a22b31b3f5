"""What telemetry of one deployment holds of a window, replica by replica."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import groupby

from optiinfra.portal_api.figures.measured import Measured, added, averaged, known, unknown
from optiinfra.portal_api.measures import MEASURES, SCRAPES, SPEND
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.serving.histograms import Bin, Distribution
from optiinfra.storage.clickhouse_folds import NO_TRAFFIC
from optiinfra.storage.clickhouse_summaries import Summary, SummaryQuery

LATEST_S = 60.0
"""What is older is not the latest; collectors look every few seconds."""
SPEND_LATEST_S = 300.0
"""The same of what is paid, which is looked at twice a minute."""
NOTHING = "nothing was measured in this time"
GONE = "no replica was measured of late"


@dataclass(frozen=True)
class Span:
    """The window that is looked at."""

    since: datetime
    until: datetime

    @property
    def seconds(self) -> float:
        return (self.until - self.since).total_seconds()

    @classmethod
    def up_to(cls, until: datetime, seconds: float) -> Span:
        return cls(until - timedelta(seconds=seconds), until)


@dataclass
class Seen:
    """The summaries of one deployment."""

    deployment: str
    span: Span
    rows: Sequence[Summary] = ()
    _of: dict[str, list[Summary]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            self._of.setdefault(row.metric, []).append(row)

    def of(self, metric: str, *, replica: str | None = None, **labels: str) -> list[Summary]:
        """The rows of a metric: of all, or of one replica (empty: of the deployment itself)."""
        return [
            row
            for row in self._of.get(metric, ())
            if (replica is None or row.replica == replica)
            and all(row.labels.get(name) == value for name, value in labels.items())
        ]

    @property
    def is_emulated(self) -> bool:
        return any(row.labels.get("emulated") == "true" for row in self.rows)

    @property
    def replicas(self) -> list[str]:
        """All that were priced or scraped in the window."""
        named = {row.replica for metric in (SPEND, SCRAPES) for row in self.of(metric)}
        return sorted(named - {""})

    @cached_property
    def present(self) -> list[str]:
        """Those of them that were scraped, or tried to be, of late."""
        rows = (row for row in self.rows if row.metric != SPEND and row.replica)
        return sorted({row.replica for row in rows if self.is_fresh(row)})

    def is_fresh(self, row: Summary) -> bool:
        latest_s = SPEND_LATEST_S if row.metric == SPEND else LATEST_S
        return row.last_at >= self.span.until - timedelta(seconds=latest_s)

    def newest(self, metric: str, *, replica: str, **labels: str) -> Measured:
        """The newest reading; unknown when it is too old."""
        unit = MEASURES[metric].unit
        rows = self.of(metric, replica=replica, **labels)
        if not rows:
            return unknown(NOTHING, unit)
        row = max(rows, key=lambda one: one.last_at)
        if not self.is_fresh(row):
            return unknown("not measured of late", unit, row.last_at)
        if row.last is None:
            return unknown(row.last_reason or "unknown", unit, row.last_at)
        return known(row.last, unit, row.last_at)

    def latest(self, metric: str, fold: str) -> Measured:
        """Now, over the replicas that are there; unknown as soon as one of them is."""
        parts = [
            (name, self.newest(metric, replica=name))
            for name in self.present
            if self.of(metric, replica=name)
        ]
        put = added if fold == "sum" else averaged
        return put(parts, MEASURES[metric].unit, GONE if self.rows else NOTHING)

    def over_window(self, metric: str, fold: str) -> Measured:
        """The mean over the time in which anything was measured, of what could be read.

        Each replica counts for as long as it was seen.
        """
        unit = MEASURES[metric].unit
        rows = self.of(metric)
        read = [row for row in rows if row.mean is not None]
        if not read:
            reasons = {row.last_reason for row in rows if row.last_reason}
            return unknown(", ".join(sorted(reasons)) or NOTHING, unit)
        seconds = [(row.mean or 0.0, _lasted_s(row)) for row in read]
        whole_s = _union_s(read) if fold == "sum" else sum(lasted for _, lasted in seconds)
        return known(sum(mean * lasted for mean, lasted in seconds) / whole_s, unit)

    def distribution(self, metric: str, *, recent: bool = False) -> Distribution:
        """All observations of a histogram in the window, or in its last minute."""
        counts: dict[tuple[float, float], float] = {}
        for row in self.of(f"{metric}_bucket"):
            bounds = float(row.labels["le"]), float(row.labels["ge"])
            count = row.recent if recent else row.total
            counts[bounds] = counts.get(bounds, 0.0) + count
        bins = (Bin(low, high, count) for (high, low), count in sorted(counts.items()) if count)
        sums = (row.recent if recent else row.total for row in self.of(f"{metric}_sum"))
        return Distribution(tuple(bins), sum(sums))

    def unread(self, metric: str) -> str | None:
        """The replica that cannot be read now, and why; None when all can."""
        for name in self.present:
            rows = [one for one in self.of(metric, replica=name) if self.is_fresh(one)]
            for row in rows:
                if row.last is None and row.last_reason != NO_TRAFFIC:
                    return f"{name}: {row.last_reason}"
        return None


def within(seen: Distribution, limit: float) -> float | None:
    """The share of observations up to `limit`, evenly spread inside a bin; None without any.

    Of a bin without an end nothing counts.
    """
    if not seen.count:
        return None
    return sum(one.count * _share(one, limit) for one in seen.bins) / seen.count


def _share(one: Bin, limit: float) -> float:
    if one.high <= limit:
        return 1.0
    if one.low >= limit or one.high == float("inf"):
        return 0.0
    return (limit - one.low) / (one.high - one.low)


def _lasted_s(row: Summary) -> float:
    """How long it was seen; a reading stands for the time up to the next one."""
    readings = row.known + row.unknown
    span_s = (row.last_at - row.first_at).total_seconds()
    return span_s * readings / (readings - 1) if readings > 1 and span_s else 1.0


def _union_s(rows: Iterable[Summary]) -> float:
    """How long any of them was seen, gaps between them left out, s."""
    total_s, until = 0.0, float("-inf")
    for row in sorted(rows, key=lambda one: one.first_at):
        begin = row.first_at.timestamp()
        end = begin + _lasted_s(row)
        total_s += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total_s


def emulated_in(seen: Mapping[str, Seen]) -> list[str]:
    """The deployments of which telemetry comes from an emulator, at least in part."""
    return sorted(name for name, one in seen.items() if one.is_emulated)


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of several deployments, in the window that ended when it was looked at."""

    span: Span
    seen: dict[str, Seen]


async def look(
    ports: ApiPorts,
    tenant: str,
    window_s: float,
    metrics: Sequence[str],
    deployments: Sequence[str] | None = None,
) -> Look:
    """What the store holds of these metrics, by deployment (None: all that have any).

    The same look is taken once in a few seconds; its span says when.
    """
    named = None if deployments is None else tuple(deployments)

    async def read() -> Look:
        return await _look(ports, tenant, Span.up_to(datetime.now(UTC), window_s), metrics, named)

    return await ports.looks.get((tenant, window_s, tuple(metrics), named), read)


async def _look(
    ports: ApiPorts,
    tenant: str,
    span: Span,
    metrics: Sequence[str],
    deployments: Sequence[str] | None,
) -> Look:
    rows = await ports.metrics.summaries(
        SummaryQuery(
            tenant=tenant,
            deployments=deployments,
            metrics=metrics,
            since=span.since,
            until=span.until,
            recent_since=span.until - timedelta(seconds=LATEST_S),
        )
    )
    found = {name: Seen(name, span) for name in deployments or ()}
    for name, of_one in groupby(rows, key=lambda row: row.deployment):
        found[name] = Seen(name, span, list(of_one))
    return Look(span, found)
