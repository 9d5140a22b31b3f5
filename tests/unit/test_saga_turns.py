"""Whose turn it is: one change at a time on a target, limits on movers, and what is urgent."""

from __future__ import annotations

import pytest

from optiinfra.coordinator.saga.evolve import counted, evolve
from optiinfra.coordinator.saga.ruling import Loss, Ruling
from optiinfra.coordinator.saga.state import World
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState
from tests.factories import AT, recommendation
from tests.saga_log import ASK, Log

OTHER = "f" * 32
URGENT = recommendation(urgent_until=AT.replace(hour=13))


BEHIND = Ruling(behind=Loss(change=OTHER, rule="interest", reason="the other goes first"))


def test_a_taken_target_defers_a_proposal_with_the_reason() -> None:
    log = Log()
    log.world = World(executing=OTHER)
    log.open()
    (deferred,) = log.said(f.ChangeDeferred)
    assert deferred.behind == OTHER
    assert deferred.reason == f"change {OTHER} has the target chat"
    assert log.saga.state is ChangeState.DEFERRED
    assert set(log.saga.timers) == {TimerName.TURN}
    assert log.said(c.VoteRequested) == []


def test_it_says_once_why_it_waits_and_comes_back_until_its_turn() -> None:
    log = Log()
    log.world = World(executing=OTHER)
    log.open().fire(TimerName.TURN).fire(TimerName.TURN)
    assert len(log.said(f.ChangeDeferred)) == 1
    log.world = World()
    log.fire(TimerName.TURN)
    assert log.saga.state is ChangeState.VOTING
    assert log.saga.waiting is None
    assert log.vote().saga.state is ChangeState.EXECUTING
    log.check()


def test_a_new_reason_is_said_again() -> None:
    log = Log()
    log.world = World(ruling=BEHIND)
    log.open()
    log.world = World(executing=OTHER[:-1] + "e")
    log.fire(TimerName.TURN)
    assert len(log.said(f.ChangeDeferred)) == 2


@pytest.mark.parametrize(
    ("world", "reason"),
    [
        (World(executing=OTHER), "is being carried out on the same target"),
        (World(over_budget="budget 'gpus' is full"), "budget 'gpus' is full"),
        (World(moving=1), "1 changes are being carried out, the policy allows 1"),
        (World(moved_last_hour=10), "10 changes in the last hour"),
    ],
)
def test_what_was_approved_waits_and_is_voted_on_afresh(world: World, reason: str) -> None:
    log = Log(rules=ASK).open().vote()
    log.world = world
    log.decide()
    assert log.kinds() == ["change.approved", "change.deferred"]
    assert log.saga.state is ChangeState.DEFERRED
    assert reason in (log.saga.waiting or "")
    log.fire(TimerName.TURN)
    assert log.saga.state is ChangeState.DEFERRED
    assert log.saga.round == 1
    log.world = World()
    log.fire(TimerName.TURN)
    assert (log.saga.state, log.saga.round) == (ChangeState.VOTING, 2)
    assert log.vote().saga.state is ChangeState.EXECUTING
    assert len(log.said(f.ApprovalRequested)) == 1
    log.check()


def test_limits_do_not_keep_the_agents_from_voting() -> None:
    log = Log()
    log.world = World(moving=5)
    assert log.open().saga.state is ChangeState.VOTING


def test_what_is_urgent_passes_the_limits() -> None:
    log = Log(URGENT)
    log.world = World(moving=9, moved_last_hour=99, over_budget="full")
    assert log.open().vote().saga.state is ChangeState.EXECUTING


def test_what_is_urgent_waits_for_what_is_being_carried_out() -> None:
    log = Log(URGENT)
    log.world = World(executing=OTHER)
    assert log.open().saga.state is ChangeState.DEFERRED


def test_what_was_urgent_has_no_privilege_after_its_time() -> None:
    log = Log(URGENT).wait(3601)
    log.world = World(over_budget="full")
    assert log.open().vote().saga.state is ChangeState.DEFERRED


def test_the_stop_switch_halts_also_what_is_urgent() -> None:
    log = Log(URGENT)
    log.world = World(stopped=True)
    log.open().vote()
    assert log.saga.state is ChangeState.APPROVED
    assert log.saga.paused_by == "stop switch"
    assert log.said(c.ExecutionRequested) == []


def test_a_turn_that_comes_after_the_wait_is_over_means_nothing() -> None:
    log = Log()
    log.world = World(executing=OTHER)
    log.open()
    turn = log.saga.timers[TimerName.TURN]
    log.world = World()
    log.fire(TimerName.TURN)
    log.fire(TimerName.TURN, key=turn.key)
    assert log.last == ()


@pytest.mark.parametrize("name", [*TimerName])
def test_a_timer_that_outlived_its_state_means_nothing(name: TimerName) -> None:
    log = Log().to_applying()
    left_over = f.TimerSet(change=log.change, name=name, key="left over", fire_at=AT)
    log.saga = counted(evolve(log.saga, left_over, AT))
    log.entries.append((left_over, AT))
    log.fire(name)
    assert log.last == ()
    assert log.saga.state is ChangeState.EXECUTING
    log.check()
