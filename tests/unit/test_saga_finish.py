"""The last stage and the finish: one command where nothing can hold between them but a pause."""

from __future__ import annotations

from datetime import timedelta

import pytest

from optiinfra.coordinator.saga.state import STOP_SWITCH
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.freezes import FreezeWindow
from optiinfra.schemas.rollout import Step, StepKind
from tests.factories import AT, recommendation, rollout
from tests.saga_log import AUTO, Log, replacement
from tests.saga_model import broken_promises, stopped_short

LATER = {"starts_at": AT + timedelta(days=1), "ends_at": AT + timedelta(days=2)}
FINISH = Step(kind=StepKind.FINISH, stage=0, share=1.0)


def requested(log: Log) -> list[tuple[str, int, int]]:
    return [(x.step.kind, x.step.stage, x.step.attempt) for x in log.said(c.ExecutionRequested)]


def short(log: Log) -> Log:
    """The executor has found the change paused before it released anything."""
    return log.hear(stopped_short(log.said(c.ExecutionRequested)[-1]))


def test_an_ungated_last_stage_is_carried_by_the_finish() -> None:
    log = Log(replacement(0.5, 1.0)).to_applying().staged()
    assert requested(log) == [("apply", 0, 1), ("finish", 1, 1)]
    assert log.staged().saga.state is ChangeState.COMPLETED
    assert [closed.stage for closed in log.said(f.GateClosed)] == [0]
    log.check()


def test_it_has_the_time_of_both() -> None:
    one, both = (
        log.said(c.ExecutionRequested)[-1].deadline - log.at
        for log in (Log(replacement(soak_s=1.0)).to_applying(), Log(replacement()).to_applying())
    )
    assert both == 2 * one
    held = short(Log(replacement()).to_applying().control(ControlVerb.PAUSE))
    again = held.control(ControlVerb.RESUME).said(c.ExecutionRequested)[-1]
    assert again.deadline - held.at == one


@pytest.mark.parametrize(
    ("freeze", "kinds"),
    [
        ({"halt_stages": True}, ["apply", "finish"]),
        ({"halt_stages": False}, ["finish"]),
        ({"halt_stages": True, "deployments": ["search"]}, ["finish"]),
    ],
)
def test_a_freeze_that_may_halt_it_keeps_the_two_apart(
    freeze: dict[str, object], kinds: list[str]
) -> None:
    window = FreezeWindow.model_validate({"name": "w", **LATER, **freeze})
    log = Log(replacement(), rules=AUTO.model_copy(update={"freezes": (window,)})).to_applying()
    while log.saga.state is ChangeState.EXECUTING:
        log.staged()
    assert [kind for kind, _, _ in requested(log)] == kinds


def test_paused_before_anything_was_released_it_waits_and_goes_on_when_resumed() -> None:
    log = short(Log(replacement()).to_applying().control(ControlVerb.PAUSE))
    assert log.kinds() == []
    assert (log.saga.phase, log.saga.passed) == (Phase.SOAKING, True)
    assert log.saga.arms.canary == ("chat-new",)
    assert log.control(ControlVerb.RESUME).kinds() == ["change.resumed", "execution.requested"]
    assert requested(log) == [("finish", 0, 1), ("finish", 0, 2)]
    assert log.staged().saga.state is ChangeState.COMPLETED
    assert broken_promises(log) == []
    log.check()


def test_the_stop_switch_holds_it_too_and_a_second_time() -> None:
    log = Log(replacement()).to_applying()
    for _ in range(2):
        short(log.control(ControlVerb.PAUSE, by=STOP_SWITCH))
        log.control(ControlVerb.RESUME, by=STOP_SWITCH)
    assert requested(log) == [("finish", 0, 1), ("finish", 0, 2), ("finish", 0, 3)]
    log.check()


def test_resumed_before_the_executor_has_said_so_it_goes_on_at_once() -> None:
    log = Log(replacement()).to_applying().control(ControlVerb.PAUSE).control(ControlVerb.RESUME)
    assert short(log).kinds() == ["execution.requested"]
    assert requested(log)[-1] == ("finish", 0, 2)


def test_a_gated_change_that_is_paused_while_it_finishes_is_held_without_another_gate() -> None:
    log = Log(recommendation(rollout=rollout(1.0, soak_s=1.0))).to_finishing()
    looks = len(log.said(c.GateRequested))
    short(log.control(ControlVerb.PAUSE)).control(ControlVerb.RESUME)
    assert requested(log) == [("apply", 0, 1), ("finish", 0, 1), ("finish", 0, 2)]
    assert len(log.said(c.GateRequested)) == looks
    assert log.staged().saga.state is ChangeState.COMPLETED


def test_what_is_held_before_its_finish_can_be_undone() -> None:
    log = short(Log(replacement()).to_applying().control(ControlVerb.PAUSE))
    assert log.control(ControlVerb.ABORT).saga.state is ChangeState.ROLLING_BACK
    assert log.undone().saga.state is ChangeState.ROLLED_BACK


def test_late_words_of_the_first_attempt_change_nothing() -> None:
    log = Log(replacement()).to_applying()
    first = log.said(c.ExecutionRequested)[-1]
    short(log.control(ControlVerb.PAUSE)).control(ControlVerb.RESUME)
    version = log.saga.version
    log.hear(stopped_short(first))
    failed = {"change": log.change, "step": FINISH, "fence": first.fence, "reason": "late"}
    log.hear(f.ExecutionFailed(**failed))
    assert log.saga.version == version
    log.hear(f.TimerFired(change=log.change, name=TimerName.APPLY_DEADLINE, key="finish-0-1"))
    assert log.saga.state is ChangeState.EXECUTING


def test_a_stage_of_the_ordinary_kind_is_no_finish_that_stopped_short() -> None:
    """Its result, heard once more while the finish is on its way, comes under an older fence."""
    log = Log(recommendation(rollout=rollout(1.0, soak_s=1.0))).to_applying()
    again = stopped_short(log.said(c.ExecutionRequested)[0])
    log.pass_stage()
    version = log.saga.version
    assert log.saga.phase is Phase.FINISHING
    assert log.hear(again).saga.version == version
