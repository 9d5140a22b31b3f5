"""Trials until a tuning is within 5 % of the best, ours beside vLLM's grid and random search.

Simulated replicas replay one saturating load each; every configuration of the space is replayed
once beforehand, so that the best one is known. The grid walks as vLLM's `benchmarks/auto_tune`
does: `max_num_seqs` outside, `max_num_batched_tokens` inside, both ascending. Its further runs at
lower request rates, where a limit is missed, are not counted against it.

`--noise` blurs each measurement of a rate by that standard deviation of its logarithm; what is
reached is what the configuration chosen in the end really serves.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import exp, inf
from random import Random
from statistics import fmean, median

import numpy as np

from optiinfra.agents.performance.knobs import Point, SearchSpace, predicted_best, space_for
from optiinfra.agents.performance.search import Budget, Limits, Search, excess
from optiinfra.schemas.errors import Invariant
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.tuning import KnobValue, TrialOutcome, TuningTrial
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.cards import DecodeCost, PerfCard, PrefillCost, load_card
from optiinfra.serving.engines import VllmConfig
from optiinfra.serving.predictions import Replica
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.serving.simulation import Arrival, RequestLatency, percentile, simulate
from optiinfra.serving.steps import decode_step_ms, prefill_ms

CARDS = (
    "h100-8b-fp16-tp1", "h100-8b-fp8-tp1", "a100-8b-fp16-tp1", "l40s-8b-fp16-tp1",
    "l40s-8b-fp8-tp1", "h100-32b-fp16-tp2", "h100-70b-fp16-tp4", "h100-70b-fp8-tp2",
    "l4-8b-fp8-tp1", "t4-1b-fp16-tp1",
)  # fmt: skip
MIXES = (
    ((150, 600), (150, 400)),
    ((60, 300), (400, 900)),
    ((1000, 3000), (100, 300)),
    ((800, 2000), (15, 60)),
)
"""Ranges of the mean prompt and the mean answer, tokens: chat, writing, retrieval, extraction."""
REQUESTS, PREDICTED = 500, 150
"""Requests of a replay, and how many of them the performance model gets."""
CARD_ERROR = 0.3
"""How far each coefficient of the model's card is off at most: the widest band of shipped cards."""
ENOUGH, TTFT_ROOM = 0.95, 1.1
"""Share of the best that counts as reached; TTFT p95 may be that many times the present one."""
LOOKS = tuple(k / 20 for k in range(1, 20))
MOST_DRAWS = 50


@dataclass(frozen=True, slots=True)
class Workload:
    """A replica that is capped too low, what is put to it, and a model of it that is off."""

    card: PerfCard
    model: PerfCard
    now: VllmConfig
    space: SearchSpace
    arrivals: tuple[Arrival, ...]
    tpot_limit_s: float | None


@dataclass(frozen=True, slots=True)
class Replay:
    """A whole replay, and the rate so far at each of `LOOKS`."""

    trial: TuningTrial
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Walk:
    """One contestant on one workload; trials and seconds until it had enough, and in all."""

    enough_trials: int
    enough_s: float
    trials: int
    took_s: float
    unstopped_s: float
    reached: float
    stopped: int
    best_stopped: int


Surface = dict[Point, Replay]
Blur = Callable[[], float]
"""By what a rate is multiplied when it is measured."""


def exact() -> float:
    """A measurement without noise."""
    return 1.0


def workload(random: Random) -> Workload:
    """Lengths are log-normal, gaps gamma (smooth to bursty); the rate is above what it serves."""
    card = load_card(random.choice(CARDS))
    prompt, output = (random.uniform(*span) for span in random.choice(MIXES))
    spread, shape = random.uniform(0.2, 0.9), random.choice((10.0, 1.0, 0.25))
    rate = random.uniform(1.2, 2.5) / _service_s(card, prompt, output)
    at_s, arrivals = 0.0, []
    for _ in range(REQUESTS):
        at_s += random.gammavariate(shape, 1 / (shape * rate))
        tokens = _length(random, prompt, spread), _length(random, output, spread)
        arrivals.append(Arrival(at_s, *tokens))
    now = VllmConfig(
        model="m", max_num_seqs=random.choice((16, 32, 64)),
        max_num_batched_tokens=random.choice((512, 1024, 2048, 4096, 8192)),
    )  # fmt: skip
    steps = random.choice((None, random.uniform(1.3, 4.0), random.uniform(1.3, 4.0)))
    limit_s = None if steps is None else steps * card.decode.alpha_ms / 1e3
    space = space_for(Cause.SCHEDULER_CAP, now)
    return Workload(card, _off(random, card), now, space, tuple(arrivals), limit_s)


