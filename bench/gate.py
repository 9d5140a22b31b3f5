"""What the quality gate's test does over many looks, beside a peeking t-test and a fixed threshold.

Scores are drawn from recorded ones: groundedness of the 180 attributable and the 250 other replies
of BEGIN-WoW (dev), kept here as 5 % quantiles. Every method looks every 20 pairs;
p50 and p90 are the pairs after which the betting test had found the drop.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from optiinfra.agents.application.sequential import Design, log_wealth, required_pairs

Floats = npt.NDArray[np.float64]
Draw = Callable[[tuple[int, ...]], Floats]

GOOD = (0.168, 0.475, 0.611, 0.689, 0.74, 0.774, 0.801, 0.823, 0.834, 0.863, 0.883, 0.916, 0.929,
        0.951, 0.97, 0.983, 1.0, 1.0, 1.0, 1.0, 1.0)  # fmt: skip
UNSUPPORTED = (0.0, 0.027, 0.058, 0.079, 0.127, 0.155, 0.186, 0.206, 0.233, 0.276, 0.317, 0.349,
               0.371, 0.402, 0.442, 0.518, 0.579, 0.633, 0.705, 0.776, 0.938)  # fmt: skip
LOOK_EVERY = 20
FEWEST_FOR_THRESHOLD = 100
DESIGN = Design()
COLUMNS = ("betting", "promote", "t-test", "fixed", "p50", "p90")


@dataclass(frozen=True)
class Case:
    """One world: `drop` is the relative drop of the canary's mean score."""

    name: str
    drop: float
    baseline_units: int
    drift: float = 0.0
    is_paired: bool = False


@dataclass(frozen=True)
class Result:
    """Shares of runs, and pairs until the betting test had found the drop."""

    case: str
    true_drop: float
    betting_rollback: float
    betting_promote: float
    t_test_rollback: float
    threshold_rollback: float
    pairs_median: float | None
    pairs_p90: float | None


CASES = (
    Case("equal, 1:1", 0.0, 1),
    Case("equal, 9:1", 0.0, 9),
    Case("equal, 1:1, both drift by 2.5 %", 0.0, 1, drift=0.025),
    Case("5 % lower, 1:1", 0.05, 1),
    Case("5 % lower, 9:1", 0.05, 9),
    Case("10 % lower, 9:1", 0.1, 9),
    Case("5 % lower by wrong answers, golden pairs", 0.05, 1, is_paired=True),
    Case("10 % lower by wrong answers, golden pairs", 0.1, 1, is_paired=True),
)


def recorded(rng: np.random.Generator, quantiles: tuple[float, ...]) -> Draw:
    """Draws by inverting the recorded quantiles."""
    grid = np.linspace(0, 1, len(quantiles))
    return lambda shape: np.interp(rng.random(shape), grid, quantiles)


def simulate(rng: np.random.Generator, case: Case, pairs: int) -> tuple[Floats, Floats]:
    """Scores of both arms, pair by pair, in one run."""
    good, wrong = recorded(rng, GOOD), recorded(rng, UNSUPPORTED)
    wave = 1 - case.drift * (1 + np.sin(np.arange(pairs) / pairs * 4 * np.pi)) / 2
    baseline = good((pairs, case.baseline_units)).mean(axis=1) * wave
    if case.is_paired:
        share = case.drop * np.mean(GOOD) / (np.mean(GOOD) - np.mean(UNSUPPORTED))
        return baseline, np.where(rng.random(pairs) < share, wrong((pairs,)), baseline)
    return baseline, good((pairs,)) * (1 - case.drop) * wave


def t_test_alarms(baseline: Floats, canary: Floats, looks: npt.NDArray[np.int64]) -> bool:
    """A one-sided 5 % test of the pairs' differences at every look."""
    drops = baseline - canary
    mean = np.cumsum(drops)[looks - 1] / looks
    square = np.cumsum(drops**2)[looks - 1] / looks
    error = np.sqrt(np.maximum(square - mean**2, 1e-12) / looks)
    return bool((mean / error > 1.645).any())


def threshold_alarms(baseline: Floats, canary: Floats, looks: npt.NDArray[np.int64]) -> bool:
    """Canary mean more than 5 % under the baseline's at a look (from 100 pairs on)."""
    looks = looks[looks >= FEWEST_FOR_THRESHOLD]
    ratio = np.cumsum(canary)[looks - 1] / np.cumsum(baseline)[looks - 1]
    return bool((ratio < 1 - DESIGN.margin).any())


def run_case(rng: np.random.Generator, case: Case, runs: int, pairs: int) -> Result:
    """`runs` rollouts of `pairs` pairs each."""
    looks = np.arange(LOOK_EVERY, pairs + 1, LOOK_EVERY)
    found: list[int] = []
    promoted = t_test = threshold = 0
    for _ in range(runs):
        baseline, canary = simulate(rng, case, pairs)
        lost = log_wealth(baseline - canary, DESIGN.bets)
        kept = log_wealth(canary - (1 - DESIGN.margin) * baseline, DESIGN.bets)
        crossings = looks[np.maximum.accumulate(lost)[looks - 1] >= -np.log(DESIGN.alpha)]
        if crossings.size:
            found.append(int(crossings[0]))
        promoted += bool((kept[looks - 1] >= -np.log(DESIGN.beta)).any())
        t_test += t_test_alarms(baseline, canary, looks)
        threshold += threshold_alarms(baseline, canary, looks)
    ordered = sorted([*found, *[pairs + LOOK_EVERY] * (runs - len(found))])
    p90, median = ordered[int(0.9 * (runs - 1))], ordered[(runs - 1) // 2]
    return Result(
        case=case.name,
        true_drop=case.drop,
        betting_rollback=len(found) / runs,
        betting_promote=promoted / runs,
        t_test_rollback=t_test / runs,
        threshold_rollback=threshold / runs,
        pairs_median=median if median <= pairs else None,
        pairs_p90=p90 if p90 <= pairs else None,
    )


def main() -> None:
    """Print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng, started_s = np.random.default_rng(given.seed), time.perf_counter()
    print(f"{'case':44}" + "".join(f"{name:>9}" for name in COLUMNS))
    results = []
    for case in CASES:
        one = run_case(rng, case, given.runs, given.pairs)
        results.append(one)
        print(
            f"{one.case:44} {one.betting_rollback:8.1%} {one.betting_promote:8.1%} "
            f"{one.t_test_rollback:8.1%} {one.threshold_rollback:8.1%} "
            f"{one.pairs_median or '-':>8} {one.pairs_p90 or '-':>8}"
        )
    mean = float(np.mean(GOOD))
    print(
        json.dumps(
            {
                "bench": "gate",
                "runs": given.runs,
                "pairs": given.pairs,
                "look_every": LOOK_EVERY,
                "seed": given.seed,
                "forecast_pairs_paired": required_pairs(mean, 0.0, DESIGN),
                "cases": [asdict(one) for one in results],
                "seconds": round(time.perf_counter() - started_s, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
