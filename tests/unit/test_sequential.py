"""The betting test: what it promises, shown by simulation, and how units become pairs."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.agents.application.sequential import (
    Arm,
    Coverage,
    Design,
    Evidence,
    Observation,
    Pair,
    coverage_of,
    difference,
    floor_evidence,
    is_uneven,
    log_wealth,
    pairs_of,
    required_pairs,
    sessions,
    weigh,
)
from optiinfra.schemas.errors import Rejected

Floats = npt.NDArray[np.float64]
AT = datetime(2026, 1, 5, 12, tzinfo=UTC)
DESIGN = Design()
ROLL_BACK = np.log(1 / DESIGN.alpha)
PROMOTE = np.log(1 / DESIGN.beta)
RECORDED = (0.168, 0.475, 0.611, 0.689, 0.74, 0.774, 0.801, 0.823, 0.834, 0.863, 0.883, 0.916,
            0.929, 0.951, 0.97, 0.983, 1.0, 1.0, 1.0, 1.0, 1.0)  # fmt: skip
"""5 % quantiles of the groundedness of BEGIN-WoW's attributable replies (mean .84, stdev .17)."""
RUNS, PAIRS = 300, 1000


def one(
    second: float, arm: Arm, score: float | None, unit: str = "u", stratum: str = "s"
) -> Observation:
    return Observation(AT + timedelta(seconds=second), arm, stratum, unit, score)


def draws(rng: np.random.Generator, pairs: int = PAIRS) -> Floats:
    return np.interp(rng.random(pairs), np.linspace(0, 1, len(RECORDED)), RECORDED)


def crossing(gains: Floats) -> int | None:
    """The first pair at which the wealth has reached 20."""
    reached = np.flatnonzero(log_wealth(gains, DESIGN.bets) >= ROLL_BACK)
    return int(reached[0]) + 1 if reached.size else None


def test_an_equal_canary_is_hardly_ever_rolled_back_however_often_one_looks() -> None:
    rng = np.random.default_rng(7)
    alarms = sum(crossing(draws(rng) - draws(rng)) is not None for _ in range(RUNS))
    error = 3 * (DESIGN.alpha * (1 - DESIGN.alpha) / RUNS) ** 0.5
    assert alarms / RUNS <= DESIGN.alpha + error
    assert alarms / RUNS <= 0.05, "measured 2-3 %"


def test_a_drift_that_both_arms_share_changes_nothing() -> None:
    rng = np.random.default_rng(8)
    wave = 1 - 0.025 * (1 + np.sin(np.arange(PAIRS) / 100))
    alarms = sum(crossing(draws(rng) * wave - draws(rng) * wave) is not None for _ in range(RUNS))
    assert alarms / RUNS <= 0.05


def test_a_drop_of_five_per_cent_is_found_within_the_published_budget() -> None:
    rng = np.random.default_rng(9)
    found = [crossing(draws(rng) - 0.95 * draws(rng)) or PAIRS + 1 for _ in range(RUNS)]
    assert np.quantile(found, 0.9) <= 822
    golden = []
    for _ in range(RUNS):
        baseline = draws(rng)
        canary = np.where(rng.random(PAIRS) < 0.085, 0.345, baseline)
        golden.append(crossing(baseline - canary) or PAIRS + 1)
    assert np.quantile(golden, 0.9) <= 340


def test_a_drop_of_the_margin_is_hardly_ever_promoted_and_an_equal_canary_soon_is() -> None:
    rng = np.random.default_rng(10)
    keep = 1 - DESIGN.margin

    def promoted(drop: float) -> float:
        wealth = [
            log_wealth((1 - drop) * draws(rng) - keep * draws(rng), DESIGN.bets).max() >= PROMOTE
            for _ in range(RUNS)
        ]
        return float(np.mean(wealth))

    assert promoted(0.05) <= DESIGN.beta
    assert promoted(0.0) >= 0.9


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60))
def test_no_scores_can_ruin_the_test_and_the_interval_agrees_with_the_rule(
    scores: list[tuple[float, float]],
) -> None:
    pairs = [Pair(AT, *both) for both in scores]
    evidence = weigh(pairs, DESIGN)
    assert evidence.e_rollback > 0
    assert evidence.e_promote > 0
    assert evidence.difference is not None
    low, high = evidence.difference.low, evidence.difference.high
    observed = np.mean([canary - baseline for baseline, canary in scores])
    assert -1 <= low <= observed + 1e-9
    assert observed - 1e-9 <= high <= 1
    drops = np.array([baseline - canary for baseline, canary in scores])
    wealth = log_wealth(drops, DESIGN.bets)[-1]
    if abs(wealth - ROLL_BACK) > 1e-6:
        assert (high < 0) == (wealth > ROLL_BACK)