def _service_s(card: PerfCard, prompt: float, output: float) -> float:
    """What a request takes of a replica whose KV cache is well filled."""
    whole = prompt + output / 2
    batch = max(1, min(256, int(0.8 * card.kv_tokens / whole)))
    step_ms = decode_step_ms(card, batch, round(batch * whole))
    return (output * step_ms / batch + prefill_ms(card, [(0, round(prompt))])) / 1e3


def _length(random: Random, mean: float, spread: float) -> int:
    return max(1, round(mean * min(4.0, exp(random.gauss(0, spread) - spread**2 / 2))))


def _off(random: Random, card: PerfCard) -> PerfCard:
    """The card with each coefficient off by itself, up to `CARD_ERROR` up or down."""

    def near(cost: DecodeCost | PrefillCost) -> dict[str, float]:
        by = {name: (1 + CARD_ERROR) ** random.uniform(-1, 1) for name in type(cost).model_fields}
        return {name: getattr(cost, name) * factor for name, factor in by.items()}

    return card.model_copy(
        update={
            "decode": card.decode.model_copy(update=near(card.decode)),
            "prefill": card.prefill.model_copy(update=near(card.prefill)),
        }
    )


def replay(card: PerfCard, arrivals: Sequence[Arrival], values: Mapping[str, KnobValue]) -> Replay:
    """The load on a replica with these knobs."""
    config = SchedulerConfig.model_validate({**values, "max_model_len": 65_536})
    done = simulate(card, arrivals, config)
    took_s = max(one.finished_s for one in done) - arrivals[0].at_s
    tpot = [one.tpot_s for one in done if one.tpot_s is not None]
    trial = TuningTrial(
        knobs=dict(values), outcome=TrialOutcome.COMPLETE, served=len(done), took_s=took_s,
        tokens_per_s=Known(value=sum(one.output_tokens for one in arrivals) / took_s),
        ttft_p95_s=Known(value=percentile([one.ttft_s for one in done], 0.95)),
        tpot_p95_s=Known(value=percentile(tpot, 0.95)),
    )  # fmt: skip
    return Replay(trial, _rates(arrivals, done, took_s))


def _rates(
    arrivals: Sequence[Arrival], done: Sequence[RequestLatency], took_s: float
) -> tuple[float, ...]:
    """Each request's tokens are spread evenly from its first to its last."""
    first = np.array([one.arrived_s + one.ttft_s for one in done]) - arrivals[0].at_s
    last = np.array([one.finished_s for one in done]) - arrivals[0].at_s
    tokens = np.array([one.output_tokens for one in arrivals])
    times = np.linspace(0, took_s, 401)[1:]
    out = np.clip((times[:, None] - first) / np.maximum(last - first, 1e-9), 0, 1) @ tokens
    total = tokens.sum()
    return tuple(float(at * total / np.interp(at * total, out, times)) for at in LOOKS)


def limits_of(load: Workload, surface: Surface) -> Limits:
    """The TPOT objective, and a TTFT that hardly grows."""
    ttft = surface[load.space.point(load.space.present)].trial.ttft_p95_s
    longest_s = ttft.value * TTFT_ROOM if isinstance(ttft, Known) else None
    return Limits(ttft_p95_s=longest_s, tpot_p95_s=load.tpot_limit_s)


def kept(trial: TuningTrial, limits: Limits) -> float:
    """Its tokens/s, if it keeps the limits."""
    return (trial.throughput or 0.0) if excess(trial, limits) == 0 else 0.0


