"""The betting test between two concurrent arms: valid however often one looks.

For the t-th pair let `b` be the baseline's and `c` the canary's mean score since the pair before,
d = b − c and g = c − (1 − margin)·b. Over a fixed set of bets λ
    K  = mean over λ of ∏(1 + λ·d)     against "the canary is not worse"
    K' = mean over λ of ∏(1 + λ·g)     against "the canary is worse by more than the margin"
are test supermartingales while the respective claim is true, so that by Ville's inequality the
chance that K ever reaches 1/α is at most α, and that K' ever reaches 1/β at most β. Scores lie in
[0, 1] and bets under 1, hence every factor is positive. No distribution is assumed, and a drift
that both arms share cancels in the pairs. (Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting", 2024.)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum
from itertools import groupby

import numpy as np
import numpy.typing as npt

from optiinfra.schemas.errors import Rejected

Floats = npt.NDArray[np.float64]

BETS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
FLOOR_BETS = (1.0, 2.0, 5.0, 10.0, 20.0)
MOST_LOG_E = 27.0
"""e-values are shown up to e^27; beyond it they say nothing more and would overflow."""
LARGEST_BET = 0.95
"""At 1 a single pair could bring the wealth to nothing."""
_BISECTIONS = 40


class Arm(IntEnum):
    """The order also breaks ties in time: at the same instant the baseline came first."""

    BASELINE = 0
    CANARY = 1


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer of one arm; `score` is None when it could not be scored."""

    at: datetime
    arm: Arm
    stratum: str
    unit: str
    score: float | None


@dataclass(frozen=True, slots=True)
class Design:
    """Error rates, the relative drop that matters, and the bets. Raises `Rejected`.

    `alpha` bounds the chance of ever rolling back a canary that is not worse, `beta` that of ever
    promoting one that is worse by `margin`.
    """

    alpha: float = 0.05
    beta: float = 0.05
    margin: float = 0.05
    bets: tuple[float, ...] = BETS

    def __post_init__(self) -> None:
        if not self.bets or not all(0 < bet <= LARGEST_BET for bet in self.bets):
            raise Rejected(
                f"bets must lie in (0, {LARGEST_BET}], or a single pair could ruin the test"
            )


@dataclass(frozen=True, slots=True)
class Pair:
    """Mean scores of both arms over the same stretch of time in one stratum.

    `is_first` is False when a canary prompt in it was scored before: a prompt that is asked
    again may raise an alarm, but is no new evidence that all is well.
    """

    at: datetime
    baseline: float
    canary: float
    is_first: bool = True


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a difference in mean score, canary minus baseline."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What all pairs up to now say; `e_rollback` is the highest that K has been, `e_promote` is
    K' now."""

    pairs: int
    e_rollback: float
    e_promote: float
    mean_baseline: float | None = None
    mean_canary: float | None = None
    difference: Interval | None = None


def sessions(
    observations: Iterable[Observation], *, window_s: float, until: datetime
) -> list[Observation]:
    """One observation per session: the mean of what was scored in its first `window_s`.

    A session enters the test when its window has closed, at that time, and never changes again;
    later answers of it are left out. So a later look sees the same beginning of the sequence as
    the looks before it, which is what makes many looks as safe as one.

    It belongs to the arm that answered it first, also when its share of the traffic has moved to
    the other since. Counted there again it would be two units; and the canary, to which sessions
    move as its share grows, would be given older ones than the baseline.
    """
    window = timedelta(seconds=window_s)
    found: dict[str, list[Observation]] = defaultdict(list)
    for one in sorted(observations, key=_order):
        found[one.unit].append(one)
    closed = []
    for own in found.values():
        arm, end = own[0].arm, own[0].at + window
        if end <= until:
            closed.append(_mean_of([one for one in own if one.arm is arm and one.at <= end], end))
    return sorted(closed, key=_order)


def _mean_of(own: list[Observation], at: datetime) -> Observation:
    scores = [one.score for one in own if one.score is not None]
    score = sum(scores) / len(scores) if scores else None
    return Observation(at, own[0].arm, own[0].stratum, own[0].unit, score)


def _order(one: Observation) -> tuple[datetime, Arm, str, str]:
    return one.at, one.arm, one.stratum, one.unit


@dataclass(slots=True)
class _Open:
    """What has been served in one stratum since its last pair."""

    baseline: list[float] = field(default_factory=list)
    canary: list[float] = field(default_factory=list)
    is_first: bool = True


def pairs_of(units: Iterable[Observation]) -> list[Pair]:
    """Pairs in the order of time; units without a score are left out.

    Within a stratum, a canary unit is paired with the mean of the k ≥ 1 baseline units served
    since the last pair. When there is none (the canary carries most of the traffic), canary
    units wait and their mean is paired with the next baseline unit. When a pair closes depends
    only on which arm served, never on a score, so a pair's difference stays fair.
    """
    open_: dict[str, _Open] = defaultdict(_Open)
    seen: set[str] = set()
    pairs = []
    for unit in sorted(units, key=_order):
        if unit.score is None:
            continue
        block = open_[unit.stratum]
        if unit.arm is Arm.CANARY:
            block.canary.append(unit.score)
            block.is_first = block.is_first and unit.unit not in seen
            seen.add(unit.unit)
        else:
            block.baseline.append(unit.score)
        if block.baseline and block.canary:
            del open_[unit.stratum]
            pairs.append(Pair(unit.at, _mean(block.baseline), _mean(block.canary), block.is_first))
    return pairs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def log_wealth(gains: Floats, bets: Sequence[float]) -> Floats:
    """log of the mean over `bets` of ∏(1 + bet·gain), after each gain."""
    steps = np.log1p(np.outer(np.asarray(bets, dtype=np.float64), gains))
    paths = np.cumsum(steps, axis=1)
    return np.asarray(np.logaddexp.reduce(paths, axis=0) - math.log(len(bets)), dtype=np.float64)