def test_the_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(100):
        bounds = difference(draws(rng, 300) - 0.95 * draws(rng, 300), DESIGN)
        covered += bounds.low <= -0.05 * 0.842 <= bounds.high
    assert covered >= 90


def test_nothing_seen_is_no_evidence() -> None:
    assert weigh([], DESIGN) == Evidence(0, 1.0, 1.0)


def test_a_repeated_prompt_may_alarm_but_does_not_promote() -> None:
    first = [Pair(AT, 1.0, 1.0)] * 150
    again = [Pair(AT, 1.0, 1.0, is_first=False)] * 150
    assert weigh(first, DESIGN).e_promote > 20
    assert weigh(again, DESIGN).e_promote == 1
    assert weigh([*first, *again], DESIGN).e_promote == weigh(first, DESIGN).e_promote
    worse = [Pair(AT, 1.0, 0.5, is_first=False)] * 40
    assert weigh(worse, DESIGN).e_rollback > 20


def test_huge_evidence_stays_a_finite_number() -> None:
    assert np.isfinite(weigh([Pair(AT, 1.0, 0.0)] * 5000, DESIGN).e_rollback)


@pytest.mark.parametrize("bets", [(), (0.0,), (1.0,), (0.5, -0.1)])
def test_bets_that_could_ruin_the_test_are_refused(bets: tuple[float, ...]) -> None:
    with pytest.raises(Rejected, match="could ruin the test"):
        Design(bets=bets)


def test_a_canary_unit_meets_the_mean_of_the_baseline_units_since_the_last_one() -> None:
    units = [
        one(1, Arm.BASELINE, 0.2, "a"),
        one(2, Arm.BASELINE, 0.4, "b"),
        one(3, Arm.CANARY, 0.9, "c"),
        one(4, Arm.BASELINE, 0.8, "d"),
        one(5, Arm.CANARY, None, "missing"),
        one(6, Arm.CANARY, 0.7, "e"),
    ]
    pairs = pairs_of(units)
    assert [(pair.baseline, pair.canary) for pair in pairs] == [
        (pytest.approx(0.3), 0.9), (0.8, 0.7),
    ]  # fmt: skip
    assert [pair.at for pair in pairs] == [AT + timedelta(seconds=3), AT + timedelta(seconds=6)]


def test_canary_units_wait_for_a_baseline_and_strata_are_apart() -> None:
    units = [
        one(1, Arm.CANARY, 0.2, "a"),
        one(2, Arm.CANARY, 0.4, "b"),
        one(3, Arm.BASELINE, 0.5, "c", "other"),
        one(4, Arm.BASELINE, 0.8, "d"),
    ]
    (pair,) = pairs_of(units)
    assert (pair.baseline, pair.canary) == pytest.approx((0.8, 0.3))


