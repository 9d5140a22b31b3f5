"""What one source of a contract says: a level, a rate or a distribution, or why it says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite, isnan, nan, prod

from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.serving.contracts import Combine, ExposedType, Promise, Selection, Source
from optiinfra.serving.exposition import Series
from optiinfra.serving.histograms import (
    NOTHING_OBSERVED,
    Distribution,
    difference,
    distribution,
    pooled,
)
from optiinfra.serving.units import factor
from optiinfra.serving.versions import Version
from optiinfra.serving.views import Part, View

Amount = Callable[[Selection, Part], float]
"""How much a selection has in a part: its value, or what it counted."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Two views of one server, and the time between them; `restarted` when counters began anew."""

    now: View
    before: View
    seconds: float
    restarted: bool


def choose(promise: Promise, version: Version | None, view: View) -> Source | Unknown:
    """The source to read a promise from, or why there is none."""
    allowed = [s for s in promise.sources if s.covers(version)]
    for source in allowed:
        if told_of := _strangers(source, view):
            detail = f"{source.name} is told of {told_of}; none of them is {view.model}"
            return _implausible(detail)
        if _exposed(source, view):
            return _unless_repeated(source, view)
    for source in allowed:
        if not source.where and all(view.exposition.knows(s.name) for s in source.selections()):
            return _without_value(promise, source)
    for source in promise.sources:
        if _exposed(source, view):
            wanted = ", ".join(s.name for s in allowed) or "nothing for it"
            detail = f"this version should expose {wanted}, it exposes {source.name}"
            return Unknown(reason=UnknownReason.RENAMED, detail=detail)
    if promise.optional or not (allowed or promise.required):
        return Unknown(reason=UnknownReason.NOT_SUPPORTED, detail="not exposed")
    names = " or ".join(s.name for s in allowed) or promise.metric
    return Unknown(reason=UnknownReason.MISSING, detail=f"{names} is not exposed")


def level(promise: Promise, source: Source, view: View, parts: Sequence[Part]) -> Reading:
    """The value of a gauge, or of the numbers in the labels of an `info` metric, over `parts`."""

    def amount(selection: Selection, part: Part) -> float:
        found = view.select(selection, part)
        if source.type is ExposedType.INFO:
            return sum(_product(one.labels, source.labels) for one in found)
        return sum(one.value for one in found)

    reading = _number(promise, source, amount, parts)
    if reading is NOTHING_OBSERVED:
        return _implausible(f"{source.name} is a part of 0")
    return reading


def rate(promise: Promise, source: Source, over: Interval, parts: Sequence[Part]) -> Reading | None:
    """What a counter counted a second, or for each of `per`; None where it was not known before."""
    if not all(over.before.exposition.knows(one.name) for one in source.selections()):
        return None

    def amount(selection: Selection, part: Part) -> float:
        return _counted(over, selection, part)

    per_s = 1.0 if source.per else 1.0 / over.seconds
    return _number(promise, source, amount, parts, per_s)


def observed(
    promise: Promise, source: Source, over: Interval
) -> Mapping[Part, Distribution] | Unknown | None:
    """What a histogram observed in the interval, by part; None where it was not known before."""
    if not over.before.exposition.knows(source.name):
        return None
    now = _histograms(over.now, source)
    if isinstance(now, Unknown):
        return now
    before = {} if over.restarted else _histograms(over.before, source)
    if isinstance(before, Unknown):
        return None
    scale = factor(source.unit, promise.unit) or 1.0
    seen: dict[Part, list[Distribution]] = {}
    for labels, one in now.items():
        fresh = difference(one, before[labels]) if labels in before else one
        seen.setdefault(over.now.part_of(dict(labels)), []).append(fresh.scaled(scale))
    return {part: pooled(several) for part, several in seen.items()}


def unusual(source: Source, seen: Distribution) -> bool:
    """Whether a distribution has other bounds than the versions of its source ship with."""
    bounds = {one.high for one in seen.bins} - {inf}
    return bool(source.buckets) and bounds not in [set(known) for known in source.buckets]


def _number(
    promise: Promise,
    source: Source,
    amount: Amount,
    parts: Sequence[Part],
    per_s: float = 1.0,
) -> Reading:
    """Amounts of `parts` put together; a ratio is of the sums, so that busy engines weigh more."""
    amounts = [amount(source, part) * prod(amount(t, part) for t in source.times) for part in parts]
    value = sum(amounts) * per_s
    if source.per:
        below = sum(amount(one, part) for one in source.per for part in parts)
        if below == 0:
            return NOTHING_OBSERVED
        value /= below
    elif promise.combine is Combine.MEAN:
        value /= len(parts)
    value = 1.0 - value if source.complement else value
    return _plausible(promise, source, value * (factor(source.unit, promise.unit) or 1.0))


