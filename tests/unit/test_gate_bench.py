"""The gate's benchmark: recorded scores, rollouts as the product pairs them, the others' rules."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from bench import gate, score_noise
from bench.gate_peers import (
    hodges_lehmann,
    is_low,
    kayenta_alarm,
    shifted_statistic,
    t_test_alarm,
    threshold_alarm,
)
from bench.gate_worlds import SUPPORTED, UNSUPPORTED, Floats, Rollout, World, play
from optiinfra.agents.application.scoring import VERSION
from optiinfra.agents.application.sequential import Arm, Observation, pairs_of

ROOT = Path(__file__).parents[2]
LABELLED = ROOT.parent / "shared" / "data" / "quality" / "begin_wow_dev.jsonl.gz"
DOCUMENT = ROOT / "docs" / "quality-gate.md"


def rollout(baseline: Floats, canary: Floats, *, frozen: float | None = 0.8) -> Rollout:
    counted = np.arange(1, len(canary) + 1)
    return Rollout(baseline, canary, baseline, canary, counted, counted, frozen, len(canary))


def noise(count: int, seed: int = 1) -> Floats:
    rng = np.random.default_rng(seed)
    return SUPPORTED[rng.integers(0, len(SUPPORTED), count)]


def test_the_noise_is_that_of_todays_scorer_on_labelled_answers() -> None:
    kept = score_noise.recorded("supported"), score_noise.recorded("unsupported")
    assert [len(scores) for scores in kept] == [180, 250]
    assert f'"scorer": "groundedness/{VERSION}"' in score_noise.RECORDED.read_text()
    if not LABELLED.exists():
        pytest.skip(f"{LABELLED} is not on this machine")
    anew = score_noise.record(LABELLED)
    assert [list(scores) for scores in kept] == [anew["supported"], anew["unsupported"]]


def test_live_traffic_is_paired_as_the_product_pairs_it() -> None:
    played = play(np.random.default_rng(2), World("w", 0.05, 400, share=0.3))
    units: list[Observation] = []
    at = datetime(2026, 1, 5, tzinfo=UTC)
    ends = zip(played.baseline_by, played.canary_by, strict=True)
    b = c = 0
    for b_end, c_end in ends:
        arms = [
            (Arm.BASELINE, played.baseline_answers[b:b_end]),
            (Arm.CANARY, played.canary_answers[c:c_end]),
        ]
        # The arm that has several units came first: the first of the other closes the pair.
        for arm, scores in sorted(arms, key=lambda one: -len(one[1])):
            for score in scores:
                at += timedelta(seconds=1)
                units.append(Observation(at, arm, "s", f"u{len(units)}", float(score)))
        b, c = b_end, c_end
    pairs = pairs_of(units)
    assert [pair.baseline for pair in pairs] == pytest.approx(list(played.baseline))
    assert [pair.canary for pair in pairs] == pytest.approx(list(played.canary))
    share = len(played.canary_answers) / len(units)
    assert 0.26 < share < 0.34


@pytest.mark.parametrize(
    "world",
    [
        World("graded", 0.1, 2000, share=0.5, graded=True),
        World("some", 0.1, 2000, share=0.5),
        World("golden", 0.1, 2000, share=None, redrawn=0.3),
    ],
    ids=lambda world: world.name,
)
def test_a_worlds_drop_is_the_drop_of_its_mean(world: World) -> None:
    drops = []
    for seed in range(60):
        played = play(np.random.default_rng(seed), world)
        drops.append(1 - played.canary_answers.mean() / played.baseline_answers.mean())
    assert np.mean(drops) == pytest.approx(0.1, abs=0.01)
    assert {float(one) for one in played.baseline_answers} <= {float(one) for one in SUPPORTED}


def test_a_drift_moves_both_arms_and_leaves_the_scores_between_0_and_1() -> None:
    played = play(np.random.default_rng(3), World("w", 0.0, 1000, drift=0.025))
    assert played.baseline_answers.max() <= 1
    plain = play(np.random.default_rng(3), World("w", 0.0, 1000))
    moved = played.baseline_answers / np.maximum(plain.baseline_answers, 1e-9)
    seen = moved[plain.baseline_answers > 0]
    assert seen.min() == pytest.approx(0.975 / 1.025, abs=1e-4)
    assert seen.max() == pytest.approx(1.0, abs=1e-4)


def test_kayentas_estimate_is_the_median_difference_and_its_interval_that_of_the_rank_sum() -> None:
    rng = np.random.default_rng(4)
    one, two = rng.random(40) - 0.1, rng.random(60)
    differences = np.subtract.outer(one, two).ravel()
    assert hodges_lehmann(one, np.sort(two)) == pytest.approx(np.median(differences), abs=2e-3)
    small = shifted_statistic(np.array([1.0, 2.0, 5.0]), np.array([3.0, 4.0, 6.0]), 0.0)
    assert small == pytest.approx((2 - 4.5 + 0.5) / (9 / 12 * 7) ** 0.5)
    tied = shifted_statistic(np.array([1.0, 1.0]), np.array([1.0, 2.0]), 0.0)
    assert tied == pytest.approx((1 - 2 + 0.5) / (4 / 12 * (5 - 24 / 12)) ** 0.5)


def test_kayenta_finds_a_shift_of_all_answers_and_passes_equals() -> None:
    baseline = noise(900)
    assert is_low(noise(300, 2) * 0.9, baseline)
    assert not is_low(noise(300, 2), baseline)
    assert not is_low(noise(300, 2), baseline * 0.9), "higher is no alarm"
    ties = np.random.default_rng(5)
    assert kayenta_alarm(rollout(noise(300), noise(300, 2) * 0.9), np.array([20, 300]), ties) == 300
    assert kayenta_alarm(rollout(noise(300), noise(300, 2)), np.array([300]), ties) is None


def test_the_t_test_and_the_threshold_alarm_at_their_first_look() -> None:
    looks = np.arange(20, 401, 20)
    same, worse = rollout(noise(400), noise(400)), rollout(noise(400), noise(400) * 0.8)
    assert t_test_alarm(same, looks) is None
    assert t_test_alarm(worse, looks) == 20
    slightly = noise(400), noise(400) * 0.98
    assert t_test_alarm(rollout(*slightly), looks) is None
    assert t_test_alarm(rollout(*slightly, frozen=None), looks) == 20, "pairs see through noise"
    assert threshold_alarm(same, looks, 0.05) is None
    assert threshold_alarm(worse, looks, 0.05) == 100, "not before 100 samples"


def test_a_small_run_answers_each_question_and_fills_a_document() -> None:
    asked = [gate.QUESTIONS[0], gate.QUESTIONS[-1]]
    answers = [gate.answer(question, runs=3, kayenta_runs=1, seed=1) for question in asked]
    assert [one.met for one in answers] == [True, None]
    assert answers[0].frozen is not None
    assert answers[1].frozen is None
    again = gate.answer(asked[1], runs=3, kayenta_runs=1, seed=1)
    assert again == answers[1], "a seed gives the same numbers"
    text = gate.written(f"a\n{gate.BEGIN}\nstale\n{gate.END}\nb\n", answers)
    assert text.startswith(f"a\n{gate.BEGIN}\n| world |")
    assert text.endswith(f"\n{gate.END}\nb\n")
    assert "stale" not in text


def documented() -> list[dict[str, str]]:
    """The rows of the table in the document."""
    table = DOCUMENT.read_text().split(gate.BEGIN)[1].split(gate.END)[0]
    header, _, *rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")]
        for line in table.strip().splitlines()
    ]
    assert header == list(gate.COLUMNS)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_document_answers_every_question_and_keeps_what_is_promised() -> None:
    found = documented()
    assert [row["world"] for row in found] == [one.world.name for one in gate.QUESTIONS]
    for row, question in zip(found, gate.QUESTIONS, strict=True):
        rolled_back, promoted = (
            float(row[name].removesuffix("%")) / 100 for name in ("rolled back", "promoted")
        )
        if question.promised and question.world.drop == 0:
            assert rolled_back <= gate.MOST_FALSE_ROLLBACKS
        elif question.promised:
            assert rolled_back >= gate.LEAST_POWER
            assert promoted <= gate.MOST_WRONG_PROMOTIONS


def test_what_is_promised_is_what_the_document_says() -> None:
    text = DOCUMENT.read_text()
    assert "in at most 4 %; a drop found in at least 90 %" in text
    assert "of a 5 % drop in at most 3 %" in text
    assert re.search(r"180 supported and 250 unsupported", text)
    assert (len(SUPPORTED), len(UNSUPPORTED)) == (180, 250)
    assert gate.DESIGN.alpha == gate.DESIGN.beta == gate.DESIGN.margin == 0.05
