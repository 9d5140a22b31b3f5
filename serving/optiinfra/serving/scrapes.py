"""Two scrapes of one server, read by its contract: samples, and the gaps in what was promised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import isfinite, isinf

from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.serving.contracts import (
    Combine,
    Contract,
    ExposedType,
    Promise,
    Source,
    Version,
)
from optiinfra.serving.exposition import Exposition
from optiinfra.serving.histograms import NOTHING_OBSERVED, Distribution, difference, distribution

QUANTILES: Mapping[str, float] = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
"""Values of the label `quantile`, beside `mean`."""
_STARTED = "process_start_time_seconds"
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
    """A required metric that the server does not expose as promised."""

    metric: str
    reason: UnknownReason
    detail: str


@dataclass(frozen=True, slots=True)
class ScrapeReadings:
    samples: tuple[Sample, ...]
    gaps: tuple[Gap, ...]


def read(
    contract: Contract, replica: str, now: Scrape, before: Scrape | None = None
) -> ScrapeReadings:
    """Samples of `now`; rates and distributions over the time since `before`, else left out.

    Samples carry the labels `contract=assumed` where the table was not checked against the
    version, and `emulated=true` where the server is an emulator.
    """
    reader = _Reader(contract, replica, now, before)
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


def _shape(promise: Promise) -> Iterable[dict[str, str]]:
    """The label sets of its samples: one for each statistic of a distribution."""
    if any(source.type is ExposedType.HISTOGRAM for source in promise.sources):
        return [{"quantile": name} for name in (*QUANTILES, "mean")]
    return [{}]


class _Reader:
    """One scrape against the one before it."""

    def __init__(
        self, contract: Contract, replica: str, now: Scrape, before: Scrape | None
    ) -> None:
        self.version, checked = contract.resolve(now.version)
        self.replica = replica
        self.now = now
        self.before = before if before is not None and before.at < now.at else None
        self.restarted = self.before is not None and _restarted(now, self.before)
        self.window_s = (now.at - self.before.at).total_seconds() if self.before else 0.0
        self.labels = {} if checked else {"contract": "assumed"}
        if now.emulated:
            self.labels["emulated"] = "true"

    def window(self) -> Iterable[Sample]:
        if self.before is not None:
            yield self._sample("scrape_window_s", Unit.SECONDS, Known(value=self.window_s))

    def promise(self, promise: Promise) -> tuple[list[Sample], Gap | None]:
        source = choose(promise, self.version, self.now.exposition)
        if isinstance(source, Unknown):
            return self._unknown(promise, source)
        if source.type is ExposedType.HISTOGRAM:
            return list(self._distribution(promise, source)), None
        reading = self._number(promise, source)
        if reading is None:
            return [], None
        if isinstance(reading, Unknown) and reading.reason is not UnknownReason.NO_TRAFFIC:
            return self._unknown(promise, reading)
        return [self._sample(promise.metric, promise.unit, reading, _basis(source))], None

    def _unknown(self, promise: Promise, why: Unknown) -> tuple[list[Sample], Gap | None]:
        samples = [
            self._sample(promise.metric, promise.unit, why, labels) for labels in _shape(promise)
        ]
        if promise.required and why.reason in _GAP_REASONS:
            return samples, Gap(promise.metric, why.reason, why.detail)
        return samples, None

    def _distribution(self, promise: Promise, source: Source) -> Iterable[Sample]:
        if self.before is None or not self.before.exposition.knows(source.name):
            return
        now, before = (
            distribution(s.exposition.buckets(source.name, source.where),
                         s.exposition.sum_of(source.name, source.where))
            for s in (self.now, self.before)
        )  # fmt: skip
        seen = now if self.restarted else difference(now, before)
        basis = _basis(source)
        for name, fraction in QUANTILES.items():
            reading = seen.quantile(fraction)
            yield self._sample(promise.metric, promise.unit, reading, basis | {"quantile": name})
        yield self._sample(promise.metric, promise.unit, seen.mean, basis | {"quantile": "mean"})
        if promise.pooled:
            yield from self._bins(promise, seen)

    def _bins(self, promise: Promise, seen: Distribution) -> Iterable[Sample]:
        for one in seen.bins:
            if one.count:
                labels = {"ge": repr(one.low), "le": repr(one.high)}
                count = Known(value=one.count)
                yield self._sample(f"{promise.metric}_bucket", Unit.COUNT, count, labels)
        if seen.count:
            value_sum = Known(value=seen.value_sum)
            yield self._sample(f"{promise.metric}_sum", promise.unit, value_sum)

    def _number(self, promise: Promise, source: Source) -> Reading | None:
        """The value of a gauge, information or rate; None when a rate has no earlier value yet."""
        match source.type:
            case ExposedType.COUNTER:
                if self.before is None or not self.before.exposition.knows(source.name):
                    return None
                reading = self._rate(source, self.before)
            case ExposedType.INFO:
                found = self.now.exposition.select(source.name, source.where)
                reading = Known(value=sum(_product(s.labels, source.labels) or 0.0 for s in found))
            case _:
                reading = _level(promise, source, self.now.exposition)
        return _plausible(promise, source, reading)

    def _rate(self, source: Source, before: Scrape) -> Reading:
        counted = self._counted(source.name, source.where, before)
        if source.per is None:
            return _finite(source, counted / self.window_s)
        asked = self._counted(source.per, source.where, before)
        return _finite(source, counted / asked) if asked else NOTHING_OBSERVED

    def _counted(self, name: str, where: Mapping[str, str], before: Scrape) -> float:
        """What a counter counted in the window; since the restart when it fell."""
        now, earlier = (
            sum(s.value for s in scrape.exposition.select(name, where))
            for scrape in (self.now, before)
        )
        return now if self.restarted or now < earlier else now - earlier

    def _sample(
        self, metric: str, unit: Unit, reading: Reading, labels: Mapping[str, str] | None = None
    ) -> Sample:
        return Sample(
            metric=metric,
            unit=unit,
            reading=reading,
            at=self.now.at,
            window_s=self.window_s,
            replica=self.replica,
            labels=self.labels | dict(labels or {}),
        )


def choose(promise: Promise, version: Version | None, exposition: Exposition) -> Source | Unknown:
    """The source to read a promise from, or why there is none."""
    allowed = [s for s in promise.sources if s.covers(version)]
    for source in allowed:
        if _exposed(source, exposition):
            return _unless_duplicated(source, exposition)
    if any(source.name in exposition.declared for source in allowed if not source.where):
        return Unknown(reason=UnknownReason.NO_TRAFFIC, detail="declared, no value yet")
    for source in promise.sources:
        if _exposed(source, exposition):
            wanted = ", ".join(s.name for s in allowed) or "nothing for it"
            detail = f"this version should expose {wanted}, it exposes {source.name}"
            return Unknown(reason=UnknownReason.RENAMED, detail=detail)
    if not promise.required:
        return Unknown(reason=UnknownReason.NOT_SUPPORTED, detail="not exposed")
    names = " or ".join(s.name for s in allowed) or promise.metric
    return Unknown(reason=UnknownReason.MISSING, detail=f"{names} is not exposed")


def _exposed(source: Source, exposition: Exposition) -> bool:
    if source.type is ExposedType.HISTOGRAM:
        return bool(exposition.buckets(source.name, source.where))
    if source.type is ExposedType.INFO:
        found = exposition.select(source.name, source.where)
        return any(_product(s.labels, source.labels) is not None for s in found)
    return bool(exposition.select(source.name, {} if source.first_use else source.where))


def _unless_duplicated(source: Source, exposition: Exposition) -> Source | Unknown:
    name = f"{source.name}_bucket" if source.type is ExposedType.HISTOGRAM else source.name
    if name in exposition.duplicated:
        return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail=f"{name} is exposed twice")
    return source


def _level(promise: Promise, source: Source, exposition: Exposition) -> Reading:
    values = [s.value for s in exposition.select(source.name, source.where)]
    total = sum(values)
    return _finite(source, total / len(values) if promise.combine is Combine.MEAN else total)


def _finite(source: Source, value: float) -> Reading:
    if isfinite(value):
        return Known(value=value)
    return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail=f"{source.name} is {value}")


def _plausible(promise: Promise, source: Source, reading: Reading) -> Reading:
    if isinstance(reading, Unknown):
        return reading
    high = float("inf") if promise.high is None else promise.high
    if promise.low <= reading.value <= high:
        return reading
    detail = f"{source.name} is {reading.value:g}"
    return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail=detail)


def _product(labels: Mapping[str, str], names: Iterable[str]) -> float | None:
    """The product of numbers carried in labels; None when one of them is not a number."""
    value = 1.0
    for name in names:
        try:
            value *= float(labels[name])
        except (KeyError, ValueError):
            return None
    return None if isinf(value) else value


def _basis(source: Source) -> dict[str, str]:
    return {"basis": source.basis} if source.basis else {}


def _restarted(now: Scrape, before: Scrape) -> bool:
    """Whether the process is another one, also when its counters have overtaken the old ones."""
    starts = [[s.value for s in scrape.exposition.select(_STARTED, {})] for scrape in (now, before)]
    return all(starts) and abs(starts[0][0] - starts[1][0]) > _START_JITTER_S
