"""Facts that can never be true of a change: they are refused, and go to the dead letters."""

from __future__ import annotations

from typing import Any

import pytest

from optiinfra.events import facts as f
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.schemas.vote import AgentName
from tests.factories import step_result
from tests.saga_log import Log

PERFORMANCE = AgentName.PERFORMANCE


@pytest.mark.parametrize(
    "changes",
    [{"stage": 1}, {"attempt": 2}, {"share": 0.3}, {"kind": StepKind.FINISH}],
)
def test_a_step_that_was_never_requested_can_never_be_true(changes: dict[str, Any]) -> None:
    log = Log().to_applying()
    assert log.saga.step is not None
    step = log.saga.step.model_copy(update=changes)
    with pytest.raises(Rejected, match="was never requested"):
        log.hear(f.ExecutionStaged(change=log.change, result=step_result(step, 1)))
    with pytest.raises(Rejected, match="was never requested"):
        log.hear(f.ExecutionFailed(change=log.change, step=step, fence=1, reason="?"))


def test_a_result_before_any_step_can_never_be_true() -> None:
    step = Step(kind=StepKind.APPLY, stage=0, share=0.1)
    with pytest.raises(Rejected, match="was never requested"):
        Log().open().hear(f.ExecutionStaged(change=Log().change, result=step_result(step, 1)))


def test_an_intent_under_a_fence_of_the_future_can_never_be_true() -> None:
    log = Log().to_applying()
    started = f.ExecutionStarted(
        change=log.change, step=log.saga.step, fence=log.saga.fence + 1, executor=AgentName.COST
    )
    with pytest.raises(Rejected, match="no step was requested under fence"):
        log.hear(started)


def test_an_undo_that_nobody_asked_for_can_never_be_true() -> None:
    with pytest.raises(Rejected, match="no undo was requested"):
        Log().to_applying().undone()
    with pytest.raises(Rejected, match="no undo was requested"):
        Log().to_gating().regress().undone(fence=1)


@pytest.mark.parametrize(("stage", "look"), [(0, 2), (1, 1)])
def test_an_answer_to_a_look_of_the_future_can_never_be_true(stage: int, look: int) -> None:
    with pytest.raises(Rejected, match="was not asked"):
        Log().to_gating().answer(PERFORMANCE, stage=stage, look=look)


def test_an_answer_of_somebody_who_does_not_assess_can_never_be_true() -> None:
    with pytest.raises(Rejected, match="resource was not asked"):
        Log().to_gating().answer(AgentName.RESOURCE)


def test_an_answer_about_an_embryo_can_never_be_true() -> None:
    answered = Log().to_gating().answer(PERFORMANCE).entries[-1][0]
    with pytest.raises(Rejected, match="was not asked"):
        Log().hear(answered)
