"""Freeze windows: nothing begins inside, what runs may be halted, what must be undone is undone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from optiinfra.coordinator.saga.freeze import FREEZE, frozen
from optiinfra.coordinator.saga.state import STOP_SWITCH, Context, World, later
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.freezes import FreezeWindow
from optiinfra.schemas.rollout import StepKind
from optiinfra.schemas.rules import Rules
from tests.factories import AT, recommendation
from tests.saga_log import ASK, AUTO, SOAKED, Log

END = AT + timedelta(hours=3)
URGENT = recommendation("urgent", urgent_until=AT + timedelta(hours=9), rollout=SOAKED)
LIFTED = AUTO


def window(name: str = "quarter-end", **fields: Any) -> FreezeWindow:
    once = {} if "weekly" in fields else {"starts_at": AT, "ends_at": END}
    return FreezeWindow.model_validate({"name": name, **once, **fields})


def freezing(*windows: FreezeWindow, rules: Rules = AUTO) -> Rules:
    return rules.model_copy(update={"freezes": windows})


def at_end(log: Log) -> bool:
    return log.saga.timers[TimerName.TURN].fire_at == END


# The window.


def test_a_window_that_comes_once_holds_from_its_start_to_before_its_end() -> None:
    once = window()
    assert once.until(AT - timedelta(seconds=1)) is None
    assert once.until(AT) == END
    assert once.until(END) is None


def test_a_window_that_comes_weekly_ends_each_time() -> None:
    noon = window(weekly={"days": ["mon"], "start": "11:00", "end": "13:00"})
    assert noon.until(AT) == AT + timedelta(hours=1)
    assert noon.until(AT + timedelta(days=1)) is None


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"starts_at": None}, "give either starts_at and ends_at, or weekly"),
        ({"starts_at": None, "ends_at": None}, "give either starts_at and ends_at, or weekly"),
        ({"weekly": {}, "ends_at": END}, "give either starts_at and ends_at, or weekly"),
        ({"ends_at": AT}, "before it starts"),
        ({"weekly": {}}, "it never ends; turn the stop switch on"),
        ({"starts_at": "2026-01-05T12:00:00"}, "timezone"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        window(**fields)


def test_of_several_freezes_the_longest_counts_and_only_those_that_are_meant() -> None:
    short = window("short", ends_at=AT + timedelta(hours=1))
    elsewhere = window("elsewhere", deployments=["search"], ends_at=END + timedelta(days=1))
    context = Context(at=AT, rules=freezing(short, window(), elsewhere))
    held = frozen(recommendation(), context, urgent=False)
    assert held is not None
    assert held.reason == "freeze 'quarter-end' until 2026-01-05 15:00 UTC"
    assert frozen(recommendation(), context, urgent=True) is None
    assert frozen(recommendation(), context, urgent=False, stages=True) is None
    assert frozen(recommendation(), Context(at=END, rules=context.rules), urgent=False) is None


# No beginning inside.


def test_an_approved_change_waits_for_the_end_and_then_goes_on_fresh_votes() -> None:
    log = Log(rules=freezing(window())).open().vote()
    assert log.kinds() == ["approval.granted", "change.approved", "change.deferred"]
    assert log.saga.waiting == "freeze 'quarter-end' until 2026-01-05 15:00 UTC"
    assert at_end(log)
    assert log.said(c.ExecutionRequested) == []
    log.fire(TimerName.TURN)
    assert log.kinds() == ["vote.requested"]
    assert log.vote().saga.state is ChangeState.EXECUTING
    log.check()


def test_people_may_say_yes_during_a_freeze() -> None:
    log = Log(rules=freezing(window(), rules=ASK)).open().vote()
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert log.decide().saga.state is ChangeState.DEFERRED
    assert at_end(log)


def test_a_turn_that_comes_early_waits_on_and_says_nothing_again() -> None:
    log = Log(rules=freezing(window())).open().vote()
    log.hear(
        f.TimerFired(
            change=log.change, name=TimerName.TURN, key=log.saga.timers[TimerName.TURN].key
        )
    )
    assert log.kinds() == []
    assert at_end(log)


def test_a_freeze_that_is_lifted_lets_the_change_go_at_its_next_turn() -> None:
    log = Log(rules=freezing(window())).open().vote()
    log.rules = LIFTED
    key = log.saga.timers[TimerName.TURN].key
    log.hear(f.TimerFired(change=log.change, name=TimerName.TURN, key=key)).vote()
    assert log.saga.state is ChangeState.EXECUTING


def test_what_waits_for_its_target_looks_as_often_as_ever() -> None:
    log = Log(rules=freezing(window()))
    log.world = World(executing="f" * 32)
    log.open()
    assert log.saga.timers[TimerName.TURN].fire_at == later(AT, AUTO.retry_turn_s)


@pytest.mark.parametrize(("also", "state"), [(False, "executing"), (True, "deferred")])
def test_what_is_urgent_passes_unless_it_is_told_not_to(also: bool, state: str) -> None:  # noqa: FBT001
    log = Log(URGENT, rules=freezing(window(also_urgent=also))).open().vote()
    assert log.saga.state == state


@pytest.mark.parametrize(
    "fields",
    [
        {"kinds": ["right_sizing"]},
        {"deployments": ["search"]},
        {"ends_at": AT + timedelta(seconds=1)},
    ],
)
def test_a_freeze_of_something_else_or_of_another_time_holds_nothing_up(
    fields: dict[str, Any],
) -> None:
    log = Log(rules=freezing(window(**fields))).wait(2)
    assert log.open().vote().saga.state is ChangeState.EXECUTING


# Changes under way.


def soaking_into(*windows: FreezeWindow, proposal: Any = None) -> Log:
    """In force at its first stage, with the freeze in the policy from then on."""
    log = Log(proposal).to_soaking()
    log.rules = freezing(*windows)
    return log


def test_a_change_under_way_goes_on_in_a_plain_freeze() -> None:
    log = soaking_into(window()).fire(TimerName.SOAK).answer()
    assert log.saga.phase is Phase.APPLYING


def test_a_freeze_that_halts_stages_pauses_and_lets_go_by_itself() -> None:
    log = soaking_into(window(halt_stages=True)).fire(TimerName.SOAK).answer()
    assert log.kinds() == ["gate.closed", "change.paused"]
    assert log.saga.paused_by == FREEZE
    assert at_end(log)
    log.fire(TimerName.TURN)
    assert log.kinds() == ["change.resumed", "execution.requested"]
    assert log.saga.phase is Phase.APPLYING
    log.check()


def test_a_halting_freeze_holds_the_release_of_what_was_replaced_too() -> None:
    log = Log()
    log.to_applying()
    for _ in log.proposal.rollout.stages[:-1]:
        log.pass_stage()
    log.staged().fire(TimerName.SOAK)
    log.rules = freezing(window(halt_stages=True))
    log.answer()
    assert log.saga.paused_by == FREEZE
    assert log.fire(TimerName.TURN).saga.step is not None
    assert log.saga.step is not None
    assert log.saga.step.kind is StepKind.FINISH


def test_a_freeze_that_follows_halts_again() -> None:
    second = window("second", starts_at=END, ends_at=END + timedelta(hours=1), halt_stages=True)
    log = soaking_into(window(halt_stages=True), second).fire(TimerName.SOAK).answer()
    log.fire(TimerName.TURN)
    assert log.kinds() == ["change.resumed", "change.paused"]
    assert "'second'" in (log.saga.waiting or "")


def test_what_is_urgent_and_under_way_is_not_halted() -> None:
    log = soaking_into(window(halt_stages=True), proposal=URGENT).fire(TimerName.SOAK).answer()
    assert log.saga.phase is Phase.APPLYING


def test_an_operator_who_resumes_in_a_freeze_is_told_that_it_still_holds() -> None:
    log = soaking_into(window(halt_stages=True)).fire(TimerName.SOAK).answer()
    log.control(ControlVerb.RESUME)
    assert log.kinds() == ["change.resumed", "change.paused"]
    assert log.saga.paused_by == FREEZE


def test_an_operators_pause_outlives_the_freeze() -> None:
    log = soaking_into(window(halt_stages=True)).fire(TimerName.SOAK).answer()
    log.control(ControlVerb.PAUSE)
    assert log.saga.paused_by == "ana"
    log.fire(TimerName.TURN)
    assert log.kinds() == []
    log.control(ControlVerb.RESUME)
    assert log.saga.phase is Phase.APPLYING


def test_the_stop_switch_that_came_meanwhile_takes_over_at_the_end() -> None:
    log = soaking_into(window(halt_stages=True)).fire(TimerName.SOAK).answer()
    log.world = World(stopped=True)
    log.fire(TimerName.TURN)
    assert log.saga.paused_by == STOP_SWITCH


def test_undoing_is_never_held_up() -> None:
    log = soaking_into(window(halt_stages=True)).regress()
    assert log.saga.state is ChangeState.ROLLING_BACK
    halted = soaking_into(window(halt_stages=True)).fire(TimerName.SOAK).answer()
    assert halted.control(ControlVerb.ROLLBACK).saga.state is ChangeState.ROLLING_BACK
    halted.hear(f.TimerFired(change=halted.change, name=TimerName.TURN, key="stale"))
    assert halted.undone().saga.state is ChangeState.ROLLED_BACK


# Limits.


def test_a_target_has_a_limit_of_its_own_an_hour() -> None:
    rules = AUTO.model_copy(update={"movers_per_hour_per_target": 2})
    log = Log(rules=rules)
    log.world = World(moved_last_hour=2, moved_last_hour_here=2)
    log.open().vote()
    assert log.saga.waiting == "2 changes of chat in the last hour, the policy allows 2 a target"
    log.world = World(moved_last_hour=9, moved_last_hour_here=1)
    assert log.fire(TimerName.TURN).vote().saga.state is ChangeState.EXECUTING


def test_what_is_urgent_is_not_held_up_by_the_limit_of_its_target() -> None:
    rules = AUTO.model_copy(update={"movers_per_hour_per_target": 1})
    log = Log(URGENT, rules=rules)
    log.world = World(moved_last_hour_here=5)
    assert log.open().vote().saga.state is ChangeState.EXECUTING
