"""The quality gate's operating characteristics, measured on recorded score noise, beside others'.

Rollouts are played with scores that our scorer gave real answers, resampled with replacement
(`score_noise`, `gate_worlds`). Our test looks after every canary sample, the t-test and the fixed
threshold after every 20th, Kayenta after every 100th of the first 2,000, and in fewer rollouts,
since it is slow: fewer looks mean fewer false alarms. Ends with 1 when a promised number is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.gate_peers import kayenta_alarm, t_test_alarm, threshold_alarm
from bench.gate_worlds import SUPPORTED, Floats, Ints, Rollout, World, play
from optiinfra.agents.application.sequential import Design, log_wealth, required_pairs

DESIGN = Design()
LOOK_EVERY, KAYENTA_LOOK_EVERY, KAYENTA_SAMPLES = 20, 100, 2000
MOST_FALSE_ROLLBACKS, LEAST_POWER, MOST_WRONG_PROMOTIONS = 0.04, 0.9, 0.03
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True)
class Question:
    """A world, the canary samples in which alarms count, and whether an answer is promised.

    `part` is the part of the rollouts that it is worth.
    """

    world: World
    within: int
    promised: bool = True
    part: float = 1.0


QUESTIONS = (
    Question(World("equal, 9:1", 0, 5000), 5000),
    Question(World("equal, 9:1, both drift ±2.5 % a day", 0, 5000, drift=0.025), 5000),
    Question(World("equal, 1:1", 0, 5000, share=0.5), 5000),
    Question(World("equal, 9:1, 5,000 looks at 20 samples each", 0, 100_000), 100_000, part=0.1),
    Question(World("equal, golden, half redrawn", 0, 400, share=None, redrawn=0.5), 400),
    Question(World("5 % lower, every answer, 9:1", 0.05, 5000, graded=True), 500),
    Question(World("5 % lower, some answers, 9:1", 0.05, 5000), 500),
    Question(World("5 % lower, some answers, 9:1, both drift", 0.05, 5000, drift=0.025), 500),
    Question(World("2.5 % lower, some answers, 9:1", 0.025, 5000), 5000, promised=False),
    Question(World("10 % lower, every answer, 9:1", 0.1, 1000, graded=True), 200),
    Question(World("10 % lower, some answers, 9:1", 0.1, 1000), 200),
    Question(World("5 % lower, some answers, golden", 0.05, 400, share=None), 360),
    Question(World("10 % lower, some answers, golden", 0.1, 400, share=None), 200),
    Question(
        World("5 % lower, some answers, golden, half redrawn", 0.05, 400, share=None, redrawn=0.5),
        360,
        promised=False,
    ),
)


@dataclass(frozen=True)
class Alarms:
    """In one rollout: after how many canary samples each method alarmed (never: infinity).

    `promotable` is when our second rule was met, whatever the first had said before.
    """

    ours: float
    promotable: float
    t_test: float
    fixed: float
    frozen: float
    kayenta: float | None


@dataclass(frozen=True)
class Answer:
    """Shares of the rollouts, and canary samples until our test had found a drop.

    `promoted` are those that passed before they were rolled back, if they were; `ever_promotable`
    those that would have passed at any time, had nothing been rolled back.
    """

    world: str
    drop: float
    within: int
    runs: int
    rolled_back: float
    rolled_back_error: float
    promoted: float
    ever_promotable: float
    samples_median: float | None
    samples_p90: float | None
    t_test: float
    fixed: float
    kayenta: float
    frozen: float | None
    met: bool | None


def alarms_of(rollout: Rollout, ties: np.random.Generator | None) -> Alarms:
    """What all methods say of one rollout; Kayenta is asked only with something to break ties."""
    by = rollout.canary_by
    looks = _pairs_at(by, LOOK_EVERY, int(by[-1]))
    rare = _pairs_at(by, KAYENTA_LOOK_EVERY, min(KAYENTA_SAMPLES, int(by[-1])))
    kept = (rollout.canary - (1 - DESIGN.margin) * rollout.baseline)[: rollout.new_pairs]
    frozen = None
    if rollout.frozen is not None:
        frozen = _crossed(rollout.frozen - rollout.canary_answers, DESIGN.alpha)
    return Alarms(
        ours=_samples(by, _crossed(rollout.baseline - rollout.canary, DESIGN.alpha)),
        promotable=_samples(by, _crossed(kept, DESIGN.beta)),
        t_test=_samples(by, t_test_alarm(rollout, looks)),
        fixed=_samples(by, threshold_alarm(rollout, looks, DESIGN.margin)),
        frozen=math.inf if frozen is None else frozen,
        kayenta=None if ties is None else _samples(by, kayenta_alarm(rollout, rare, ties)),
    )


def _pairs_at(by: Ints, every: int, last: int) -> Ints:
    """The pairs with which the canary has `every`, 2 · `every`, … samples."""
    return np.searchsorted(by, np.arange(every, last + 1, every)) + 1


def _crossed(gains: Floats, level: float) -> int | None:
    """The first pair after which the wealth has reached 1 ÷ `level`."""
    found = np.flatnonzero(log_wealth(gains, DESIGN.bets) >= -math.log(level))
    return int(found[0]) + 1 if found.size else None


def _samples(by: Ints, pair: int | None) -> float:
    return math.inf if pair is None else float(by[pair - 1])


def answer(question: Question, runs: int, kayenta_runs: int, seed: int) -> Answer:
    """The shares of `runs` rollouts in the question's world."""
    world, within = question.world, question.within
    rng, ties = np.random.default_rng([seed, QUESTIONS.index(question)]).spawn(2)
    runs = max(1, round(runs * question.part))
    kayenta_runs = max(1, min(runs, round(kayenta_runs * question.part)))
    found = [
        alarms_of(play(rng, world), ties if number < kayenta_runs else None)
        for number in range(runs)
    ]
    rolled_back = _share([one.ours for one in found], within)
    promoted = sum(one.promotable < one.ours for one in found) / runs
    return Answer(
        world=world.name,
        drop=world.drop,
        within=within,
        runs=runs,
        rolled_back=rolled_back,
        rolled_back_error=1.96 * math.sqrt(rolled_back * (1 - rolled_back) / runs),
        promoted=promoted,
        ever_promotable=_share([one.promotable for one in found], world.samples),
        samples_median=_quantile([one.ours for one in found], 0.5),
        samples_p90=_quantile([one.ours for one in found], 0.9),
        t_test=_share([one.t_test for one in found], within),
        fixed=_share([one.fixed for one in found], within),
        kayenta=_share([one.kayenta for one in found if one.kayenta is not None], within),
        frozen=_share([one.frozen for one in found], within) if world.share else None,
        met=_is_met(world, rolled_back, promoted) if question.promised else None,
    )


