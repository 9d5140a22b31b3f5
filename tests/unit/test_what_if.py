"""A recorded log under another policy: what differs, why, and what is not known from there on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.coordinator.ledger import Ledger
from optiinfra.coordinator.what_if import Logged, what_if
from optiinfra.events import facts as f
from optiinfra.schemas.approval_rules import ApprovalRule, Decision
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.hindsight import WhatIf
from optiinfra.schemas.money import Interval
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.schemas.vote import VOTERS, Verdict
from tests.factories import AT, event, gate_answer, recommendation, rollout, step_result, vote
from tests.saga_log import decision

ALL = ApprovalRule(name="all", max_risk=Risk.CRITICAL)
AUTO = Rules(approvals=(ALL,), max_moving=9, retry_turn_s=60)
ASK = Rules(max_moving=9, retry_turn_s=60)
SAVING = Interval(low=80, mid=100, high=120)


class Recorder:
    """Plays changes with the real ledger and keeps the log as PostgreSQL would."""

    def __init__(self, rules: Rules) -> None:
        self.ledger = Ledger(AT, rules)
        self.at = AT
        self.log: list[Logged] = []

    def hear(self, *facts: f.Fact) -> None:
        for fact in facts:
            self.at += timedelta(seconds=1)
            self.ledger._now = self.at
            before = {name: len(w.entries) for name, w in self.ledger.writes().items()}
            self.ledger.take(event(fact))
            for name, write in self.ledger.writes().items():
                for number in range(before.get(name, 0), len(write.entries)):
                    made = write.entries[number].event
                    self.log.append(Logged(name, number + 1, self.at, made))

    def wait(self, seconds: float) -> None:
        """Fires what is due by then, in order."""
        until = self.at + timedelta(seconds=seconds)
        while True:
            due = sorted(
                (pending.fire_at, change, name, pending.key)
                for change, saga in self.ledger._sagas.items()
                for name, pending in saga.timers.items()
                if pending.fire_at <= until
            )
            if not due:
                break
            at, change, name, key = due[0]
            self.at = max(self.at, at - timedelta(seconds=1))
            self.hear(f.TimerFired(change=change, name=name, key=key))
        self.at = until

    def open(self, one: Recommendation) -> None:
        self.hear(f.RecommendationProposed(recommendation=one))

    def agree(self, one: Recommendation, verdict: Verdict = Verdict.APPROVE) -> None:
        number = self.ledger.saga(one.id).round
        self.hear(*(vote(one.id, agent, verdict, number) for agent in sorted(VOTERS)))

    def carry_out(self, one: Recommendation) -> None:
        while not (saga := self.ledger.saga(one.id)).state.is_terminal:
            assert saga.step is not None
            if saga.phase == "gating":
                self.hear(
                    *(
                        f.GateAnswered(
                            answer=gate_answer(one.id, who, stage=saga.step.stage, look=saga.look)
                        )
                        for who in one.rollout.gates
                    )
                )
            else:
                done = step_result(saga.step, saga.fence)
                self.hear(f.ExecutionStaged(change=one.id, result=done))

    def under(self, rules: Rules) -> WhatIf:
        return what_if(self.log, rules)


def proposal(name: str, **changes: Any) -> Recommendation:
    values = {"deployment": name, "rollout": rollout(1.0), "saving_usd_per_month": SAVING}
    return recommendation(name, **{**values, **changes})


def outcome(one: Recommendation, usd: float | None, at: datetime = AT) -> f.OutcomeRecorded:
    unknown = Unknown(reason=UnknownReason.NOT_CONFIGURED)
    known = Known(value=usd) if usd is not None else unknown
    return f.OutcomeRecorded(
        outcome=Outcome(
            change=one.id, deployment=one.deployment, kind=one.spec.kind,
            terminal=ChangeState.COMPLETED, predicted_usd_per_month=SAVING,
            realised_usd_per_month=known, usd_per_hour_before=unknown,
            usd_per_hour_after=unknown, ttft_p95_s=Known(value=0.3), tpot_p95_s=unknown,
            quality_mean=unknown, features={}, at=at,
        )
    )  # fmt: skip


def completed(rules: Rules = AUTO, usd: float | None = 90.0) -> tuple[Recorder, Recommendation]:
    story, one = Recorder(rules), proposal("chat")
    story.open(one)
    story.agree(one)
    story.carry_out(one)
    story.hear(outcome(one, usd))
    return story, one


def test_the_same_policy_differs_in_nothing() -> None:
    story, _ = completed()
    other = proposal("other")
    story.open(other)
    story.agree(other, Verdict.REJECT)
    silent = proposal("silent")
    story.open(silent)
    story.wait(120)
    found = story.under(AUTO)
    assert found.differences == ()
    assert found.changes == 3


def test_a_policy_that_refuses_would_have_lost_what_was_realised() -> None:
    story, one = completed()
    deny = ApprovalRule(name="never", decision=Decision.DENY)
    found = story.under(Rules(approvals=(deny,)))
    [difference] = found.differences
    assert difference.change == one.id
    assert difference.recorded == "nothing yet"
    assert difference.other == "change rejected"
    assert "never" in difference.why
    assert (difference.recorded_end, difference.other_end) == ("completed", "rejected")
    assert difference.effect.basis == "realised"
    assert found.realised.mid == -90
    assert difference.effect.ttft_p95_s == 0.3


def test_a_policy_that_asks_a_person_is_unknown_from_there() -> None:
    story, _ = completed(usd=None)
    [difference] = (found := story.under(ASK)).differences
    assert difference.other == "a person is asked"
    assert difference.recorded == "approved by rule all"
    assert difference.other_end == "unknown from here: a person would be asked"
    assert difference.effect.basis == "unknown"
    assert difference.effect.usd_per_month == SAVING.scaled(-1), "at stake, and in no sum"
    assert (found.predicted.mid, found.realised.mid, found.unknown) == (0, 0, 1)


def test_a_policy_that_approves_by_itself_would_have_saved_what_was_predicted() -> None:
    story, one = Recorder(ASK), proposal("chat")
    story.open(one)
    story.agree(one)
    story.hear(decision(one, granted=False))
    [difference] = (found := story.under(AUTO)).differences
    assert (difference.recorded, difference.other) == ("a person is asked", "approved by rule all")
    assert difference.recorded_end == "rejected"
    assert difference.other_end == "unknown from here: apply of stage 1 would be carried out"
    assert found.predicted == SAVING


def test_results_that_were_recorded_are_taken_as_they_were() -> None:
    """The other policy approves sooner; what the executor then did is known."""
    story, one = Recorder(ASK), proposal("chat")
    story.open(one)
    story.agree(one)
    story.hear(decision(one))
    story.carry_out(one)
    [difference] = story.under(AUTO).differences
    assert difference.recorded_end == difference.other_end == "completed"
    assert difference.effect.basis == "none"


def test_a_shorter_patience_vetoes_by_timers_of_its_own() -> None:
    story, one = Recorder(AUTO), proposal("chat")
    story.open(one)
    story.wait(30)
    story.agree(one)
    story.carry_out(one)
    [difference] = story.under(AUTO.model_copy(update={"vote_deadline_s": 10.0})).differences
    assert difference.other_end == "vetoed"
    assert "did not vote in time" in difference.why


def test_limits_hold_back_the_second_of_two() -> None:
    story = Recorder(AUTO)
    first, second = proposal("chat"), proposal("search")
    story.open(first)
    story.open(second)
    story.agree(first)
    story.agree(second)
    story.carry_out(first)
    story.carry_out(second)
    found = story.under(AUTO.model_copy(update={"max_moving": 1}))
    [difference] = found.differences
    assert difference.change == second.id
    assert difference.other == "change deferred"
    assert "the policy allows 1" in difference.why


def test_a_run_that_waits_without_end_is_refused_and_says_what_to_do() -> None:
    story = Recorder(ASK)
    for name in ("chat", "search"):
        story.open(proposal(name))
    for name in ("chat", "search"):
        story.agree(proposal(name))
    story.wait(600)
    story.open(proposal("later"))
    one_at_a_time = AUTO.model_copy(update={"max_moving": 1})
    with pytest.raises(Rejected, match="wait for too long"):
        what_if(story.log, one_at_a_time, 3)
    assert what_if(story.log, one_at_a_time, 1_000) == what_if(story.log, one_at_a_time)


def test_nothing_recorded_nothing_differs() -> None:
    found = what_if([], AUTO)
    assert (found.changes, found.differences, found.realised.mid) == (0, (), 0)


@pytest.mark.parametrize("rules", [AUTO, ASK])
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_whatever_happened_the_same_policy_differs_in_nothing(
    rules: Rules, ends: Sequence[int]
) -> None:
    story = Recorder(rules)
    for number, end in enumerate(ends):
        one = proposal(f"d{number}")
        story.open(one)
        if end == 0:
            story.wait(70)
            continue
        story.agree(one, Verdict.REJECT if end == 1 else Verdict.APPROVE)
        if end == 1:
            continue
        if rules is ASK:
            story.hear(decision(one, granted=end == 2, at=story.at))
        if not story.ledger.saga(one.id).state.is_terminal:
            story.carry_out(one)
    assert story.under(rules).differences == ()
