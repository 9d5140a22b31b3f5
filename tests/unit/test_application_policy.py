"""The gate's verdicts, the vote, and how stored rows become what a gate looks at."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from optiinfra.agents.application.assess import (
    GateReadings,
    gate_labels,
    gate_sight,
    prompts_asked,
)
from optiinfra.agents.application.gate import GateSight, judge_gate
from optiinfra.agents.application.golden import Ask, GoldenItem, Reply
from optiinfra.agents.application.policy import (
    ApplicationPolicy,
    Baseline,
    VoteSight,
    judge_vote,
    pairs_offered,
)
from optiinfra.agents.application.records import (
    baseline_of,
    baseline_sample,
    golden_samples,
    live_samples,
    stored_baseline,
)
from optiinfra.agents.application.sequential import Arm, Coverage, Observation, pairs_of
from optiinfra.events.commands import GateRequested
from optiinfra.schemas.answers import ANSWER_SCORE, GOLDEN, SOURCE, TURNED_AWAY
from optiinfra.schemas.deployment import QualityFloor
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import (
    CommitmentPurchase,
    Placement,
    RolloutPlan,
    SpotReplacement,
    StagePlan,
)
from optiinfra.schemas.rollout import ArmEvidence, Arms, GateVerdict
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason, is_known
from optiinfra.schemas.vote import AgentName, Verdict
from tests.factories import AT, recommendation

POLICY = ApplicationPolicy(session_window_s=0, settle_s=0)
FLOOR = QualityFloor()
GOOD = [False] * 50
PLAN = RolloutPlan(
    stages=tuple(StagePlan(share=s, soak_s=60, hold_limit_s=300) for s in (0.1, 0.5, 1.0))
)
BASELINE = Baseline(AT, "groundedness/1", units=40, mean=0.95, stdev=0.1, pair_stdev=0.02)


def units(pairs: int, baseline: float = 1.0, canary: float = 1.0) -> list[Observation]:
    return [
        Observation(AT + timedelta(seconds=n), arm, f"s{n}", f"u{n}", score)
        for n in range(pairs)
        for arm, score in ((Arm.BASELINE, baseline), (Arm.CANARY, canary))
    ]


def sight(seen: Sequence[Observation], **changes: Any) -> GateSight:
    values: dict[str, Any] = {
        "at": AT + timedelta(seconds=300),
        "since": AT,
        "has_both_arms": True,
        "units": seen,
        "coverage": {arm: Coverage(50, 50) for arm in Arm},
        "failures": dict.fromkeys(Arm, GOOD),
    }
    return GateSight(**{**values, **changes})


def verdict_of(found: GateSight) -> tuple[GateVerdict, str]:
    decision = judge_gate(POLICY, found, FLOOR)
    return decision.verdict, decision.reason


def test_enough_good_pairs_pass_and_every_line_says_why() -> None:
    decision = judge_gate(POLICY, sight(units(150)), FLOOR)
    assert decision.verdict is GateVerdict.PASS
    assert not decision.is_regression
    assert decision.quality.e_promote >= 20
    assert [line.name for line in decision.metrics] == [
        "quality_drop_relative", "canary_failed_answers", "unscored_difference",
        "baseline_twin_difference", "unreached_replicas",
    ]  # fmt: skip
    assert all(line.verdict is GateVerdict.PASS and line.detail for line in decision.metrics)
    assert decision.metrics[0].window_s == 300


def test_few_pairs_hold_and_none_are_unknown() -> None:
    verdict, reason = verdict_of(sight(units(30)))
    assert verdict is GateVerdict.HOLD
    assert "not yet certain: 1.000 against 1.000 over 30 pairs" in reason
    decision = judge_gate(POLICY, sight([]), FLOOR)
    assert decision.verdict is GateVerdict.HOLD
    assert "no pairs" in decision.reason
    assert not is_known(decision.metrics[0].observed)
    assert decision.quality.difference_low is None


def test_a_worse_canary_is_rolled_back() -> None:
    decision = judge_gate(POLICY, sight(units(60, canary=0.7)), FLOOR)
    assert decision.verdict is GateVerdict.ROLL_BACK
    assert decision.is_regression
    assert "answers worse: 0.700 against 1.000" in decision.reason
    observed = decision.metrics[0].observed
    assert isinstance(observed, Known)
    assert observed.value == pytest.approx(0.3)
    assert observed.error > 0


def test_a_stage_passes_only_with_pairs_of_its_own() -> None:
    later = AT + timedelta(seconds=140)
    verdict, reason = verdict_of(sight(units(150), since=later))
    assert verdict is GateVerdict.HOLD
    assert reason == "10 of 20 pairs seen in this stage"


def test_a_stricter_deployment_needs_more_evidence() -> None:
    assert judge_gate(POLICY, sight(units(150)), FLOOR).verdict is GateVerdict.PASS
    strict = judge_gate(POLICY, sight(units(150)), QualityFloor(max_relative_drop=0.02))
    assert strict.verdict is GateVerdict.HOLD
    assert strict.metrics[0].threshold == 0.02


def test_a_deployment_says_how_sure_its_gate_has_to_be() -> None:
    worse, equal = sight(units(45, canary=0.8)), sight(units(150))
    assert judge_gate(POLICY, worse, FLOOR).verdict is GateVerdict.ROLL_BACK
    careful = judge_gate(POLICY, worse, QualityFloor(alpha=1e-4))
    assert careful.verdict is GateVerdict.HOLD
    assert careful.quality.alpha == 1e-4
    strict = judge_gate(POLICY, equal, QualityFloor(beta=1e-4))
    assert strict.verdict is GateVerdict.HOLD
    assert "of 10000" in strict.reason
    assert judge_gate(POLICY, sight(units(60)), QualityFloor(beta=0.5)).verdict is GateVerdict.PASS


def test_the_record_tells_what_each_arm_brought_and_the_bounds_of_the_difference() -> None:
    missing = [Observation(AT, Arm.CANARY, "live", "u", None)]
    coverage = {Arm.BASELINE: Coverage(60, 60), Arm.CANARY: Coverage(60, 61)}
    seen = sight([*units(60, canary=0.9), *missing], coverage=coverage)
    quality = judge_gate(POLICY, seen, FLOOR).quality
    assert quality.baseline == ArmEvidence(answers=60, scored=60, units=60)
    assert quality.canary == ArmEvidence(answers=61, scored=60, units=60)
    assert quality.canary.coverage == pytest.approx(60 / 61)
    assert quality.difference_low is not None
    assert quality.difference_high is not None
    assert quality.difference_low < -0.1 < quality.difference_high
    nothing = judge_gate(POLICY, sight([], coverage={}), FLOOR).quality.canary
    assert nothing is not None
    assert nothing.coverage is None


def test_answers_that_all_score_nothing_give_no_relative_drop() -> None:
    decision = judge_gate(POLICY, sight(units(150, 0.0, 0.0)), FLOOR)
    assert decision.verdict is GateVerdict.HOLD
    assert "scores 0" in decision.metrics[0].observed.model_dump_json()


def test_without_a_concurrent_baseline_it_holds_whatever_the_pairs_say() -> None:
    for canary in (1.0, 0.5):
        found = sight(units(150, canary=canary), has_both_arms=False)
        decision = judge_gate(POLICY, found, FLOOR)
        assert decision.verdict is GateVerdict.HOLD
        assert not decision.is_regression


def test_failures_of_the_canary_alone_roll_back_and_of_both_arms_hold() -> None:
    failing = [True] * 5 + GOOD
    one = sight(units(150), failures={Arm.CANARY: failing, Arm.BASELINE: GOOD})
    assert verdict_of(one) == (
        GateVerdict.ROLL_BACK, "5 of 55 canary answers failed or were empty",
    )  # fmt: skip
    both = sight(units(150), failures=dict.fromkeys(Arm, failing))
    verdict, reason = verdict_of(both)
    assert verdict is GateVerdict.HOLD
    assert "the baseline fails too" in reason


def test_no_canary_answer_at_all_holds() -> None:
    verdict, reason = verdict_of(sight(units(150), failures={}))
    assert verdict is GateVerdict.HOLD
    assert reason == "no canary answer was seen"


def test_uneven_coverage_and_an_unreached_replica_hold() -> None:
    uneven = {Arm.CANARY: Coverage(20, 80), Arm.BASELINE: Coverage(80, 80)}
    verdict, reason = verdict_of(sight(units(150), coverage=uneven))
    assert verdict is GateVerdict.HOLD
    assert reason.startswith("uneven: 20 of 80 canary")
    unknown = judge_gate(POLICY, sight(units(150), coverage={}), FLOOR)
    assert not is_known(unknown.metrics[2].observed)
    verdict, reason = verdict_of(sight(units(150), unreached={"b": "no answer", "a": "refused"}))
    assert (verdict, reason) == (GateVerdict.HOLD, "not reached: a (refused), b (no answer)")


def test_each_kind_of_answers_is_compared_with_its_own() -> None:
    """Live answers are scored more rarely than golden ones, and a canary has few of them."""
    golden = {Arm.CANARY: Coverage(600, 600), Arm.BASELINE: Coverage(1200, 1200)}
    live = {Arm.CANARY: Coverage(6, 30), Arm.BASELINE: Coverage(60, 300)}
    none = {arm: Coverage(0, 0) for arm in Arm}
    mixed = {Arm.CANARY: Coverage(606, 630), Arm.BASELINE: Coverage(1260, 1500)}
    seen = sight(units(150), coverage=mixed, coverage_apart=(live, golden))
    assert verdict_of(seen)[0] is GateVerdict.PASS
    assert verdict_of(sight(units(150), coverage=mixed))[0] is GateVerdict.HOLD
    hidden = {Arm.CANARY: Coverage(540, 600), Arm.BASELINE: Coverage(1200, 1200)}
    verdict, reason = verdict_of(sight(units(150), coverage_apart=(none, hidden)))
    assert verdict is GateVerdict.HOLD
    assert reason.startswith("uneven: 540 of 600 canary")


def test_wrong_answers_that_go_unscored_do_not_pass_for_good_ones() -> None:
    coverage = {Arm.BASELINE: Coverage(400, 400), Arm.CANARY: Coverage(376, 400)}
    decision = judge_gate(POLICY, sight(units(376), coverage=coverage), FLOOR)
    assert decision.metrics[0].verdict is GateVerdict.PASS, "of what was scored, nothing is worse"
    assert decision.verdict is GateVerdict.HOLD
    assert decision.reason == (
        "uneven: 376 of 400 canary and 400 of 400 baseline answers could be scored"
    )


def test_a_baseline_that_does_not_agree_with_itself_holds() -> None:
    agreeing = judge_gate(POLICY, sight(units(150), twins=[(0.9, 0.8), (0.7, 0.8)] * 50), FLOOR)
    assert agreeing.verdict is GateVerdict.PASS
    assert agreeing.quality.twins == 100
    assert agreeing.quality.twin_stdev == pytest.approx(0.1)
    for twins in ([(0.9, 0.7)] * 100, [(0.7, 0.9)] * 100):
        decision = judge_gate(POLICY, sight(units(150), twins=twins), FLOOR)
        assert decision.verdict is GateVerdict.HOLD
        assert "does not agree with itself" in decision.reason
    assert judge_gate(POLICY, sight(units(150)), FLOOR).quality.twin_stdev is None


def test_rolling_back_outweighs_holding() -> None:
    found = sight(units(60, canary=0.5), unreached={"a": "refused"})
    assert verdict_of(found)[0] is GateVerdict.ROLL_BACK


def test_a_policy_with_a_ruinous_bet_is_refused() -> None:
    with pytest.raises(Rejected):
        ApplicationPolicy(bets=(1.5,)).design(FLOOR)


def vote_sight(baseline: Baseline | None = BASELINE, per_s: float | None = None) -> VoteSight:
    rate = Unknown(reason=UnknownReason.NO_TRAFFIC) if per_s is None else Known(value=per_s)
    return VoteSight(FLOOR, baseline, "none was measured", rate)


def test_a_change_whose_drop_would_be_seen_is_approved_with_evidence() -> None:
    ballot = judge_vote(POLICY, recommendation(rollout=PLAN), vote_sight())
    assert ballot.verdict is Verdict.APPROVE
    assert ballot.conditions
    assert [one.name for one in ballot.evidence] == [
        "baseline_quality", "baseline_pair_stdev", "pairs_to_see_a_drop",
    ]  # fmt: skip


def test_without_a_baseline_or_with_a_thin_one_it_abstains() -> None:
    ballot = judge_vote(POLICY, recommendation(), vote_sight(None))
    assert ballot.verdict is Verdict.ABSTAIN
    assert "none was measured" in ballot.reasons[0]
    thin = Baseline(AT, "groundedness/1", 3, 0.9, 0.1, 0.1)
    assert judge_vote(POLICY, recommendation(), vote_sight(thin)).verdict is Verdict.ABSTAIN


def test_a_rollout_without_gate_too_short_or_without_signal_is_rejected() -> None:
    ungated = RolloutPlan(stages=PLAN.stages, gates=(AgentName.PERFORMANCE,))
    short = RolloutPlan(stages=(StagePlan(share=1, soak_s=1, hold_limit_s=1),))
    silent = Baseline(AT, "groundedness/1", 40, 0.0, 0.0, 0.5)
    cases = [
        (ungated, BASELINE, "no quality gate"),
        (short, BASELINE, "the rollout gives 40"),
        (PLAN, silent, "cannot be told from noise"),
    ]
    for plan, baseline, why in cases:
        ballot = judge_vote(POLICY, recommendation(rollout=plan), vote_sight(baseline))
        assert ballot.verdict is Verdict.REJECT
        assert why in ballot.reasons[0]


def test_live_traffic_adds_pairs_by_the_smaller_arm_and_unknown_traffic_adds_none() -> None:
    proposal = recommendation(rollout=PLAN)
    golden = 3 * 40 * 21
    assert pairs_offered(POLICY, proposal, vote_sight().scored_per_s) == golden
    live = 360 * 2 * (0.1 + 0.5)
    assert pairs_offered(POLICY, proposal, Known(value=2)) == pytest.approx(golden + live)


def test_what_touches_no_server_is_approved_and_an_urgent_replacement_needs_the_baseline_only() -> (
    None
):
    purchase = CommitmentPurchase(
        provider="aws", instance_type="p5", region="r", count=1, term_years=1,
        payment="no_upfront",
    )  # fmt: skip
    assert judge_vote(POLICY, recommendation(spec=purchase), vote_sight(None)).verdict is (
        Verdict.APPROVE
    )
    place = Placement(provider="aws", instance_type="p5", region="r", market="spot")
    replacement = recommendation(
        spec=SpotReplacement(replicas=("a",), to=place, reclaim_at=AT),
        rollout=RolloutPlan(stages=(StagePlan(share=1, soak_s=0, hold_limit_s=1),)),
    )
    assert judge_vote(POLICY, replacement, vote_sight()).verdict is Verdict.APPROVE
    assert judge_vote(POLICY, replacement, vote_sight(None)).verdict is Verdict.ABSTAIN


def request(stage: int = 0, look: int = 1, since: datetime = AT) -> GateRequested:
    return GateRequested(
        change=derived_id("c"), deployment="chat", stage=stage, stages=2, look=look,
        assessors=(AgentName.APPLICATION,), arms=Arms(canary=("new",), baseline=("old",)),
        share=0.5, since=since, rollout_since=AT, recommendation=recommendation(),
        deadline=AT + timedelta(hours=1),
    )  # fmt: skip


def golden_rows(
    asked: GateRequested, replica: str, arm: Arm, text: str = "Paris", **labels: str
) -> list[Sample]:
    item = GoldenItem(id="q1", prompt="Capital?", answer="Paris")
    reply = Reply(Ask(item, replica, "http://x"), ok=True, text=text)
    at = asked.since + timedelta(seconds=30)
    return list(golden_samples(reply, at, {**gate_labels(asked), "arm": arm.name, **labels}))


def live_rows(replica: str, unit: str, second: int, **changes: Any) -> list[Sample]:
    sample = AnswerSample(
        id=derived_id(unit), tenant="acme", deployment="chat", replica=replica, unit=unit,
        prompt="Context: Paris is big.\nQuestion: ?\nAnswer:", answer="Paris is big.", ok=True,
        route_version=0, at=AT + timedelta(seconds=second),
    )  # fmt: skip
    return list(live_samples(sample.model_copy(update=changes)))


def look_at(asked: GateRequested, stored: list[Sample], fresh: list[Sample]) -> GateSight:
    now = AT + timedelta(seconds=900)
    return gate_sight(POLICY, asked, GateReadings(now, now, stored, fresh))


def test_golden_answers_are_paired_by_prompt_and_look_and_counted_once_when_stored_already() -> (
    None
):
    asked = request()
    rows = [
        *golden_rows(asked, "new", Arm.CANARY, "Rome"),
        *golden_rows(asked, "old", Arm.BASELINE),
    ]
    found = look_at(asked, rows, rows)
    assert [(one.arm, one.score) for one in found.units] == [(Arm.CANARY, 0), (Arm.BASELINE, 1)]
    assert len({one.stratum for one in found.units}) == 1
    assert prompts_asked(rows, request(look=2)) == {"q1": 1}
    assert prompts_asked(rows, asked) == {}, "the same look asks the same prompts"
    other = asked.model_copy(update={"change": derived_id("other")})
    assert prompts_asked(rows, other) == {}
    second = golden_rows(request(look=2), "new", Arm.CANARY)
    assert len({one.stratum for one in look_at(asked, second, rows).units}) == 2


def test_the_second_answer_of_the_baseline_halves_its_noise_and_is_its_control() -> None:
    asked = request()
    rows = [
        *golden_rows(asked, "new", Arm.CANARY),
        *golden_rows(asked, "old", Arm.BASELINE),
        *golden_rows(asked, "old", Arm.BASELINE, "Rome", twin="2"),
    ]
    found = look_at(asked, rows, rows)
    assert found.twins == [(1, 0)]
    (pair,) = pairs_of(found.units)
    assert (pair.baseline, pair.canary) == (0.5, 1)
    alone = golden_rows(asked, "old", Arm.BASELINE, twin="2")
    assert look_at(asked, [*rows[:2], *alone], []).twins == []


def test_golden_answers_of_other_changes_and_of_baseline_runs_are_left_out() -> None:
    asked = request()
    reply = Reply(
        Ask(GoldenItem(id="q", prompt="?", answer="!x"), "new", "http://x"), ok=True, text="x"
    )
    stray = list(golden_samples(reply, AT, {"purpose": "baseline", "turn": "1"}))
    others = golden_rows(asked.model_copy(update={"change": derived_id("d")}), "new", Arm.CANARY)
    assert look_at(asked, [*stray, *others], []).units == []


def test_live_answers_count_from_when_their_replica_belonged_to_its_arm() -> None:
    asked = request(stage=1, since=AT + timedelta(seconds=100))
    stored = [
        *live_rows("new", "before", 50), *live_rows("new", "after", 150),
        *live_rows("old", "base", 50), *live_rows("stranger", "x", 150),
    ]  # fmt: skip
    found = look_at(asked, stored, [])
    assert [(one.unit, one.arm) for one in found.units] == [
        ("live:base", Arm.BASELINE), ("live:after", Arm.CANARY),
    ]  # fmt: skip
    first_stage = golden_rows(request(since=AT), "new", Arm.CANARY)
    units_ = look_at(asked, [*stored, *first_stage], []).units
    assert "live:before" in {one.unit for one in units_}
    gone = golden_rows(request(since=AT), "gone", Arm.CANARY)
    assert "live:before" not in {one.unit for one in look_at(asked, [*stored, *gone], []).units}


def test_live_answers_are_compared_within_the_kind_of_work_that_the_client_names() -> None:
    stored = [
        *live_rows("old", "prose", 1, stratum="prose"),
        *live_rows("new", "code", 2, stratum="code"),
        *live_rows("old", "plain", 3), *live_rows("new", "bare", 4),
    ]  # fmt: skip
    found = look_at(request(), stored, [])
    assert [one.stratum for one in found.units] == [
        "live:prose", "live:code", "live:live", "live:live",
    ]  # fmt: skip
    assert len(pairs_of(found.units)) == 1


def test_failed_answers_break_floors_and_unscored_or_outdated_ones_are_missing() -> None:
    outdated = live_rows("new", "old-scorer", 4)
    outdated = [
        row.model_copy(update={"labels": {**row.labels, "scorer": "groundedness/0"}})
        for row in outdated
    ]
    stored = [
        *live_rows("new", "failed", 1, ok=False),
        *live_rows("new", "unscored", 2, prompt="Hello"),
        *live_rows("new", "fine", 3),
        *outdated,
    ]
    found = look_at(request(), stored, [])
    assert found.failures[Arm.CANARY] == [True, False, False, False]
    assert found.coverage[Arm.CANARY] == Coverage(1, 3)
    assert [one.score for one in found.units] == [None, 1.0, None]
    assert found.has_both_arms


def test_an_unreached_replica_leaves_no_row_and_a_refusal_is_labelled() -> None:
    ask = Ask(GoldenItem(id="q", prompt="?", answer="a b"), "new", "http://x")
    assert golden_samples(Reply(ask, unreached="refused"), AT, {}) == ()
    rows = golden_samples(Reply(ask, ok=True, text="I'm sorry, I cannot."), AT, {})
    assert rows[0].labels["refusal"] == "true"
    failed = golden_samples(Reply(ask), AT, {})
    assert failed[1].reading == Known(value=0)


@pytest.mark.parametrize("ok", [True, False])
def test_every_reply_leaves_one_score_that_tells_when_its_prompt_was_asked(
    ok: bool,  # noqa: FBT001
) -> None:
    ask = Ask(GoldenItem(id="q", prompt="?", answer="a b"), "new", "http://x")
    rows = golden_samples(Reply(ask, ok=ok, text="a b", asked_ago_s=2.5), AT, {})
    (score,) = [row for row in rows if row.metric == ANSWER_SCORE]
    assert (score.labels[SOURCE], score.replica) == (GOLDEN, "new")
    assert (score.at, score.window_s) == (AT, 2.5)
    assert TURNED_AWAY not in score.labels
    (away, _) = golden_samples(Reply(ask, turned_away=True), AT, {})
    assert away.labels[TURNED_AWAY] == "true"


def test_a_baseline_comes_back_from_its_row_unless_it_is_unknown_or_of_another_version() -> None:
    baseline = baseline_of([(1.0, 0.8), (0.6, 0.6)], "groundedness/1", AT)
    assert [baseline.mean, baseline.stdev] == pytest.approx([0.75, 0.15])
    assert baseline.pair_stdev == pytest.approx(0.02**0.5)
    row = baseline_sample(baseline)
    stored = stored_baseline(row)
    assert stored is not None
    assert stored.pair_stdev == pytest.approx(baseline.pair_stdev, abs=1e-6)
    assert stored_baseline(row.model_copy(update={"labels": {"scorer": "groundedness/0"}})) is None
    unknown = Unknown(reason=UnknownReason.UNREACHABLE)
    blank = Sample(metric="quality_baseline", unit=Unit.SCORE, reading=unknown, at=AT)
    assert stored_baseline(blank) is None
