"""Two scrapes of one server, read by its contract: samples, and the gaps in what was promised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.serving.contracts import Contract, ExposedType, Promise, Source
from optiinfra.serving.exposition import Exposition
from optiinfra.serving.histograms import Distribution, pooled
from optiinfra.serving.sources import (
    Interval,
    choose,
    level,
    observed,
    rate,
    unusual,
)
from optiinfra.serving.views import WHOLE, Part, View

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
"""Values of the label `quantile`, beside `mean`."""
_START_JITTER_S = 2.0
_GAP_REASONS = frozenset({UnknownReason.MISSING, UnknownReason.RENAMED, UnknownReason.IMPLAUSIBLE})


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one server exposed at one time; `emulated` when its version says so."""

    at: datetime
    exposition: Exposition
    version: str | None = None
    emulated: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """A metric that the server does not expose as promised."""

    metric: str
    reason: UnknownReason
    detail: str


@dataclass(frozen=True, slots=True)
class ScrapeReadings:
    samples: tuple[Sample, ...]
    gaps: tuple[Gap, ...]


def read(
    contract: Contract,
    replica: str | None,
    now: Scrape,
    before: Scrape | None = None,
    *,
    model: str | None = None,
) -> ScrapeReadings:
    """Samples of `now`; rates and distributions over the time since `before`, else left out.

    Of a server with several models only `model` is read. Samples carry the labels
    `contract=assumed` where the table was not checked against the version, `emulated=true` where
    the server is an emulator, and our names of what tells devices apart.
    """
    reader = _Reader(contract, replica, now, before, model)
    samples: list[Sample] = list(reader.window())
    gaps: list[Gap] = []
    for promise in contract.promises:
        found, gap = reader.promise(promise)
        samples.extend(found)
        if gap is not None:
            gaps.append(gap)
    return ScrapeReadings(tuple(samples), tuple(gaps))


def unread(contract: Contract, replica: str, at: datetime, why: Unknown) -> tuple[Sample, ...]:
    """Every required metric as unknown, for a server that could not be scraped."""
    return tuple(
        Sample(
            metric=p.metric, unit=p.unit, reading=why, at=at, replica=replica, labels=dict(labels)
        )
        for p in contract.promises
        if p.required
        for labels in _shape(p)
    )


def levels(contract: Contract, exposition: Exposition) -> Mapping[str, Reading]:
    """The present value of each promised gauge, by metric: for what is asked, not scraped."""
    view = View(exposition, contract.identity)

    def reading(promise: Promise) -> Reading:
        source = choose(promise, None, view)
        if isinstance(source, Unknown):
            return source
        return level(promise, source, view, (WHOLE,))

    return {promise.metric: reading(promise) for promise in contract.promises}


def _shape(promise: Promise) -> Iterable[dict[str, str]]:
    """The label sets of its samples: one for each statistic of a distribution."""
    if any(source.type is ExposedType.HISTOGRAM for source in promise.sources):
        return [{"quantile": name} for name in (*QUANTILES, "mean")]
    return [{}]


