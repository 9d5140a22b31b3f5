"""The tuning benchmark: what it counts, and that nobody looks up what the simulator knows."""

from __future__ import annotations

from itertools import chain, pairwise, repeat
from math import inf
from random import Random

import pytest

from bench.tuning import (
    CARD_ERROR,
    LOOKS,
    Blur,
    Replay,
    Surface,
    figures,
    limits_of,
    replay,
    searched,
    walked,
    workload,
)
from optiinfra.agents.performance.search import Budget, Limits, Search
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.tuning import TrialOutcome, TuningTrial

LOAD = workload(Random("a"))
SPACE = LOAD.space
FREE = Limits()


def flat_but_one(seconds: float = 10.0) -> Surface:
    """Every point serves 100 tokens/s, the last one 200; rates as they are from the start."""
    surface = {}
    for point in SPACE.points:
        rate = 200.0 if point == SPACE.points[-1] else 100.0
        trial = TuningTrial(
            knobs=SPACE.values(point), outcome=TrialOutcome.COMPLETE, took_s=seconds,
            tokens_per_s=Known(value=rate), ttft_p95_s=Known(value=1.0),
        )  # fmt: skip
        surface[point] = Replay(trial, (rate,) * len(LOOKS))
    return surface


def test_a_workload_saturates_its_replica_and_its_model_is_off() -> None:
    one = replay(LOAD.card, LOAD.arrivals, SPACE.present)
    assert one.trial.took_s > LOAD.arrivals[-1].at_s - LOAD.arrivals[0].at_s
    assert LOAD.model.decode != LOAD.card.decode
    off = LOAD.model.decode.alpha_ms / LOAD.card.decode.alpha_ms
    assert 1 / (1 + CARD_ERROR) <= off <= 1 + CARD_ERROR
    assert workload(Random("a")) == LOAD


def test_the_rates_of_a_replay_end_at_what_it_served_in_all() -> None:
    one = replay(LOAD.card, LOAD.arrivals, SPACE.present)
    assert len(one.rates) == len(LOOKS)
    taken = [fraction / rate for fraction, rate in zip(LOOKS, one.rates, strict=True)]
    assert all(before < after for before, after in pairwise(taken))
    whole = one.trial.throughput
    assert whole is not None
    assert taken[-1] < 1 / whole


def test_a_walk_counts_until_it_has_enough_and_goes_on_to_the_end() -> None:
    walk = walked(SPACE.points, flat_but_one(), FREE)
    assert walk.enough_trials == walk.trials == len(SPACE.points)
    assert walked(reversed(SPACE.points), flat_but_one(), FREE).enough_s == 10.0


def test_the_present_latency_is_the_limit_and_a_little_more() -> None:
    surface = flat_but_one()
    assert limits_of(LOAD, surface).ttft_p95_s == pytest.approx(1.1)
    assert limits_of(LOAD, surface).tpot_p95_s == LOAD.tpot_limit_s


def test_a_search_is_charged_for_what_it_stopped_only_until_then() -> None:
    surface = flat_but_one()
    start = [SPACE.values(SPACE.points[-1]), SPACE.present]
    search = Search(SPACE, FREE, Budget(2, inf), start=start)
    walk = searched(LOAD, surface, FREE, search)
    assert (walk.enough_trials, walk.trials, walk.stopped, walk.best_stopped) == (1, 2, 1, 0)
    assert 10.0 < walk.took_s < walk.unstopped_s == 20.0
    assert walk.reached == 1.0


def test_stopping_what_would_have_become_the_best_is_counted() -> None:
    surface = flat_but_one()
    last = SPACE.points[-1]
    surface[last] = Replay(surface[last].trial, (1.0,) * len(LOOKS))
    start = [SPACE.present, SPACE.values(last)]
    walk = searched(LOAD, surface, FREE, Search(SPACE, FREE, Budget(2, inf), start=start))
    assert (walk.stopped, walk.best_stopped) == (1, 1)
    assert walk.reached == 0.5
    assert walk.enough_trials == len(surface) + 1


def test_what_measures_best_by_luck_is_chosen_and_judged_by_what_it_really_serves() -> None:
    surface = flat_but_one()
    assert walked(SPACE.points, surface, FREE, blurred(3.0)).reached == 0.5
    start = [SPACE.values(SPACE.points[0]), SPACE.values(SPACE.points[-1])]
    search = Search(SPACE, FREE, Budget(2, inf), start=start)
    walk = searched(LOAD, surface, FREE, search, blurred(2.1))
    assert (walk.reached, walk.trials, walk.stopped) == (0.5, 2, 0)


def blurred(*factors: float) -> Blur:
    """These one after the other, and exact after that."""
    left = chain(factors, repeat(1.0))
    return lambda: next(left)


def test_figures_are_taken_over_all_workloads() -> None:
    grid, lucky = (
        walked(points, flat_but_one(), FREE)
        for points in (SPACE.points, list(reversed(SPACE.points)))
    )
    size = len(SPACE.points)
    runs = [({"grid": [grid, grid], "random": [lucky, grid]}, size, 1)]
    row = figures(runs, "random")
    assert row["within_a_third"] == 0.5
    assert row["median_trials"] == (1 + size) / 2
    assert row["never_enough"] == 0
