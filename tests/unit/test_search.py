"""The search for a better configuration, on response surfaces whose best point is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp, log2

import pytest

from optiinfra.agents.performance.knobs import SearchSpace, space_for
from optiinfra.agents.performance.search import Budget, Limits, Search, excess
from optiinfra.schemas.errors import Conflict, Rejected
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.tuning import KnobValue, TrialOutcome, TuningTrial
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.engines import VllmConfig

SPACE = space_for(
    Cause.SCHEDULER_CAP, VllmConfig(model="m", max_num_seqs=32, max_num_batched_tokens=2048)
)
FREE = Limits()
AMPLE = Budget(trials=100, seconds=1e9)
Values = Mapping[str, KnobValue]
Surface = Callable[[Values], TuningTrial]


def seqs(values: Values) -> int:
    return int(values["max_num_seqs"])


def tokens(values: Values) -> int:
    return int(values["max_num_batched_tokens"])


def whole(values: Values, rate: float, **seen: float) -> TuningTrial:
    latencies = {name: Known(value=value) for name, value in seen.items() if name != "took_s"}
    return TuningTrial(
        knobs=dict(values), outcome=TrialOutcome.COMPLETE, tokens_per_s=Known(value=rate),
        served=100, took_s=seen.get("took_s", 10.0),
    ).model_copy(update=latencies)  # fmt: skip


def failed(values: Values) -> TuningTrial:
    return TuningTrial(
        knobs=dict(values), outcome=TrialOutcome.FAILED, took_s=5.0, reason="out of memory"
    )


def peak(values: Values) -> TuningTrial:
    """One hill with its top at 256 sequences and 4,096 tokens; TPOT grows with the batch."""
    away = log2(seqs(values) / 256) ** 2 + 0.3 * log2(tokens(values) / 4096) ** 2
    return whole(values, 1000 * exp(-away / 4), tpot_p95_s=seqs(values) / 5000, ttft_p95_s=1.0)


def go(search: Search, surface: Surface) -> Search:
    while (values := search.ask()) is not None:
        search.tell(surface(values))
    return search


def best_of(space: SearchSpace, surface: Surface, limits: Limits = FREE) -> TuningTrial:
    every = [surface(space.values(point)) for point in space.points]
    kept = [trial for trial in every if excess(trial, limits) == 0]
    return max(kept, key=lambda trial: trial.throughput or 0.0)


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_the_top_of_a_hill_and_knows_that_it_has(seed: int) -> None:
    search = go(Search(SPACE, FREE, AMPLE, seed=seed), peak)
    assert search.best == best_of(SPACE, peak)
    assert len(search.trials) < len(SPACE.points) * 0.6
    assert "every configuration beside the best" in search.ended


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_the_best_inside_the_limits(seed: int) -> None:
    limits = Limits(tpot_p95_s=0.03)
    search = go(Search(SPACE, limits, AMPLE, seed=seed), peak)
    assert search.best == best_of(SPACE, peak, limits)
    assert len(search.trials) < len(SPACE.points) * 0.7


def test_one_seed_asks_the_same_twice() -> None:
    asked = [go(Search(SPACE, FREE, AMPLE, seed=5), peak).trials for _ in range(2)]
    assert asked[0] == asked[1]


def test_it_begins_with_what_runs_and_then_the_bold_step() -> None:
    search = go(Search(SPACE, FREE, Budget(2, 1e9)), peak)
    assert [trial.knobs for trial in search.trials] == [SPACE.present, SPACE.bold]
    assert search.ended == "the budget of 2 trials is spent"


def test_it_goes_on_along_the_bold_step_and_then_between() -> None:
    """From 2 sequences to a top at 128, as the real engine of the demo has it: two places at a
    time, until that is too far, and then one."""
    space = space_for(Cause.SCHEDULER_CAP, VllmConfig(model="m", max_num_seqs=2))

    def top(values: Values) -> TuningTrial:
        return whole(values, 1000 * exp(-(log2(seqs(values) / 128) ** 2) / 8))

    search = go(Search(space, FREE, Budget(6, 1e9)), top)
    assert [seqs(trial.knobs) for trial in search.trials] == [2, 16, 64, 256, 128, 32]
    assert {tokens(trial.knobs) for trial in search.trials} == {2048}
    assert search.best is not None
    assert seqs(search.best.knobs) == 128


def test_off_the_line_or_with_another_start_optuna_proposes() -> None:
    """A space of one knob more: its top needs other tokens than the present ones."""
    start = [SPACE.present, SPACE.values(SPACE.points[0])]
    search = go(Search(SPACE, FREE, Budget(12, 1e9), start=start), peak)
    assert len({tokens(trial.knobs) for trial in search.trials[2:]}) > 1
    search = go(Search(SPACE, FREE, AMPLE), peak)
    assert search.best is not None
    assert tokens(search.best.knobs) == 4096 != SPACE.present["max_num_batched_tokens"]


def test_it_begins_where_it_is_told_to_and_skips_what_it_knows() -> None:
    start = [SPACE.values(point) for point in (SPACE.points[3], SPACE.points[3], SPACE.points[7])]
    search = go(Search(SPACE, FREE, Budget(2, 1e9), start=start), peak)
    assert [trial.knobs for trial in search.trials] == [start[0], start[2]]


def test_a_start_outside_of_the_space_is_refused() -> None:
    with pytest.raises(Rejected, match="not in the search space"):
        Search(SPACE, FREE, AMPLE, start=[{"max_num_seqs": 33, "max_num_batched_tokens": 2048}])


def test_nothing_is_asked_twice_and_a_space_can_be_exhausted() -> None:
    def rising(values: Values) -> TuningTrial:
        rising.told += 1  # type: ignore[attr-defined]
        return whole(values, 1.1**rising.told)  # type: ignore[attr-defined]

    rising.told = 0  # type: ignore[attr-defined]
    search = go(Search(SPACE, FREE, AMPLE), rising)
    asked = [SPACE.point(trial.knobs) for trial in search.trials]
    assert sorted(asked) == sorted(SPACE.points)
    assert search.ended == "every configuration was tried"


def test_it_asks_the_same_until_it_is_told() -> None:
    search = Search(SPACE, FREE, AMPLE)
    asked = search.ask()
    assert asked is not None
    assert search.ask() == asked
    search.tell(peak(asked))
    assert search.ask() != asked


def test_another_trial_begins_only_if_it_is_likely_to_end_in_time() -> None:
    search = go(Search(SPACE, FREE, Budget(trials=100, seconds=35.0)), peak)
    assert len(search.trials) == 3
    assert search.ended == "another trial would not end within the budget of 35 s"


def test_a_space_without_points_has_ended_before_it_begins() -> None:
    search = Search(space_for(Cause.QUEUE, SPACE.now), FREE, AMPLE)
    assert search.ask() is None
    assert search.best is None
    assert "more replicas" in search.ended


def test_failures_are_never_best_nor_repeated_and_the_search_goes_round_them() -> None:
    def fragile(values: Values) -> TuningTrial:
        return failed(values) if tokens(values) >= 4096 else peak(values)

    search = go(Search(SPACE, FREE, AMPLE), fragile)
    assert search.best == best_of(SPACE, fragile)
    lost = [trial for trial in search.trials if trial.outcome is TrialOutcome.FAILED]
    assert len({SPACE.point(trial.knobs) for trial in lost}) == len(lost)
    assert len(search.trials) < len(SPACE.points)


def test_where_everything_fails_there_is_no_best() -> None:
    search = go(Search(SPACE, FREE, Budget(6, 1e9)), failed)
    assert search.best is None
    assert len(search.trials) == 6


def test_optuna_leaves_the_side_of_the_space_that_breaks_the_limits() -> None:
    """More is faster and too slow a token: a search that did not know would stay up there."""

    def tempting(values: Values) -> TuningTrial:
        return whole(values, float(seqs(values)), tpot_p95_s=seqs(values) / 1000)

    search = go(Search(SPACE, Limits(tpot_p95_s=0.07), Budget(12, 1e9)), tempting)
    over = [trial for trial in search.trials[2:] if seqs(trial.knobs) > 70]
    assert len(over) <= 3
    assert search.best is not None
    assert seqs(search.best.knobs) == 64


def test_between_what_keeps_the_limits_and_what_does_not_it_tries_the_middle() -> None:
    def steep(values: Values) -> TuningTrial:
        return whole(values, float(seqs(values)), tpot_p95_s=seqs(values) / 1000)

    search = go(Search(SPACE, Limits(tpot_p95_s=0.07), Budget(3, 1e9)), steep)
    assert [seqs(trial.knobs) for trial in search.trials] == [32, 128, 64]


@pytest.mark.parametrize("seed", range(4))
def test_it_looks_beside_a_faster_trial_that_nearly_keeps_the_limits(seed: int) -> None:
    """64 sequences keep the limit in the shortest steps alone: no neighbour of what keeps it."""

    def narrow(values: Values) -> TuningTrial:
        over = 0.05 * log2(tokens(values) / 512) / 4
        tpot = 0.02 * (1 + over) if seqs(values) == 64 else seqs(values) / 2500
        return whole(values, float(seqs(values)), tpot_p95_s=tpot)

    search = go(Search(SPACE, Limits(tpot_p95_s=0.02), AMPLE, seed=seed), narrow)
    assert search.best is not None
    assert search.best.knobs == {"max_num_seqs": 64, "max_num_batched_tokens": 512}
    assert len(search.trials) < len(SPACE.points) * 0.7


def test_limits_may_come_after_the_first_trial() -> None:
    search = Search(SPACE, FREE, AMPLE)
    first = search.ask()
    assert first is not None
    search.tell(peak(first))
    assert search.best is not None
    search.set_limits(Limits(tpot_p95_s=0.001))
    assert search.best is None


def test_trials_of_an_earlier_search_can_be_told_first() -> None:
    before = go(Search(SPACE, FREE, Budget(5, 1e9), seed=1), peak).trials
    search = Search(SPACE, FREE, AMPLE, seed=1)
    for trial in before:
        search.tell(trial)
    assert go(search, peak).trials == go(Search(SPACE, FREE, AMPLE, seed=1), peak).trials


def test_a_trial_told_meanwhile_leaves_the_one_that_runs() -> None:
    search = Search(SPACE, FREE, AMPLE)
    asked = search.ask()
    search.tell(peak(SPACE.bold))
    assert search.ask() == asked == SPACE.present


def test_of_equals_the_one_tried_first_is_best() -> None:
    search = go(Search(SPACE, FREE, AMPLE), lambda values: whole(values, 5.0))
    assert search.best is not None
    assert search.best.knobs == SPACE.present


def test_what_was_told_is_not_told_again() -> None:
    search = Search(SPACE, FREE, AMPLE)
    search.tell(peak(SPACE.present))
    with pytest.raises(Conflict, match="told already"):
        search.tell(peak(SPACE.present))


@pytest.mark.parametrize(
    ("limits", "over"),
    [
        (FREE, 0.0),
        (Limits(ttft_p95_s=2.0, tpot_p95_s=0.02, kv_usage=0.9), 0.0),
        (Limits(ttft_p95_s=0.5), 1.0),
        (Limits(tpot_p95_s=0.005, kv_usage=0.4), 2.0),
    ],
)
def test_excess_adds_up_what_is_over_the_limits(limits: Limits, over: float) -> None:
    trial = whole(SPACE.present, 1.0, ttft_p95_s=1.0, tpot_p95_s=0.01, kv_usage_peak=0.8)
    assert excess(trial, limits) == pytest.approx(over)


def test_what_nobody_measured_keeps_no_limit_and_lost_requests_keep_none() -> None:
    blind = whole(SPACE.present, 1.0)
    assert excess(blind, Limits(ttft_p95_s=1.0)) == 1.0
    assert excess(blind, FREE) == 0.0
    assert excess(blind.model_copy(update={"failed": 1}), FREE) == 1.0
    assert excess(failed(SPACE.present), FREE) == 1.0


def test_a_trial_that_was_stopped_is_not_judged_by_latencies() -> None:
    stopped = TuningTrial(
        knobs=SPACE.present, outcome=TrialOutcome.PRUNED, tokens_per_s=Known(value=3.0)
    )
    assert excess(stopped, Limits(ttft_p95_s=1.0)) == 0.0
    search = Search(SPACE, FREE, AMPLE)
    search.tell(stopped)
    assert search.best is None


# Early stopping


def running(first_pace: tuple[tuple[float, float], ...] = ()) -> Search:
    """The first trial told, with 1,000 tokens/s over all; the second one runs."""
    search = Search(SPACE, FREE, AMPLE)
    values = search.ask()
    assert values is not None
    for fraction, rate in first_pace:
        assert not search.hopeless(fraction, rate)
    search.tell(whole(values, 1000.0))
    assert search.ask() is not None
    return search


def test_a_trial_is_stopped_once_it_took_clearly_longer_than_the_best() -> None:
    search = running()
    assert not search.hopeless(0.5, 451.0)
    assert search.hopeless(0.5, 449.0)


def test_a_trial_is_stopped_when_it_cannot_catch_up_any_more() -> None:
    """Half of the best one's time was left at 0.4: twice as fast, a trial saves a quarter of it.

    A trial may come in a tenth slower than the best one.
    """
    search = running(((0.1, 500.0), (0.3, 700.0), (0.5, 900.0), (1.0, 1000.0)))
    assert not search.hopeless(0.4, 470.0)
    assert search.hopeless(0.4, 460.0)


def test_fractions_that_nobody_looked_at_are_judged_by_the_end_alone() -> None:
    search = running(((0.3, 900.0), (0.3, 900.0), (0.5, 900.0)))
    assert not search.hopeless(0.2, 210.0)
    assert not search.hopeless(0.6, 610.0)
    assert not search.hopeless(0.3, 900.0)


def test_nothing_is_behind_a_best_that_served_no_tokens() -> None:
    search = Search(SPACE, FREE, AMPLE)
    search.tell(whole(SPACE.present, 0.0))
    assert search.ask() is not None
    assert not search.hopeless(0.5, 0.1)


def test_nothing_is_stopped_while_nothing_is_best_and_nothing_runs_without_being_asked() -> None:
    search = Search(SPACE, FREE, AMPLE)
    with pytest.raises(Conflict, match="no trial runs"):
        search.hopeless(0.5, 1.0)
    assert search.ask() is not None
    assert not search.hopeless(0.9, 0.001)
