"""Forecasts offered load: a daily profile times a level, with head-room from past errors; pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Literal, NamedTuple

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason


class ForecastPolicy(Value):
    """How load is forecast; times in s.

    The peak of the next `horizon_s` (how long a replica takes to start) is bounded so that it is
    exceeded with probability 1 − `quantile`.
    """

    bin_s: float = Field(default=60.0, gt=0)
    horizon_s: float = Field(default=420.0, gt=0)
    quantile: float = Field(default=0.95, gt=0, lt=1)
    recent_s: float = Field(default=600.0, gt=0)
    """What the level is the mean of, and the reactive floor the maximum of."""
    season_s: float = Field(default=86_400.0, gt=0)
    slot_s: float = Field(default=1_800.0, gt=0)
    """Width of one step of the seasonal profile."""
    min_seasons: float = Field(default=2.0, ge=1)
    min_bins: int = Field(default=5, ge=2)
    short_widening: float = Field(default=1.25, ge=1)
    """Factor on the largest error seen where there are too few errors for the quantile."""


class LoadPoint(NamedTuple):
    """Offered load at one time, s since the epoch and requests/s."""

    at_s: float
    rps: float


class LoadForecast(Value):
    """The peak of the next `horizon_s`: expected, and with head-room.

    `coverage` is the share of past peaks that stayed within the head-room when it was learnt from
    earlier errors only; unknown for a history too short to tell.
    """

    method: Literal["seasonal", "level"]
    horizon_s: float
    mid_rps: float = Field(ge=0)
    high_rps: float = Field(ge=0)
    coverage: Reading
    bins: int = Field(ge=1)


class _Bin(NamedTuple):
    slot: int
    rps: float


def forecast_load(
    points: Sequence[LoadPoint], now_s: float, policy: ForecastPolicy
) -> LoadForecast | Unknown:
    """The peak of offered load in (now, now + horizon]; `Unknown(STALE)` for too little history.

    Seasonal: `level × profile(t)`, the level being the recent load freed of its profile. Head-room:
    the conformal quantile (rank ⌈(n + 1)·q⌉ of n) of past peak ÷ forecast, replayed from each bin;
    with too few of them the largest, widened. Never below the recent maximum (reactive floor).
    """
    bins = _bins(points, now_s, policy)
    if len(bins) < policy.min_bins:
        detail = f"{len(bins)} of {policy.min_bins} steps of {policy.bin_s:g} s of load history"
        return Unknown(reason=UnknownReason.STALE, detail=detail)
    seasonal = len(bins) * policy.bin_s >= policy.min_seasons * policy.season_s
    profile = _profile(bins, policy) if seasonal else None
    replay = _Replay(bins, profile, policy)
    expected = replay.peak_after(len(bins) - 1)
    ratios = replay.errors() or replay.recent_errors()
    headroom, coverage = _headroom(ratios, policy)
    floor = max(one.rps for one in bins[-replay.recent :])
    return LoadForecast(
        method="seasonal" if seasonal else "level",
        horizon_s=policy.horizon_s,
        mid_rps=expected,
        high_rps=max(expected * headroom, expected, floor),
        coverage=coverage,
        bins=len(bins),
    )


class _Replay:
    """Forecasts from any bin of the history as they would have been made then."""

    def __init__(
        self, bins: Sequence[_Bin], profile: Sequence[float] | None, policy: ForecastPolicy
    ) -> None:
        self.bins = bins
        self.shape = [profile[one.slot] if profile else 1.0 for one in bins]
        self.recent = max(1, round(policy.recent_s / policy.bin_s))
        self.ahead = max(1, ceil(policy.horizon_s / policy.bin_s))
        self.profile = profile
        self.slots_per_bin = policy.bin_s / policy.slot_s

    def peak_after(self, origin: int) -> float:
        """Expected peak of the bins after `origin`."""
        window = range(max(0, origin + 1 - self.recent), origin + 1)
        level = sum(self.bins[i].rps for i in window) / sum(self.shape[i] for i in window)
        if self.profile is None:
            return level
        last, slots = self.bins[origin].slot, len(self.profile)
        reach = ceil(self.ahead * self.slots_per_bin)
        return level * max(self.profile[(last + step) % slots] for step in range(reach + 1))

    def errors(self) -> list[float]:
        """Past peak ÷ forecast, from each origin whose horizon has passed."""
        last = len(self.bins) - self.ahead
        first = min(self.recent, last) - 1
        return [
            _ratio(
                max(one.rps for one in self.bins[i + 1 : i + 1 + self.ahead]), self.peak_after(i)
            )
            for i in range(max(0, first), last)
        ]

    def recent_errors(self) -> list[float]:
        """Recent load ÷ its own level, where no horizon has passed yet."""
        level = self.peak_after(len(self.bins) - 1)
        return [_ratio(one.rps, level) for one in self.bins[-self.recent :]]


def _bins(points: Sequence[LoadPoint], now_s: float, policy: ForecastPolicy) -> list[_Bin]:
    """Means by step of `bin_s`, oldest first; steps without a reading are left out."""
    sums: dict[int, tuple[float, int]] = {}
    for point in points:
        if point.at_s <= now_s:
            step = int(point.at_s // policy.bin_s)
            total, count = sums.get(step, (0.0, 0))
            sums[step] = (total + point.rps, count + 1)
    slots = _slots(policy)
    return [
        _Bin(int(step * policy.bin_s % policy.season_s // policy.slot_s) % slots, total / count)
        for step, (total, count) in sorted(sums.items())
    ]


def _profile(bins: Sequence[_Bin], policy: ForecastPolicy) -> list[float]:
    """Mean load of each slot of the season ÷ the mean of all; 1 for a slot never seen."""
    slots = _slots(policy)
    totals, counts = [0.0] * slots, [0] * slots
    for one in bins:
        totals[one.slot] += one.rps
        counts[one.slot] += 1
    mean = sum(totals) / len(bins)
    # A slot without load keeps a little, so that a level can be read off it.
    return [
        max(_ratio(total / count, mean), 0.01) if count else 1.0
        for total, count in zip(totals, counts, strict=True)
    ]


def _slots(policy: ForecastPolicy) -> int:
    return max(1, round(policy.season_s / policy.slot_s))


def _headroom(ratios: Sequence[float], policy: ForecastPolicy) -> tuple[float, Reading]:
    """The factor above the expected peak, and how often it would have been enough."""
    enough = _conformal(ratios, policy.quantile)
    if enough is None:
        detail = f"{len(ratios)} past errors are too few for the {policy.quantile:g} quantile"
        unknown = Unknown(reason=UnknownReason.STALE, detail=detail)
        return max(ratios) * policy.short_widening, unknown
    return enough, _coverage(ratios, policy.quantile)


def _coverage(ratios: Sequence[float], quantile: float) -> Reading:
    """Share of the later half within the head-room learnt from the earlier half; ± one sd."""
    half = len(ratios) // 2
    learnt, later = _conformal(ratios[:half], quantile), ratios[half:]
    if learnt is None:
        detail = f"{half} past errors are too few to test the head-room"
        return Unknown(reason=UnknownReason.STALE, detail=detail)
    share = sum(ratio <= learnt for ratio in later) / len(later)
    return Known(value=share, error=sqrt(share * (1 - share) / len(later)))


def _conformal(ratios: Sequence[float], quantile: float) -> float | None:
    """The ⌈(n + 1)·q⌉-th smallest of n; None when that is beyond the largest."""
    rank = ceil((len(ratios) + 1) * quantile)
    return sorted(ratios)[rank - 1] if rank <= len(ratios) else None


def _ratio(part: float, whole: float) -> float:
    """part ÷ whole; 1 where there is nothing to compare with."""
    return part / whole if whole > 0 else 1.0
