"""Stages and gates: apply, soak, look, then on or back."""

from __future__ import annotations

from typing import Any

import pytest

from optiinfra.coordinator.saga.state import World
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.rollout import GateVerdict, Step, StepKind
from optiinfra.schemas.vote import AgentName
from tests.factories import AT, recommendation, rollout, step_result
from tests.saga_log import AUTO, Log, replacement

PERFORMANCE, APPLICATION = AgentName.PERFORMANCE, AgentName.APPLICATION


def undoing(log: Log) -> str:
    """Why a change is being undone."""
    log.check()
    assert log.saga.state is ChangeState.ROLLING_BACK
    (asked,) = log.said(c.RollbackRequested)
    assert log.saga.fence == asked.fence
    return asked.reason


def test_three_stages_pass_their_gates_and_the_change_finishes() -> None:
    log = Log().to_finishing().staged()
    steps = [asked.step for asked in log.said(c.ExecutionRequested)]
    assert [(s.kind, s.stage, s.share) for s in steps] == [
        (StepKind.APPLY, 0, 0.1),
        (StepKind.APPLY, 1, 0.5),
        (StepKind.APPLY, 2, 1.0),
        (StepKind.FINISH, 2, 1.0),
    ]
    assert log.saga.state is ChangeState.COMPLETED
    assert log.said(f.ChangeCompleted)[0].arms.canary == ("chat-new",)
    assert [g.verdict for g in log.said(f.GateClosed)] == ["pass"] * 3
    log.check()


def test_a_request_carries_its_own_version_as_fence_and_a_deadline() -> None:
    log = Log().to_applying()
    (asked,) = log.said(c.ExecutionRequested)
    place = [fact for fact, _ in log.entries].index(asked) + 1
    assert asked.fence == place == log.saga.fence
    assert asked.executor is log.proposal.proposer
    assert (asked.deadline - AT).total_seconds() == log.proposal.rollout.apply_timeout_s


def test_the_executors_intent_is_remembered_once() -> None:
    log = Log().to_applying()
    started = f.ExecutionStarted(
        change=log.change, step=log.saga.step, fence=log.saga.fence, executor=AgentName.COST
    )
    assert log.hear(started).saga.begun_fence == log.saga.fence
    version = log.saga.version
    assert log.hear(started).saga.version == version
    old = started.model_copy(update={"fence": log.saga.fence - 1})
    assert log.hear(old).saga.version == version


def test_a_stage_soaks_before_its_first_look() -> None:
    log = Log().to_soaking()
    assert log.saga.phase is Phase.SOAKING
    assert (log.saga.timers[TimerName.SOAK].fire_at - AT).total_seconds() == 30
    assert (log.saga.timers[TimerName.HOLD_LIMIT].fire_at - AT).total_seconds() == 90
    assert log.said(c.GateRequested) == []


def test_a_look_says_since_when_and_whom_it_compares() -> None:
    log = Log().to_gating()
    (asked,) = log.said(c.GateRequested)
    assert (asked.stage, asked.stages, asked.look, asked.share) == (0, 3, 1, 0.1)
    assert asked.assessors == (PERFORMANCE, APPLICATION)
    assert (asked.arms.canary, asked.arms.baseline) == (("chat-new",), ("chat-1",))
    assert (asked.since, asked.rollout_since) == (AT, AT)


def test_a_stage_without_soak_is_looked_at_as_soon_as_it_is_in_force() -> None:
    log = Log(recommendation(rollout=rollout(1.0))).to_soaking()
    assert log.kinds() == ["gate.requested"]
    assert TimerName.HOLD_LIMIT in log.saga.timers
    assert TimerName.SOAK not in log.saga.timers
    log.check()


def test_all_assessors_must_pass_it() -> None:
    log = Log().to_gating().answer(PERFORMANCE)
    assert log.last == ()
    log.answer(APPLICATION)
    assert log.kinds() == ["gate.closed", "execution.requested"]
    assert log.said(f.GateClosed)[0].reasons == (
        "application: application says pass",
        "performance: performance says pass",
    )


def test_one_bad_answer_undoes_at_once() -> None:
    log = Log().to_gating().answer(APPLICATION, verdict=GateVerdict.ROLL_BACK)
    assert log.said(f.GateClosed)[0].verdict == "roll_back"
    assert undoing(log) == "application: application says roll_back"


def test_a_bad_answer_wins_over_one_that_passed() -> None:
    log = Log().to_gating().answer(PERFORMANCE).answer(APPLICATION, verdict=GateVerdict.ROLL_BACK)
    assert undoing(log) == "application: application says roll_back"


def test_a_hold_looks_again_after_a_while() -> None:
    log = Log().to_gating().answer(PERFORMANCE).answer(APPLICATION, verdict=GateVerdict.HOLD)
    (closed,) = log.said(f.GateClosed)
    assert (closed.verdict, closed.reasons) == ("hold", ("application: application says hold",))
    assert log.saga.phase is Phase.SOAKING
    log.fire(TimerName.LOOK)
    assert [asked.look for asked in log.said(c.GateRequested)] == [1, 2]
    assert log.answer().saga.step == Step(kind=StepKind.APPLY, stage=1, share=0.5)