def test_the_order_of_arrival_does_not_matter_not_even_within_a_tie() -> None:
    units = [one(n // 6, Arm(n % 2), n / 60, f"u{n}", f"s{n % 3}") for n in range(60)]
    expected = pairs_of(units)
    assert len(expected) == 30
    rng = random.Random(3)
    for _ in range(20):
        rng.shuffle(units)
        assert pairs_of(units) == expected


def test_a_prompt_seen_before_makes_its_pair_a_repetition() -> None:
    units = [one(n, arm, 1.0, f"q{n // 2 % 2}", f"s{n // 2}") for n in range(8) for arm in Arm]
    assert {pair.is_first for pair in pairs_of(units)} == {True, False}
    twice = [
        one(1, Arm.BASELINE, 1, "q", "l1"), one(1, Arm.CANARY, 1, "q", "l1"),
        one(2, Arm.BASELINE, 1, "q", "l2"), one(2, Arm.CANARY, 1, "q", "l2"),
    ]  # fmt: skip
    assert [pair.is_first for pair in pairs_of(twice)] == [True, False]


def test_a_session_counts_once_when_its_window_has_closed_and_never_changes() -> None:
    said = [
        one(0, Arm.CANARY, 0.2, "a"), one(4, Arm.CANARY, 0.6, "a"), one(9, Arm.CANARY, 1.0, "a"),
        one(1, Arm.BASELINE, 0.5, "c"), one(2, Arm.BASELINE, None, "b"),
        one(8, Arm.BASELINE, 0.7, "open"),
    ]  # fmt: skip
    closed = sessions(said, window_s=5, until=AT + timedelta(seconds=10))
    assert [(unit.unit, unit.arm, unit.score) for unit in closed] == [
        ("a", Arm.CANARY, pytest.approx(0.4)), ("c", Arm.BASELINE, 0.5), ("b", Arm.BASELINE, None),
    ]  # fmt: skip
    assert closed[0].at == AT + timedelta(seconds=5)
    later = sessions(said, window_s=5, until=AT + timedelta(seconds=60))
    assert later[: len(closed)] == closed
    assert later[-1].unit == "open"


def test_a_session_that_moves_to_the_canary_stays_a_unit_of_the_baseline() -> None:
    said = [
        one(0, Arm.BASELINE, 0.9, "moved"), one(3, Arm.CANARY, 0.1, "moved"),
        one(60, Arm.CANARY, 0.1, "moved"), one(61, Arm.CANARY, 0.8, "new"),
    ]  # fmt: skip
    closed = sessions(said, window_s=5, until=AT + timedelta(seconds=90))
    assert [(unit.unit, unit.arm, unit.score) for unit in closed] == [
        ("moved", Arm.BASELINE, 0.9), ("new", Arm.CANARY, 0.8),
    ]  # fmt: skip


def test_missing_scores_in_one_arm_only_are_uneven() -> None:
    said = [one(n, Arm.CANARY, None if n % 2 else 0.5) for n in range(100)]
    said += [one(n, Arm.BASELINE, 0.5) for n in range(100)]
    found = coverage_of(said)
    assert found == {Arm.BASELINE: Coverage(100, 100), Arm.CANARY: Coverage(50, 100)}
    assert is_uneven(found[Arm.CANARY], found[Arm.BASELINE], 0.1)
    assert not is_uneven(Coverage(48, 100), Coverage(52, 100), 0.1)
    assert not is_uneven(Coverage(1, 3), Coverage(3, 3), 0.1), "three answers say little"
    assert not is_uneven(Coverage(0, 0), Coverage(3, 3), 0.1)
    assert coverage_of([])[Arm.CANARY].missing_share == 0


def test_two_failures_at_once_break_a_floor_of_one_per_cent_and_one_in_a_hundred_does_not() -> None:
    assert floor_evidence([], 0.01) == 1
    assert floor_evidence([True, True], 0.01) >= 100
    assert floor_evidence([True], 0.01) < 20
    assert floor_evidence(([False] * 99 + [True]) * 5, 0.01) < 20
    rng = np.random.default_rng(12)
    alarms = sum(floor_evidence(list(rng.random(300) < 0.01), 0.01) >= 100 for _ in range(RUNS))
    assert alarms / RUNS <= 0.02


def test_a_floor_above_a_bet_s_reach_leaves_that_bet_out() -> None:
    assert floor_evidence([False] * 10, 0.5) <= 1


def test_the_forecast_of_pairs_is_enough_and_not_absurd() -> None:
    needed = required_pairs(0.842, 0.0, DESIGN)
    assert needed is not None
    rng = np.random.default_rng(13)
    found = []
    for _ in range(RUNS):
        baseline = draws(rng)
        canary = np.where(rng.random(PAIRS) < 0.085, 0.345, baseline)
        found.append(crossing(baseline - canary) or PAIRS + 1)
    assert np.quantile(found, 0.9) <= needed <= 2 * np.quantile(found, 0.9)
    noisy = required_pairs(0.842, 0.25, DESIGN)
    assert noisy is not None
    assert noisy > needed
    for strict in (Design(alpha=0.001), Design(beta=0.001)):
        longer = required_pairs(0.842, 0.0, strict)
        assert longer is not None
        assert longer > needed


def test_a_deployment_whose_answers_score_nothing_cannot_be_guarded() -> None:
    assert required_pairs(0.0, 0.1, DESIGN) is None
    assert required_pairs(0.05, 2.0, DESIGN) is None