def _share(samples: list[float], within: int) -> float:
    return sum(one <= within for one in samples) / len(samples)


def _quantile(samples: list[float], level: float) -> float | None:
    value = float(np.quantile(samples, level, method="higher"))
    return value if math.isfinite(value) else None


def _is_met(world: World, rolled_back: float, promoted: float) -> bool:
    if world.drop == 0:
        return rolled_back <= MOST_FALSE_ROLLBACKS
    return rolled_back >= LEAST_POWER and promoted <= MOST_WRONG_PROMOTIONS


COLUMNS = (
    "world", "within", "rolled back", "± 95 %", "promoted", "p50", "p90",
    "t-test", "fixed 5 %", "Kayenta", "frozen",
)  # fmt: skip


def cells(one: Answer) -> list[str]:
    """A row of the table."""
    samples = [f"{s:.0f}" if s is not None else "–" for s in (one.samples_median, one.samples_p90)]
    return [
        one.world,
        f"{one.within:,}",
        f"{one.rolled_back:.1%}",
        f"{one.rolled_back_error:.1%}",
        f"{one.promoted:.1%}",
        *samples,
        f"{one.t_test:.1%}",
        f"{one.fixed:.1%}",
        f"{one.kayenta:.1%}",
        "–" if one.frozen is None else f"{one.frozen:.1%}",
    ]


def printed(row: list[str]) -> str:
    return f"{row[0]:48}" + "".join(f"{cell:>12}" for cell in row[1:])


def written(document: str, answers: list[Answer]) -> str:
    """The document with a fresh table between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = [list(COLUMNS), ["---", *["--:"] * (len(COLUMNS) - 1)], *map(cells, answers)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in lines)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> int:
    """Print the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--kayenta-runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help="a document whose table is to be renewed")
    given = parser.parse_args()
    started_s = time.perf_counter()
    print(printed(list(COLUMNS)))
    answers = []
    for question in QUESTIONS:
        one = answer(question, given.runs, given.kayenta_runs, given.seed)
        answers.append(one)
        print(printed(cells(one)) + ("  MISSED" if one.met is False else ""), flush=True)
    if given.write is not None:
        given.write.write_text(written(given.write.read_text(), answers))
    missed = [one.world for one in answers if one.met is False]
    print(
        json.dumps(
            {
                "bench": "gate",
                "runs": given.runs,
                "kayenta_runs": given.kayenta_runs,
                "seed": given.seed,
                "alpha": DESIGN.alpha,
                "beta": DESIGN.beta,
                "margin": DESIGN.margin,
                "forecast_pairs_golden": required_pairs(float(SUPPORTED.mean()), 0.0, DESIGN),
                "missed": missed,
                "worlds": [asdict(one) for one in answers],
                "seconds": round(time.perf_counter() - started_s, 1),
            }
        )
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