def test_no_answer_by_the_looks_deadline_is_unknown_and_a_hold() -> None:
    log = Log().to_gating().answer(PERFORMANCE).fire(TimerName.LOOK_DEADLINE)
    (closed,) = log.said(f.GateClosed)
    assert closed.verdict == "hold"
    assert closed.reasons == ("application: no answer, so unknown",)
    assert TimerName.LOOK in log.saga.timers


def test_a_hold_and_a_silence_are_both_named() -> None:
    log = Log().to_gating().answer(PERFORMANCE, verdict=GateVerdict.HOLD)
    log.fire(TimerName.LOOK_DEADLINE)
    assert log.said(f.GateClosed)[0].reasons == (
        "performance: performance says hold",
        "application: no answer, so unknown",
    )


def test_an_answer_between_two_looks_or_to_an_old_look_is_void() -> None:
    log = Log().to_gating().fire(TimerName.LOOK_DEADLINE)
    version = log.saga.version
    assert log.answer(verdict=GateVerdict.ROLL_BACK).saga.version == version
    log.fire(TimerName.LOOK)
    version = log.saga.version
    assert log.answer(look=1).saga.version == version


def test_an_answer_to_an_earlier_stage_is_void() -> None:
    log = Log().to_applying().pass_stage()
    version = log.saga.version
    assert log.answer(stage=0, look=1, verdict=GateVerdict.ROLL_BACK).saga.version == version


def test_an_answer_that_comes_again_while_finishing_is_void() -> None:
    log = Log().to_finishing()
    version = log.saga.version
    assert log.answer(stage=2, look=1).saga.version == version


def test_of_two_answers_of_one_assessor_the_worse_counts_in_either_order() -> None:
    verdicts = (GateVerdict.PASS, GateVerdict.HOLD)
    for first, second in (verdicts, verdicts[::-1]):
        log = Log().to_gating().answer(PERFORMANCE, verdict=first)
        log.answer(PERFORMANCE, verdict=second).answer(APPLICATION)
        assert log.said(f.GateClosed)[0].verdict == "hold"


def test_a_hold_that_outlasts_its_limit_is_undone() -> None:
    log = Log().to_gating().fire(TimerName.LOOK_DEADLINE).fire(TimerName.HOLD_LIMIT)
    assert undoing(log) == "the gate was on hold for longer than its limit"


def test_the_limit_holds_also_while_a_look_is_open() -> None:
    assert "longer than its limit" in undoing(Log().to_gating().fire(TimerName.HOLD_LIMIT))


def test_the_limit_of_a_stage_that_has_passed_is_void() -> None:
    log = Log().to_applying().pass_stage().fire(TimerName.HOLD_LIMIT)
    assert log.last == ()
    assert log.saga.state is ChangeState.EXECUTING


def test_a_look_left_over_from_a_promoted_stage_does_not_cut_the_next_soak_short() -> None:
    log = Log().to_gating().fire(TimerName.LOOK_DEADLINE)
    log.control(ControlVerb.PROMOTE).staged()
    assert log.saga.phase is Phase.SOAKING
    log.fire(TimerName.LOOK)
    assert log.last == ()
    assert [asked.stage for asked in log.said(c.GateRequested)] == [0]
    assert log.fire(TimerName.SOAK).said(c.GateRequested)[-1].stage == 1


def test_a_look_deadline_after_its_look_has_closed_is_void() -> None:
    log = Log().to_applying().pass_stage().fire(TimerName.LOOK_DEADLINE)
    assert log.last == ()


def test_a_soak_that_ends_while_the_next_stage_is_applied_is_void() -> None:
    log = Log().to_soaking().control(ControlVerb.PROMOTE).fire(TimerName.SOAK)
    assert log.last == ()
    assert log.saga.phase is Phase.APPLYING


@pytest.mark.parametrize("name", [*TimerName])
def test_a_timer_with_another_key_is_void_everywhere(name: TimerName) -> None:
    for log in (Log().open(), Log().to_applying(), Log().to_gating(), Log().to_finishing()):
        version = log.saga.version
        assert log.fire(name, key="another").saga.version == version


def test_a_failed_step_is_undone() -> None:
    log = Log().to_applying()
    failed: dict[str, Any] = {"change": log.change, "fence": log.saga.fence, "reason": "no room"}
    log.hear(f.ExecutionFailed(step=log.saga.step, **failed))
    assert undoing(log) == "apply of stage 1 failed: no room"


def test_a_finish_that_fails_is_undone() -> None:
    log = Log().to_finishing()
    step, fence = log.saga.step, log.saga.fence
    log.hear(f.ExecutionFailed(change=log.change, step=step, fence=fence, reason="stuck"))
    assert undoing(log) == "finish of stage 3 failed: stuck"