def weigh(pairs: Sequence[Pair], design: Design) -> Evidence:
    """The evidence of `pairs` (in the order of time) under `design`."""
    if not pairs:
        return Evidence(pairs=0, e_rollback=1.0, e_promote=1.0)
    baseline = np.array([pair.baseline for pair in pairs])
    canary = np.array([pair.canary for pair in pairs])
    is_first = np.array([pair.is_first for pair in pairs])
    drops = baseline - canary
    margins = (canary - (1 - design.margin) * baseline)[is_first]
    return Evidence(
        pairs=len(pairs),
        e_rollback=_e_value(log_wealth(drops, design.bets).max()),
        e_promote=_e_value(log_wealth(margins, design.bets)[-1]) if margins.size else 1.0,
        mean_baseline=float(baseline.mean()),
        mean_canary=float(canary.mean()),
        difference=difference(drops, design),
    )


def _e_value(log_e: float) -> float:
    return math.exp(min(float(log_e), MOST_LOG_E))


def difference(drops: Floats, design: Design) -> Interval:
    """The confidence sequence {m : K(m) < 1/α} of the difference canary − baseline.

    Each bound alone fails with chance at most α over the whole sequence, both with 2α: the upper
    bound falls below 0 exactly where the rule to roll back is met.
    """
    return Interval(low=_lower_bound(-drops, design), high=-_lower_bound(drops, design))


def _lower_bound(values: Floats, design: Design) -> float:
    """The smallest mean m of `values` (in [−1, 1]) with K(m) < 1/α, by bisection.

    K falls in m, and K at the mean of the values is at most 1, so the bound lies below it.
    """
    low, high = -1.0, float(values.mean())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _wealth_against(values, middle, design.bets) < -math.log(design.alpha):
            high = middle
        else:
            low = middle
    return high


def _wealth_against(values: Floats, mean: float, bets: Sequence[float]) -> float:
    """log K(mean) at the end; bets are cut so that no value can ruin the test."""
    largest = LARGEST_BET / max(1 + mean, LARGEST_BET)
    safe = [min(bet, largest) for bet in bets]
    return float(log_wealth(values - mean, safe)[-1])


def floor_evidence(is_bad: Sequence[bool], allowed_rate: float) -> float:
    """The highest e-value, over time, against "at most `allowed_rate` of these are bad".

    The same test for yes/no outcomes with bolder bets: two failures at the start of a stage are
    enough at 1 %, one in a hundred is not.
    """
    if not is_bad:
        return 1.0
    bets = [bet for bet in FLOOR_BETS if bet * allowed_rate < 1]
    gains = np.asarray(is_bad, dtype=np.float64) - allowed_rate
    return _e_value(log_wealth(gains, bets).max())


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of an arm's good answers could be scored."""

    scored: int
    total: int

    @property
    def missing_share(self) -> float:
        return 1 - self.scored / self.total if self.total else 0.0


def coverage_of(observations: Iterable[Observation]) -> dict[Arm, Coverage]:
    """Coverage of both arms; an arm without answers has a total of 0."""
    ordered = sorted(observations, key=lambda one: one.arm)
    found = {arm: list(own) for arm, own in groupby(ordered, key=lambda one: one.arm)}
    return {
        arm: Coverage(
            scored=sum(one.score is not None for one in found.get(arm, [])),
            total=len(found.get(arm, [])),
        )
        for arm in Arm
    }


def is_uneven(one: Coverage, two: Coverage, tolerance: float) -> bool:
    """Whether the shares of missing scores differ by more than `tolerance` and three standard
    errors: then what is missing may hide what is wrong."""
    if not (one.total and two.total):
        return False
    pooled = 1 - (one.scored + two.scored) / (one.total + two.total)
    error = math.sqrt(pooled * (1 - pooled) * (1 / one.total + 1 / two.total))
    return abs(one.missing_share - two.missing_share) > tolerance + 3 * error


def required_pairs(
    mean: float, pair_stdev: float, design: Design, *, z_power: float = 1.2816
) -> int | None:
    """Pairs after which a drop by the margin is found with the power of `z_power` (90 %), and an
    equal canary is promoted as surely: its gain a pair is the same, its spread less.

    Taken against the hardest drop, a few wholly wrong answers: a share `margin` of the answers
    falls from the mean to 0, which adds margin·(1 − margin)·mean² to the pairs' own variance.
    With drop δ = margin·mean and second moment v the wealth of a bet λ grows by λδ − λ²v/2 a
    pair with standard deviation λ·σ; the best bet of the set counts. None when no number is
    enough.
    """
    drop = design.margin * mean
    variance = pair_stdev**2 + design.margin * (1 - design.margin) * mean**2
    goal = math.log(len(design.bets) / min(design.alpha, design.beta))
    needed = [
        _pairs_until(goal, growth, z_power * bet * math.sqrt(variance))
        for bet in design.bets
        if (growth := bet * drop - bet**2 * (variance + drop**2) / 2) > 0
    ]
    return min(needed, default=None)


def _pairs_until(goal: float, growth: float, noise: float) -> int:
    """The smallest n with n·growth − √n·noise ≥ goal."""
    root = (noise + math.sqrt(noise**2 + 4 * growth * goal)) / (2 * growth)
    return math.ceil(root**2)
