"""What others decide by: a t-test with peeking, a fixed threshold, Kayenta's Mann-Whitney.

Each is asked at every look whether the canary is worse, and has raised its alarm with the first
yes.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from bench.gate_worlds import Floats, Ints, Rollout

T_TEST_LEVEL = 0.05
FEWEST_FOR_THRESHOLD = 100
KAYENTA_CONFIDENCE, KAYENTA_TOLERANCE = 0.98, 0.25
UNTIED = 0.002
_BISECTIONS = 30


def t_test_alarm(rollout: Rollout, looks: Ints) -> int | None:
    """The first of the pairs `looks` at which a one-sided test finds the canary worse.

    Welch's test of all answers; of the pairs' differences for golden prompts.
    """
    if rollout.frozen is None:
        drops = rollout.baseline - rollout.canary
        mean, square = _moments(drops, looks)
        return _first(looks, mean, square / looks)
    baseline, baseline_square = _moments(rollout.baseline_answers, rollout.baseline_by[looks - 1])
    canary, canary_square = _moments(rollout.canary_answers, rollout.canary_by[looks - 1])
    error = (
        baseline_square / rollout.baseline_by[looks - 1]
        + canary_square / rollout.canary_by[looks - 1]
    )
    return _first(looks, baseline - canary, error)


def _moments(values: Floats, counts: Ints) -> tuple[Floats, Floats]:
    """Means and variances of the first `counts` values."""
    mean = np.cumsum(values)[counts - 1] / counts
    square = np.cumsum(values**2)[counts - 1] / counts
    return mean, np.maximum(square - mean**2, 0) * counts / np.maximum(counts - 1, 1)


def _first(looks: Ints, drop: Floats, error_square: Floats) -> int | None:
    critical = NormalDist().inv_cdf(1 - T_TEST_LEVEL)
    found = np.flatnonzero(drop > critical * np.sqrt(error_square))
    return int(looks[found[0]]) if found.size else None


def threshold_alarm(rollout: Rollout, looks: Ints, margin: float) -> int | None:
    """The first look at which the canary's mean is more than `margin` under the baseline's."""
    looks = looks[rollout.canary_by[looks - 1] >= FEWEST_FOR_THRESHOLD]
    baseline, _ = _moments(rollout.baseline_answers, rollout.baseline_by[looks - 1])
    canary, _ = _moments(rollout.canary_answers, rollout.canary_by[looks - 1])
    found = np.flatnonzero(canary < (1 - margin) * baseline)
    return int(looks[found[0]]) if found.size else None


def kayenta_alarm(rollout: Rollout, looks: Ints, rng: np.random.Generator) -> int | None:
    """The first look at which Kayenta's judge would classify the canary's scores as low.

    Ties that the resampling has made are broken at random, since they would weaken a test of
    ranks; those of perfect scores are in the record too, and stay.
    """
    canary, baseline = (
        np.where(answers < 1, answers + rng.uniform(-UNTIED, UNTIED, len(answers)), answers)
        for answers in (rollout.canary_answers, rollout.baseline_answers)
    )
    for look in looks:
        if is_low(canary[: rollout.canary_by[look - 1]], baseline[: rollout.baseline_by[look - 1]]):
            return int(look)
    return None


def is_low(experiment: Floats, control: Floats) -> bool:
    """Kayenta: the upper end of the Mann-Whitney interval lies below −0.25 · |estimate|.

    The estimate is Hodges and Lehmann's, the interval holds 98 %, and the effect size that it asks
    for by default is any at all. The interval's end is where the shifted statistic reaches the
    quantile, so the comparison is made at the bound itself, without Kayenta's search for a root.
    (spinnaker/spinnaker f8b98eb: kayenta-judge, NetflixACAJudge and MannWhitneyClassifier;
    spinnaker/kayenta 552aa62: kayenta-mannwhitney, MannWhitney, after R's wilcox.test.)
    """
    ordered = np.sort(control)
    critical = NormalDist().inv_cdf((1 - KAYENTA_CONFIDENCE) / 2)
    if shifted_statistic(experiment, ordered, 0.0) >= critical:
        return False
    bound = -KAYENTA_TOLERANCE * abs(hodges_lehmann(experiment, ordered))
    return shifted_statistic(experiment, ordered, bound) < critical


def hodges_lehmann(experiment: Floats, ordered: Floats) -> float:
    """The shift at which the statistic is 0; scores lie between 0 and 1."""
    low, high = -1.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if shifted_statistic(experiment, ordered, middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def shifted_statistic(experiment: Floats, ordered: Floats, shift: float) -> float:
    """The standardised rank sum of `experiment` − `shift` against the sorted control."""
    moved = experiment - shift
    n, m = len(moved), len(ordered)
    below, up_to = (np.searchsorted(ordered, moved, side) for side in ("left", "right"))
    excess = float((below + up_to).sum()) / 2 - n * m / 2
    _, ties = np.unique(np.concatenate([moved, ordered]), return_counts=True)
    tied = float((ties.astype(np.float64) ** 3 - ties).sum()) / ((n + m) * (n + m - 1))
    deviation = math.sqrt(n * m / 12 * (n + m + 1 - tied))
    return (excess - math.copysign(0.5, excess) * (excess != 0)) / deviation