@pytest.mark.parametrize("where", ["to_applying", "to_finishing"])
def test_no_result_in_time_is_undone(where: str) -> None:
    log = getattr(Log(), where)().fire(TimerName.APPLY_DEADLINE)
    assert undoing(log) == "the executor gave no result in time"


def test_an_executor_gets_a_little_longer_to_say_that_it_failed_than_to_succeed() -> None:
    log = Log().to_applying()
    (asked,) = log.said(c.ExecutionRequested)
    waited = log.saga.timers[TimerName.APPLY_DEADLINE].fire_at - asked.deadline
    log.regress()
    (undo,) = log.said(c.RollbackRequested)
    assert waited.total_seconds() == 5
    assert log.saga.timers[TimerName.ROLLBACK_DEADLINE].fire_at - undo.deadline == waited


def test_a_deadline_of_a_step_that_is_in_force_means_nothing() -> None:
    log = Log().to_soaking().fire(TimerName.APPLY_DEADLINE)
    assert log.last == ()
    assert log.saga.phase is Phase.SOAKING


@pytest.mark.parametrize("where", ["to_soaking", "to_gating"])
def test_a_result_that_comes_twice_counts_once(where: str) -> None:
    log: Log = getattr(Log(), where)()
    version = log.saga.version
    assert log.staged().saga.version == version


def test_a_failure_told_after_the_step_was_in_force_is_late() -> None:
    log = Log().to_soaking()
    version = log.saga.version
    failed = f.ExecutionFailed(
        change=log.change, step=log.saga.step, fence=log.saga.fence, reason="?"
    )
    assert log.hear(failed).saga.version == version


def test_the_result_of_an_earlier_stage_is_late() -> None:
    log = Log().to_applying()
    first = log.saga.step
    assert first is not None
    log.pass_stage()
    version = log.saga.version
    done = f.ExecutionStaged(change=log.change, result=step_result(first, 1))
    assert log.hear(done).saga.version == version


@pytest.mark.parametrize("where", ["to_applying", "to_soaking", "to_gating", "to_finishing"])
def test_an_alarm_of_quality_undoes_from_everywhere(where: str) -> None:
    assert undoing(getattr(Log(), where)().regress()) == "answers are worse"


def test_an_alarm_before_the_first_step_means_nothing() -> None:
    log = Log().open()
    version = log.saga.version
    assert log.regress().saga.version == version


def test_an_undo_that_was_proved_ends_the_change() -> None:
    log = Log().to_gating().regress().undone()
    assert log.saga.state is ChangeState.ROLLED_BACK
    assert log.saga.end_reason == "answers are worse"
    log.check()


def test_an_undo_that_was_not_proved_needs_a_person() -> None:
    log = Log().to_gating().regress().undone(proved=False)
    assert log.saga.state is ChangeState.FAILED
    assert log.saga.end_reason == "undo not proved: read back"


def test_an_undo_that_does_not_answer_in_time_needs_a_person() -> None:
    log = Log().to_gating().regress().fire(TimerName.ROLLBACK_DEADLINE)
    assert log.saga.state is ChangeState.FAILED
    assert log.saga.end_reason == "the undo was not proved in time"
    version = log.saga.version
    assert log.undone().saga.version == version


def test_nothing_but_the_undo_counts_while_undoing() -> None:
    log = Log().to_applying()
    step, fence = log.saga.step, log.saga.fence
    log.regress()
    version = log.saga.version
    log.hear(f.ExecutionFailed(change=log.change, step=step, fence=fence, reason="superseded"))
    log.staged().regress("again")
    assert log.saga.version == version


def test_old_timers_do_not_disturb_an_undo() -> None:
    log = Log().to_gating().fire(TimerName.LOOK_DEADLINE).regress()
    for name in sorted(set(log.saga.timers) - {TimerName.ROLLBACK_DEADLINE}):
        assert log.fire(name).last == ()
    assert log.undone().saga.state is ChangeState.ROLLED_BACK


def test_a_lost_machines_replacement_may_go_ungated_and_passes_after_its_soak() -> None:
    log = Log(replacement(soak_s=1.0)).to_soaking().fire(TimerName.SOAK)
    assert log.said(c.GateRequested) == []
    assert log.said(f.GateClosed)[0].reasons == ("its kind needs no gate, and none is named",)
    assert log.saga.phase is Phase.FINISHING
    assert log.staged().saga.state is ChangeState.COMPLETED
    log.check()


def test_a_stage_that_neither_soaks_nor_is_gated_is_passed_at_once() -> None:
    log = Log(replacement(0.5, 1.0)).to_applying().staged()
    assert log.kinds() == ["gate.closed", "execution.requested"]
    assert log.saga.phase is Phase.FINISHING
    assert TimerName.HOLD_LIMIT not in log.saga.timers
    log.check()


def test_the_world_of_a_running_change_does_not_stop_it() -> None:
    log = Log().to_applying()
    log.world = World(executing="f" * 32, moving=9, moved_last_hour=99)
    assert log.pass_stage().saga.step == Step(kind=StepKind.APPLY, stage=1, share=0.5)
    assert log.rules == AUTO
