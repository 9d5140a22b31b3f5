"""What stored samples say of a fleet over a window: pooled latencies, rates, offered load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import inf

from optiinfra.schemas.answers import ANSWER_SCORE, GOLDEN, SOURCE, TURNED_AWAY
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unknown, UnknownReason
from optiinfra.serving.histograms import Bin, Distribution, pooled

SCRAPES = "scrape_window_s"
NO_REPLICA = Unknown(reason=UnknownReason.UNREACHABLE, detail="no replica serves")


@dataclass(frozen=True, slots=True)
class Pooled:
    """A quantile over all requests of several replicas, and how many there were."""

    reading: Reading
    samples: int


@dataclass(frozen=True)
class Window:
    """Samples of several metrics in [since, until), by metric and oldest first.

    A replica whose newest reading is older than `stale_s` before `until` is unknown, and so is
    everything that needs it. Only scrapes whose own window lies within count for rates and
    distributions.
    """

    since: datetime
    until: datetime
    stale_s: float
    series: Mapping[str, Sequence[Sample]]

    @property
    def span_s(self) -> float:
        return (self.until - self.since).total_seconds()

    def newest(self, metric: str, replica: str, **labels: str) -> Reading:
        """The newest reading of a metric of one replica; `Unknown(STALE)` when it is too old."""
        of_replica = [
            s
            for s in self.series.get(metric, ())
            if s.replica == replica and all(s.labels.get(k) == v for k, v in labels.items())
        ]
        oldest_at = self.until - timedelta(seconds=self.stale_s)
        if not of_replica or of_replica[-1].at < oldest_at:
            return _of(replica, Unknown(reason=UnknownReason.STALE, detail=f"no fresh {metric}"))
        return _of(replica, of_replica[-1].reading)

    def distribution(self, metric: str, replicas: Iterable[str]) -> Distribution:
        """All observations of a pooled histogram on `replicas` in whole scrapes of the window."""
        inside = set[tuple[str | None, datetime]]().union(
            *(self._whole_scrapes(name) for name in replicas)
        )
        bins = tuple(
            _bin(s)
            for s in self.series.get(f"{metric}_bucket", ())
            if (s.replica, s.at) in inside and isinstance(s.reading, Known)
        )
        value_sum = sum(
            s.reading.value
            for s in self.series.get(f"{metric}_sum", ())
            if (s.replica, s.at) in inside and isinstance(s.reading, Known)
        )
        return pooled([Distribution((one,)) for one in bins] + [Distribution((), value_sum)])

    def quantile(self, metric: str, fraction: float, replicas: Sequence[str]) -> Pooled:
        """A quantile over `replicas`; unknown as soon as one of them is.

        A replica that had no request in its newest scrape is known and adds nothing.
        """
        newest = [self.newest(metric, name, quantile="p95") for name in replicas]
        gap = first_gap(newest) if replicas else NO_REPLICA
        if gap is not None:
            return Pooled(gap, 0)
        seen = self.distribution(metric, replicas)
        return Pooled(seen.quantile(fraction), int(seen.count))

    def count(self, metric: str, replicas: Sequence[str]) -> Reading:
        """Events of a rate at all `replicas` together, in whole scrapes of the window."""
        return _total(self._seen(metric, name, per_s=False) for name in replicas)

    def rate(self, metric: str, replicas: Sequence[str]) -> Reading:
        """Events per second of all `replicas` together, each over its whole scrapes."""
        return _total(self._seen(metric, name, per_s=True) for name in replicas)

    def level(self, metric: str, replicas: Sequence[str]) -> Pooled:
        """Mean of a gauge over the scrapes in the window, a replica; and how many scrapes."""
        gap = first_gap(self.newest(metric, name) for name in replicas) if replicas else NO_REPLICA
        if gap is not None:
            return Pooled(gap, 0)
        values = [
            s.reading.value
            for s in self.series[metric]
            if s.replica in replicas and isinstance(s.reading, Known)
        ]
        if not values:
            detail = f"{metric} had no traffic to be read from in any scrape"
            return Pooled(Unknown(reason=UnknownReason.NO_TRAFFIC, detail=detail), 0)
        return Pooled(Known(value=sum(values) / len(values)), len(values))

    def offered(self, replicas: Sequence[str], *, settle_s: float = 0.0) -> Reading:
        """Arrivals per second at all `replicas`: what finished plus the growth of what is inside.

        `λ = Σ_replicas max(0, finished + Δ(running + waiting) − golden) / span`, each between its
        first and last scrape in the window. A growing queue counts, which completed throughput
        would not show. Golden prompts put to a replica in that span are no offered load; they are
        recorded only once their run is over, so scrapes of the last `settle_s` are left out.
        Unknown where golden prompts were not read.
        """
        if ANSWER_SCORE not in self.series:
            detail = "golden prompts among the load were not read"
            return Unknown(reason=UnknownReason.MISSING, detail=detail)
        settled = self.until - timedelta(seconds=settle_s)
        return _total(self._offered_to(name, settled) for name in replicas)

    def _offered_to(self, replica: str, settled: datetime) -> Reading:
        gap = first_gap(
            self.newest(metric, replica)
            for metric in ("requests_running", "requests_waiting", "requests_per_s")
        )
        if gap is not None:
            return gap
        inside = {at: held for at, held in self._inside(replica).items() if at <= settled}
        first_at, last_at = min(inside, default=self.until), max(inside, default=self.until)
        if first_at == last_at:
            detail = f"{replica}: fewer than two scrapes to {settled.isoformat()}"
            return Unknown(reason=UnknownReason.STALE, detail=detail)
        finished = sum(
            count
            for at, count in self._counts("requests_per_s", replica)
            if first_at < at <= last_at
        )
        golden = sum(first_at < at <= last_at for at in self._golden_asked(replica))
        arrived = max(0.0, finished + inside[last_at] - inside[first_at] - golden)
        return Known(value=arrived / (last_at - first_at).total_seconds())

    def _golden_asked(self, replica: str) -> Iterable[datetime]:
        """When each golden prompt that became work was put to a replica."""
        for s in self.series[ANSWER_SCORE]:
            is_work = s.labels.get(SOURCE) == GOLDEN and TURNED_AWAY not in s.labels
            if is_work and s.replica == replica:
                yield s.at - timedelta(seconds=s.window_s)

    def _inside(self, replica: str) -> dict[datetime, float]:
        """Requests running or waiting at each scrape that tells both."""
        running, waiting = (
            {
                s.at: s.reading.value
                for s in self.series.get(metric, ())
                if s.replica == replica and isinstance(s.reading, Known)
            }
            for metric in ("requests_running", "requests_waiting")
        )
        return {at: running[at] + waiting[at] for at in sorted(running.keys() & waiting.keys())}

    def _seen(self, metric: str, replica: str, *, per_s: bool) -> Reading:
        newest = self.newest(metric, replica)
        if isinstance(newest, Unknown):
            return newest
        whole = self._whole_scrapes(replica)
        counts = [n for at, n in self._counts(metric, replica) if (replica, at) in whole]
        if not counts:
            detail = f"{replica}: no whole scrape in the window"
            return Unknown(reason=UnknownReason.STALE, detail=detail)
        return Known(value=sum(counts) / (sum(whole.values()) if per_s else 1.0))

    def _counts(self, metric: str, replica: str) -> Iterable[tuple[datetime, float]]:
        """Events counted by each scrape: its rate times its window."""
        windows = {
            s.at: s.reading.value
            for s in self.series.get(SCRAPES, ())
            if s.replica == replica and isinstance(s.reading, Known)
        }
        for s in self.series.get(metric, ()):
            if s.replica == replica and isinstance(s.reading, Known) and s.at in windows:
                yield s.at, s.reading.value * windows[s.at]

    def _whole_scrapes(self, replica: str) -> dict[tuple[str | None, datetime], float]:
        """Scrapes of a replica whose own window begins in this one, with its length in s."""
        return {
            (replica, s.at): s.reading.value
            for s in self.series.get(SCRAPES, ())
            if s.replica == replica
            and isinstance(s.reading, Known)
            and s.at - timedelta(seconds=s.reading.value) >= self.since
        }


def first_gap(readings: Iterable[Reading]) -> Unknown | None:
    """The first reading that is unknown for want of telemetry; having no traffic is known."""
    for reading in readings:
        if isinstance(reading, Unknown) and reading.reason is not UnknownReason.NO_TRAFFIC:
            return reading
    return None


def _total(parts: Iterable[Reading]) -> Reading:
    """The sum of readings, unknown as soon as one is; no traffic adds nothing."""
    readings = list(parts)
    gap = first_gap(readings) if readings else NO_REPLICA
    if gap is not None:
        return gap
    return Known(value=sum(r.value for r in readings if isinstance(r, Known)))


def _of(replica: str, reading: Reading) -> Reading:
    if isinstance(reading, Known):
        return reading
    return Unknown(reason=reading.reason, detail=f"{replica}: {reading.detail}".removesuffix(": "))


def _bin(sample: Sample) -> Bin:
    count = sample.reading.value if isinstance(sample.reading, Known) else 0.0
    return Bin(float(sample.labels["ge"]), float(sample.labels.get("le", inf)), count)