class _Reader:
    """One scrape against the one before it."""

    def __init__(
        self,
        contract: Contract,
        replica: str | None,
        now: Scrape,
        before: Scrape | None,
        model: str | None,
    ) -> None:
        version = now.version or _told_version(contract, now.exposition)
        self.version, checked = contract.resolve(version)
        self.identity = contract.identity
        self.replica = replica
        self.at = now.at
        self.view = View(now.exposition, contract.identity, model)
        self.over = _interval(contract, now, before, self.view)
        self.labels = {} if checked else {"contract": "assumed"}
        if now.emulated:
            self.labels["emulated"] = "true"

    def window(self) -> Iterable[Sample]:
        if self.over is not None:
            window_s = Known(value=self.over.seconds)
            yield self._sample("scrape_window_s", Unit.SECONDS, window_s)

    def promise(self, promise: Promise) -> tuple[list[Sample], Gap | None]:
        source = choose(promise, self.version, self.view)
        if isinstance(source, Unknown):
            return self._unknown(promise, source)
        if source.type is ExposedType.HISTOGRAM:
            return self._latencies(promise, source)
        return self._numbers(promise, source)

    def _unknown(self, promise: Promise, why: Unknown) -> tuple[list[Sample], Gap | None]:
        samples = [
            self._sample(promise.metric, promise.unit, why, labels) for labels in _shape(promise)
        ]
        is_gap = why.reason in _GAP_REASONS
        return samples, Gap(promise.metric, why.reason, why.detail) if is_gap else None

    def _numbers(self, promise: Promise, source: Source) -> tuple[list[Sample], Gap | None]:
        """One value of all parts together, or one of each device; then one of each engine."""
        parts = self.view.parts(source) or (WHOLE,)
        groups = [(part,) for part in parts] if self.identity.apart else [parts]
        samples: list[Sample] = []
        gap: Gap | None = None
        for group in groups:
            reading = self._number(promise, source, group)
            if isinstance(reading, Unknown) and reading.reason in _GAP_REASONS:
                gap = Gap(promise.metric, reading.reason, reading.detail)
            if reading is not None:
                labels = _basis(source) | (self._named(group[0]) if self.identity.apart else {})
                samples.append(self._sample(promise.metric, promise.unit, reading, labels))
        for part in self._engines(parts):
            reading = self._number(promise, source, [part])
            if reading is not None:
                samples.append(self._of_engine(promise, reading, _basis(source), part))
        return samples, gap

    def _number(self, promise: Promise, source: Source, parts: Sequence[Part]) -> Reading | None:
        """The value of a gauge, information or rate; None when a rate has no earlier value yet."""
        if source.type is not ExposedType.COUNTER:
            return level(promise, source, self.view, parts)
        return rate(promise, source, self.over, parts) if self.over is not None else None

    def _latencies(self, promise: Promise, source: Source) -> tuple[list[Sample], Gap | None]:
        if self.over is None:
            return [], None
        found = observed(promise, source, self.over)
        if isinstance(found, Unknown):
            return self._unknown(promise, found)
        if found is None:
            return [], None
        seen = pooled(found.values())
        labels = _basis(source) | ({"buckets": "other"} if unusual(source, seen) else {})
        samples = [
            self._sample(promise.metric, promise.unit, reading, labels | {"quantile": name})
            for name, reading in _statistics(seen)
        ]
        if promise.pooled:
            samples.extend(self._bins(promise, seen))
        for part in self._engines([*found]):
            samples.extend(
                self._of_engine(promise, reading, labels | {"quantile": name}, part)
                for name, reading in _statistics(found[part])
            )
        return samples, None

    def _bins(self, promise: Promise, seen: Distribution) -> Iterable[Sample]:
        for one in seen.bins:
            if one.count:
                labels = {"ge": repr(one.low), "le": repr(one.high)}
                count = Known(value=one.count)
                yield self._sample(f"{promise.metric}_bucket", Unit.COUNT, count, labels)
        if seen.count:
            value_sum = Known(value=seen.value_sum)
            yield self._sample(f"{promise.metric}_sum", promise.unit, value_sum)

    def _engines(self, parts: Sequence[Part]) -> Sequence[Part]:
        """The engines to tell of one by one: none where there is one alone."""
        return parts if self.identity.engine and len(parts) > 1 else ()

    def _of_engine(
        self, promise: Promise, reading: Reading, labels: Mapping[str, str], part: Part
    ) -> Sample:
        labels = {**labels, **self._named(part)}
        return self._sample(f"{promise.metric}_by_engine", promise.unit, reading, labels)

    def _named(self, part: Part) -> dict[str, str]:
        """Our labels of one engine or device."""
        return {self.identity.ours[name]: value for name, value in part if value is not None}

    def _sample(
        self, metric: str, unit: Unit, reading: Reading, labels: Mapping[str, str] | None = None
    ) -> Sample:
        return Sample(
            metric=metric,
            unit=unit,
            reading=reading,
            at=self.at,
            window_s=self.over.seconds if self.over is not None else 0.0,
            replica=self.replica,
            labels=self.labels | dict(labels or {}),
        )


def _interval(
    contract: Contract, now: Scrape, before: Scrape | None, view: View
) -> Interval | None:
    if before is None or before.at >= now.at:
        return None
    earlier = View(before.exposition, contract.identity, view.model)
    seconds = (now.at - before.at).total_seconds()
    return Interval(view, earlier, seconds, _restarted(contract.started, now, before))


def _statistics(seen: Distribution) -> Iterable[tuple[str, Reading]]:
    for name, fraction in QUANTILES.items():
        yield name, seen.quantile(fraction)
    yield "mean", seen.mean


def _basis(source: Source) -> dict[str, str]:
    return {"basis": source.basis} if source.basis else {}


def _told_version(contract: Contract, exposition: Exposition) -> str | None:
    """The version that the text itself tells, where the contract knows where."""
    told = exposition.named(contract.version_at.metric) if contract.version_at.metric else ()
    return next((one.labels.get("version") for one in told), None)


def _restarted(started: str | None, now: Scrape, before: Scrape) -> bool:
    """Whether counters began anew, also when they have overtaken the old ones."""
    if started is None:
        return False
    starts = [[s.value for s in scrape.exposition.named(started)] for scrape in (now, before)]
    return all(starts) and abs(starts[0][0] - starts[1][0]) > _START_JITTER_S