def _counted(over: Interval, selection: Selection, part: Part) -> float:
    """What the series of a counter counted, each by itself; from 0 where one fell or is new."""
    before = {_labels(one): one.value for one in over.before.select(selection, part)}
    counted = 0.0
    for one in over.now.select(selection, part):
        earlier = 0.0 if over.restarted else before.get(_labels(one), 0.0)
        counted += one.value if one.value < earlier else one.value - earlier
    return counted


def _histograms(
    view: View, source: Source
) -> dict[frozenset[tuple[str, str]], Distribution] | Unknown:
    """One distribution for each label set; unknown when one of them is no histogram."""
    sums = {_labels(one): one.value for one in view.select(_suffixed(source, "_sum"))}
    counts: dict[frozenset[tuple[str, str]], dict[float, float]] = {}
    for one in view.select(_bucket_of(source)):
        counts.setdefault(_labels(one, but="le"), {})[_bound(one)] = one.value
    for key, cumulative in counts.items():
        if not (_rises_to_the_end(cumulative) and isfinite(sums.get(key, nan))):
            return _implausible(f"{source.name} is no histogram: its counts or its sum are broken")
    return {key: distribution(cumulative, sums[key]) for key, cumulative in counts.items()}


def _rises_to_the_end(cumulative: Mapping[float, float]) -> bool:
    """Whether counts are finite, never fall, and have an end that takes everything."""
    if any(isnan(bound) for bound in cumulative):
        return False
    ordered = [count for _, count in sorted(cumulative.items())]
    rises = all(low <= high for low, high in pairwise([0.0, *ordered]))
    return rises and inf in cumulative and isfinite(ordered[-1])


def _bound(one: Series) -> float:
    """The upper bound of a bucket; NaN, which ends no histogram, when it is none."""
    return _as_number(one.labels.get("le"))


def _exposed(source: Source, view: View) -> bool:
    """Whether all that the source is made of has values."""
    if source.type is ExposedType.HISTOGRAM:
        return bool(view.select(_bucket_of(source)))
    if source.type is ExposedType.INFO:
        return any(isfinite(_product(s.labels, source.labels)) for s in view.select(source))
    if source.first_use:
        return bool(view.exposition.named(source.name))
    return all(view.select(one) for one in source.selections())


def _strangers(source: Source, view: View) -> str:
    """The models that a source is told of when there are several, and none of them is ours."""
    return next((", ".join(found) for one in _read(source) if (found := view.strangers(one))), "")


def _unless_repeated(source: Source, view: View) -> Source | Unknown:
    for one in _read(source):
        if view.exposition.repeats(one.name):
            return _implausible(f"{one.name} is exposed twice")
    return source


def _read(source: Source) -> Iterable[Selection]:
    """What is really looked at of a source."""
    is_histogram = source.type is ExposedType.HISTOGRAM
    return (_bucket_of(source),) if is_histogram else source.selections()


def _without_value(promise: Promise, source: Source) -> Unknown:
    """Nothing was counted yet, where counting makes the value; a level without one is missing."""
    if source.type in (ExposedType.COUNTER, ExposedType.HISTOGRAM):
        reason = UnknownReason.NO_TRAFFIC
    elif promise.optional:
        reason = UnknownReason.NOT_SUPPORTED
    else:
        reason = UnknownReason.MISSING
    return Unknown(reason=reason, detail=f"{source.name} is declared and has no value yet")


def _plausible(promise: Promise, source: Source, value: float) -> Reading:
    if value == source.none_is:
        return Unknown(reason=UnknownReason.NOT_SUPPORTED, detail=f"{source.name} says: none")
    high = inf if promise.high is None else promise.high
    if isfinite(value) and promise.low <= value <= high:
        return Known(value=value)
    return _implausible(f"{source.name} gives {value:g}")


def _implausible(detail: str) -> Unknown:
    return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail=detail)


def _product(labels: Mapping[str, str], names: Iterable[str]) -> float:
    """The product of numbers carried in labels; NaN when one of them is not a number."""
    return prod(_as_number(labels.get(name)) for name in names)


def _as_number(text: str | None) -> float:
    try:
        return nan if text is None else float(text)
    except ValueError:
        return nan


def _labels(one: Series, but: str = "") -> frozenset[tuple[str, str]]:
    return frozenset((name, value) for name, value in one.labels.items() if name != but)


def _bucket_of(source: Source) -> Selection:
    """The series that hold the counts of a histogram."""
    return _suffixed(source, "_bucket")


def _suffixed(source: Source, suffix: str) -> Selection:
    return Selection(name=source.name + suffix, where=source.where, unless=source.unless)
