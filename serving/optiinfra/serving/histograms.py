"""Distributions from histogram buckets: differences over time, pooling, quantiles with an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isinf

from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason

NOTHING_OBSERVED = Unknown(reason=UnknownReason.NO_TRAFFIC, detail="nothing observed")


@dataclass(frozen=True, slots=True)
class Bin:
    """`count` observations in (low, high]."""

    low: float
    high: float
    count: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """Observations in bins, ordered; `value_sum` is the sum of the observed values."""

    bins: tuple[Bin, ...] = ()
    value_sum: float = 0.0

    @property
    def count(self) -> float:
        return sum(one.count for one in self.bins)

    @property
    def mean(self) -> Reading:
        """Mean of the observed values; exact, since the sum is."""
        return Known(value=self.value_sum / self.count) if self.count else NOTHING_OBSERVED

    def scaled(self, factor: float) -> Distribution:
        """The same observations in another unit."""
        bins = (Bin(one.low * factor, one.high * factor, one.count) for one in self.bins)
        return Distribution(tuple(bins), self.value_sum * factor)

    def quantile(self, fraction: float) -> Reading:
        """Interpolated quantile; `error` bounds the distance to the true one by the bin's ends.

        Beyond the last finite bound nothing is resolved: the value is that bound, a lower limit.
        """
        rank, below = fraction * self.count, 0.0
        for one in self.bins:
            below += one.count
            if one.count and below >= rank:
                return _inside(one, (rank - (below - one.count)) / one.count)
        return NOTHING_OBSERVED


def _inside(one: Bin, part: float) -> Known:
    if isinf(one.high):
        return Known(value=one.low, error=one.low)
    value = one.low + part * (one.high - one.low)
    return Known(value=value, error=max(value - one.low, one.high - value))


def distribution(cumulative: Mapping[float, float], value_sum: float) -> Distribution:
    """The distribution of cumulative counts by upper bound; the first bin begins at 0."""
    bins: list[Bin] = []
    low, below = 0.0, 0.0
    for high, total in sorted(cumulative.items()):
        bins.append(Bin(low, high, total - below))
        low, below = high, total
    return Distribution(tuple(bins), value_sum)


def difference(now: Distribution, before: Distribution) -> Distribution:
    """What was observed between two scrapes.

    A count that fell or other bins mean a restarted server: then all of `now` is new.
    """
    earlier = {(one.low, one.high): one.count for one in before.bins}
    bins = tuple(
        Bin(one.low, one.high, one.count - earlier.get((one.low, one.high), inf))
        for one in now.bins
    )
    if len(earlier) != len(bins) or any(one.count < 0 for one in bins):
        return now
    return Distribution(bins, now.value_sum - before.value_sum)


def pooled(parts: Iterable[Distribution]) -> Distribution:
    """All observations of several windows or servers together."""
    counts: dict[tuple[float, float], float] = {}
    value_sum = 0.0
    for part in parts:
        value_sum += part.value_sum
        for one in part.bins:
            counts[one.high, one.low] = counts.get((one.high, one.low), 0.0) + one.count
    bins = tuple(Bin(low, high, count) for (high, low), count in sorted(counts.items()))
    return Distribution(bins, value_sum)