def searched(
    load: Workload, surface: Surface, limits: Limits, search: Search, blur: Blur = exact
) -> Walk:
    """Our search to its own end, trials without hope stopped early."""

    def chosen() -> float:
        point = load.space.point(search.best.knobs) if search.best else None
        return kept(surface[point].trial, limits) if point else 0.0

    best = max(kept(one.trial, limits) for one in surface.values())
    enough_trials, enough_s, took_s, unstopped_s = 0, 0.0, 0.0, 0.0
    trials, stopped, best_stopped = 0, 0, 0
    while (values := search.ask()) is not None:
        one = surface[load.space.point(values)]
        seen = _measured(one, blur())
        given_up = _given_up(search, seen)
        if given_up is not None:
            stopped += 1
            best_stopped += kept(one.trial, limits) > chosen()
        search.tell(given_up or seen.trial)
        trials += 1
        took_s += (given_up or seen.trial).took_s
        unstopped_s += seen.trial.took_s
        if not enough_trials and chosen() >= ENOUGH * best:
            enough_trials, enough_s = trials, took_s
    return Walk(
        enough_trials or len(surface) + 1, enough_s or inf, trials, took_s, unstopped_s,
        chosen() / best, stopped, best_stopped,
    )  # fmt: skip


def _measured(one: Replay, factor: float) -> Replay:
    """At `factor` times its rate, from its beginning to its end."""
    rate = Known(value=(one.trial.throughput or 0.0) * factor)
    seen = one.trial.model_copy(update={"tokens_per_s": rate, "took_s": one.trial.took_s / factor})
    return Replay(seen, tuple(factor * each for each in one.rates))


def _given_up(search: Search, one: Replay) -> TuningTrial | None:
    whole = one.trial.throughput or 0.0
    for fraction, rate in zip(LOOKS, one.rates, strict=True):
        if search.hopeless(fraction, rate):
            return TuningTrial(
                knobs=one.trial.knobs, outcome=TrialOutcome.PRUNED, tokens_per_s=Known(value=rate),
                took_s=one.trial.took_s * fraction * whole / rate,
            )  # fmt: skip
    return None


def walked(points: Iterable[Point], surface: Surface, limits: Limits, blur: Blur = exact) -> Walk:
    """Point after point, each replayed whole; what measured best is chosen."""
    best = max(kept(one.trial, limits) for one in surface.values())
    took_s, enough_trials, enough_s = 0.0, 0, 0.0
    highest, chosen = 0.0, 0.0
    for count, point in enumerate(points, 1):
        took_s += surface[point].trial.took_s
        really = kept(surface[point].trial, limits)
        if (seen := really * blur()) > highest:
            highest, chosen = seen, really
        if not enough_trials and chosen >= ENOUGH * best:
            enough_trials, enough_s = count, took_s
    return Walk(
        enough_trials or len(surface) + 1, enough_s or inf, len(surface), took_s, took_s,
        chosen / best, 0, 0,
    )  # fmt: skip


def worth_tuning(seed: int) -> tuple[Workload, Surface, int]:
    """The seed's first workload that some configuration serves within the limits, and faster by
    5 % than the present one."""
    for draw in range(MOST_DRAWS):
        load = workload(Random(f"tuning:{seed}:{draw}"))
        points = load.space.points
        surface = {p: replay(load.card, load.arrivals, load.space.values(p)) for p in points}
        limits = limits_of(load, surface)
        best = max(kept(one.trial, limits) for one in surface.values())
        present = surface[load.space.point(load.space.present)].trial
        if best > 0 and kept(present, limits) < ENOUGH * best:
            return load, surface, draw + 1
    raise Invariant(f"no draw of seed {seed} has anything to tune")


def compared(seed: int, repeats: int, noise: float) -> tuple[dict[str, list[Walk]], int, int]:
    """All contestants on one workload; those that draw lots get several turns."""
    load, surface, draws = worth_tuning(seed)
    limits, points = limits_of(load, surface), list(load.space.points)
    budget = Budget(len(points), inf)
    ours: dict[str, Sequence[Mapping[str, KnobValue]]] = {
        "ours": (), "ours_with_model": _predicted_start(load),
    }  # fmt: skip
    found: dict[str, list[Walk]] = {name: [] for name in ("grid", "random", *ours)}
    for turn in range(repeats):
        random = Random(f"{seed}:{turn}")
        shuffled = random.sample(points, len(points))

        def blur(random: Random = random) -> float:
            return exp(random.gauss(0, noise))

        found["grid"].append(walked(points, surface, limits, blur))
        found["random"].append(walked(shuffled, surface, limits, blur))
        for name, start in ours.items():
            search = Search(load.space, limits, budget, start=start, seed=turn)
            found[name].append(searched(load, surface, limits, search, blur))
    return found, len(points), draws


def _predicted_start(load: Workload) -> Sequence[Mapping[str, KnobValue]]:
    """What runs, and what a model that is off thinks best under the TPOT objective."""
    scheduler = SchedulerConfig.model_validate({**load.space.present, "max_model_len": 65_536})
    replica = Replica(load.model, load.now, scheduler)
    allowed = (inf, load.tpot_limit_s or inf)
    best = predicted_best(load.space, replica, load.arrivals[:PREDICTED], allowed)
    return (load.space.present, best or load.space.bold)


def figures(runs: Sequence[tuple[dict[str, list[Walk]], int, int]], who: str) -> dict[str, float]:
    """One contestant over all workloads."""
    walks = [
        (walk, grid, one[1])
        for one in runs
        for walk, grid in zip(one[0][who], one[0]["grid"], strict=True)
    ]
    trials = sorted(walk.enough_trials for walk, _, _ in walks)
    stopped = sum(walk.stopped for walk, _, _ in walks)
    return {
        "median_trials": median(trials),
        "p90_trials": percentile(trials, 0.9),
        "mean_trials": round(fmean(trials), 2),
        "within_a_third": round(fmean(w.enough_trials <= size / 3 for w, _, size in walks), 4),
        "seconds_of_grid": round(median(w.enough_s / grid.enough_s for w, grid, _ in walks), 3),
        "trials_to_its_end": round(fmean(walk.trials for walk, _, _ in walks), 2),
        "seconds_to_its_end_of_grid": round(median(w.took_s / g.took_s for w, g, _ in walks), 3),
        "least_reached": round(min(walk.reached for walk, _, _ in walks), 4),
        "never_enough": sum(walk.reached < ENOUGH for walk, _, _ in walks),
        "mean_reached": round(fmean(walk.reached for walk, _, _ in walks), 4),
        "seconds_saved_by_stopping": round(
            1 - sum(w.took_s for w, _, _ in walks) / sum(w.unstopped_s for w, _, _ in walks), 3
        ),
        "stopped": stopped,
        "best_stopped": sum(walk.best_stopped for walk, _, _ in walks),
    }


def _of_grid(runs: Sequence[tuple[dict[str, list[Walk]], int, int]], who: str) -> float:
    """Trials until enough ÷ those of the grid, the mean over workloads."""
    pairs = [pair for one, _, _ in runs for pair in zip(one[who], one["grid"], strict=True)]
    return round(fmean(walk.enough_trials / grid.enough_trials for walk, grid in pairs), 3)


def main() -> None:
    """Print a table with ratios to the grid, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    started_s = time.perf_counter()
    seeds = range(given.seed, given.seed + given.runs)
    with ProcessPoolExecutor(given.processes) as pool:
        each = [[value] * given.runs for value in (given.repeats, given.noise)]
        runs = list(pool.map(compared, seeds, *each))
    found = {who: figures(runs, who) for who in runs[0][0]}
    columns = list(found["grid"])
    print(f"{given.runs} workloads, {fmean(one[1] for one in runs):.1f} configurations each")
    print(f"{'':28}" + "".join(f"{who:>17}" for who in found))
    for column in columns:
        print(f"{column:28}" + "".join(f"{row[column]:17}" for row in found.values()))
    ratio = {who: _of_grid(runs, who) for who in found}
    print(f"{'trials ÷ the grid, mean':28}" + "".join(f"{ratio[who]:17}" for who in found))
    print(
        json.dumps(
            {
                "bench": "tuning",
                "runs": given.runs,
                "repeats": given.repeats,
                "seed": given.seed,
                "noise": given.noise,
                "draws": sum(one[2] for one in runs),
                **{who: {**row, "trials_of_grid": ratio[who]} for who, row in found.items()},
                "seconds": round(time.perf_counter() - started_s, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
