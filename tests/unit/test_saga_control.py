"""What operators and the stop switch can do, and what an ended change still hears."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from optiinfra.coordinator.saga.state import STOP_SWITCH, World
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.rollout import StepKind
from optiinfra.schemas.telemetry import Unknown, UnknownReason
from optiinfra.schemas.vote import AgentName, Verdict
from tests.factories import AT, recommendation, rollout
from tests.saga_log import Log

PAUSE, RESUME, PROMOTE = ControlVerb.PAUSE, ControlVerb.RESUME, ControlVerb.PROMOTE
UNDO = [ControlVerb.ABORT, ControlVerb.ROLLBACK]
BUSY = World(executing="f" * 32)


def deferred() -> Log:
    log = Log()
    log.world = BUSY
    log.open()
    log.world = World()
    return log


def paused_between_stages() -> Log:
    log = Log().to_applying().control(PAUSE).pass_stage()
    assert log.saga.passed
    return log


UNTOUCHED: dict[str, Callable[[], Log]] = {
    "deferred": deferred,
    "voting": lambda: Log().open(),
    "awaiting": lambda: Log().to_awaiting(),
    "approved": lambda: Log().open().control(PAUSE).vote(),
}
EXECUTING: dict[str, Callable[[], Log]] = {
    "applying": lambda: Log().to_applying(),
    "soaking": lambda: Log().to_soaking(),
    "gating": lambda: Log().to_gating(),
    "finishing": lambda: Log().to_finishing(),
    "between stages": paused_between_stages,
}
ENDED: dict[str, Callable[[], Log]] = {
    "completed": lambda: Log().to_finishing().staged(),
    "rolled back": lambda: Log().to_gating().regress().undone(),
    "failed": lambda: Log().to_gating().regress().undone(proved=False),
    "vetoed": lambda: Log().open().vote("resource", verdict=Verdict.REJECT),
    "rejected": lambda: Log().to_awaiting().decide(granted=False),
    "expired": lambda: Log().to_awaiting().fire(TimerName.APPROVAL_EXPIRY),
    "cancelled": lambda: Log().open().control(ControlVerb.ABORT),
}


@pytest.mark.parametrize("verb", UNDO)
@pytest.mark.parametrize("state", UNTOUCHED)
def test_what_has_touched_nothing_is_cancelled(state: str, verb: ControlVerb) -> None:
    log = UNTOUCHED[state]().control(verb, reason="")
    assert log.saga.state is ChangeState.CANCELLED
    assert log.saga.end_reason == f"{verb} by ana"
    assert log.said(c.RollbackRequested) == []
    log.check()


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("verb", UNDO)
@pytest.mark.parametrize("state", EXECUTING)
def test_what_is_being_carried_out_is_undone_also_while_paused(
    *, state: str, verb: ControlVerb, paused: bool
) -> None:
    log = EXECUTING[state]()
    if paused:
        log.control(PAUSE)
    log.control(verb)
    assert log.saga.state is ChangeState.ROLLING_BACK
    assert log.saga.paused_by is None
    assert log.said(c.RollbackRequested)[0].reason == f"{verb} by ana: because"
    assert log.undone().saga.state is ChangeState.ROLLED_BACK
    log.check()


@pytest.mark.parametrize("verb", [*ControlVerb])
@pytest.mark.parametrize("from_state", EXECUTING)
def test_no_wish_disturbs_an_undo(from_state: str, verb: ControlVerb) -> None:
    log = EXECUTING[from_state]().regress().control(verb)
    assert log.last == ()
    assert log.saga.state is ChangeState.ROLLING_BACK
    assert log.saga.paused_by is None
    assert log.control(RESUME).last == ()
    assert len(log.said(c.RollbackRequested)) == 1


def test_pausing_lets_the_stage_end_and_holds_the_next() -> None:
    log = paused_between_stages()
    assert log.kinds() == ["gate.closed"]
    assert (log.saga.waiting, log.saga.paused_by) == ("because", "ana")
    log.control(RESUME)
    assert log.kinds() == ["change.resumed", "execution.requested"]
    assert log.saga.step is not None
    assert log.saga.step.stage == 1
    log.check()


def test_a_pause_does_not_suspend_the_hold_limit() -> None:
    log = Log().to_gating().control(PAUSE).fire(TimerName.LOOK_DEADLINE)
    assert log.fire(TimerName.HOLD_LIMIT).saga.state is ChangeState.ROLLING_BACK


def test_a_pause_does_not_suspend_the_executors_deadline() -> None:
    log = Log().to_applying().control(PAUSE).fire(TimerName.APPLY_DEADLINE)
    assert log.saga.state is ChangeState.ROLLING_BACK


def test_a_pause_while_deciding_holds_the_first_stage() -> None:
    log = Log().open().control(PAUSE, reason="")
    assert log.said(f.ChangePaused)[0].reason == "paused by an operator"
    assert log.vote().saga.state is ChangeState.APPROVED
    assert log.said(c.ExecutionRequested) == []
    assert log.control(RESUME).saga.state is ChangeState.EXECUTING


def test_resuming_a_stage_that_has_not_passed_waits_for_its_gate() -> None:
    log = Log().to_gating().control(PAUSE).control(RESUME)
    assert log.kinds() == ["change.resumed"]
    assert log.saga.phase is Phase.GATING


def test_pausing_twice_and_resuming_what_runs_say_nothing() -> None:
    log = Log().to_gating().control(RESUME)
    assert log.last == ()
    assert log.control(PAUSE).control(PAUSE, by="bob").last == ()
    assert log.saga.paused_by == "ana"


def test_what_is_hindered_when_it_is_resumed_waits_for_its_turn() -> None:
    log = UNTOUCHED["approved"]()
    log.world = BUSY
    log.control(RESUME)
    assert log.kinds() == ["change.resumed", "change.deferred"]
    assert TimerName.TURN in log.saga.timers


@pytest.mark.parametrize("state", ["soaking", "gating"])
def test_promoting_takes_the_gates_decision(state: str) -> None:
    log = EXECUTING[state]().control(PROMOTE)
    (closed,) = log.said(f.GateClosed)
    assert (closed.verdict, closed.look) == ("pass", 1)
    assert closed.reasons == ("promoted by ana: because",)
    assert log.saga.step is not None
    assert log.saga.step.stage == 1
    log.check()


@pytest.mark.parametrize("state", ["applying", "finishing", "between stages"])
def test_there_is_nothing_to_promote_outside_a_stages_wait(state: str) -> None:
    assert EXECUTING[state]().control(PROMOTE).last == ()


@pytest.mark.parametrize("state", UNTOUCHED)
def test_what_is_not_being_carried_out_cannot_be_promoted(state: str) -> None:
    assert UNTOUCHED[state]().control(PROMOTE).last == ()


def test_promoting_while_paused_goes_on_when_resumed() -> None:
    log = Log().to_soaking().control(PAUSE).control(PROMOTE)
    assert log.kinds() == ["gate.closed"]
    assert log.control(RESUME).kinds() == ["change.resumed", "execution.requested"]


def test_promoting_the_last_stage_finishes() -> None:
    log = Log(recommendation(rollout=rollout(1.0, soak_s=1.0))).to_soaking().control(PROMOTE)
    assert log.saga.step is not None
    assert log.saga.step.kind is StepKind.FINISH


@pytest.mark.parametrize("state", ["approved", "gating"])
def test_the_stop_switch_holds_the_next_stage(state: str) -> None:
    log = Log()
    log.world = World(stopped=True)
    if state == "gating":
        log.world = World()
        log.to_gating()
        log.world = World(stopped=True)
        log.answer()
    else:
        log.open().vote()
    assert log.saga.paused_by == STOP_SWITCH
    assert log.kinds()[-1] == "change.paused"
    log.world = World()
    log.control(RESUME, by=STOP_SWITCH)
    assert log.kinds() == ["change.resumed", "execution.requested"]


def test_resuming_against_the_stop_switch_pauses_again() -> None:
    log = paused_between_stages()
    log.world = World(stopped=True)
    log.control(RESUME)
    assert log.kinds() == ["change.resumed", "change.paused"]
    assert log.saga.paused_by == STOP_SWITCH


def test_the_stop_switch_lets_an_undo_run() -> None:
    log = Log().to_gating()
    log.world = World(stopped=True)
    assert log.regress().undone().saga.state is ChangeState.ROLLED_BACK


def test_a_persons_pause_takes_the_place_of_the_switchs_and_not_the_other_way() -> None:
    log = Log().to_gating().control(PAUSE, by=STOP_SWITCH).control(PAUSE, by=STOP_SWITCH)
    assert len(log.said(f.ChangePaused)) == 1
    log.control(PAUSE)
    assert log.saga.paused_by == "ana"
    assert log.control(PAUSE, by=STOP_SWITCH).last == ()
    assert log.saga.paused_by == "ana"


def test_the_switch_going_off_during_an_undo_requests_no_stage() -> None:
    log = Log().to_applying().control(PAUSE, by=STOP_SWITCH).pass_stage().regress()
    log.control(RESUME, by=STOP_SWITCH)
    assert log.last == ()
    assert log.saga.state is ChangeState.ROLLING_BACK


def test_a_wish_for_what_was_never_proposed_can_never_be_true() -> None:
    with pytest.raises(Rejected, match="nothing was proposed"):
        Log().vote().control(ControlVerb.ABORT)


def outcome(log: Log) -> f.OutcomeRecorded:
    unknown = Unknown(reason=UnknownReason.NO_TRAFFIC)
    return f.OutcomeRecorded(
        outcome=Outcome(
            change=log.change,
            deployment="chat",
            kind="spot_migration",
            terminal=log.saga.state,
            realised_usd_per_month=unknown,
            usd_per_hour_before=unknown,
            usd_per_hour_after=unknown,
            ttft_p95_s=unknown,
            tpot_p95_s=unknown,
            quality_mean=unknown,
            features={},
            at=AT,
        )
    )


@pytest.mark.parametrize("end", ENDED)
def test_an_ended_change_hears_only_its_outcome(end: str) -> None:
    log = ENDED[end]()
    before = log.saga
    assert before.state.is_terminal
    log.open().decide().decide(granted=False).regress().undone()
    for verb in ControlVerb:
        log.control(verb)
    for name in TimerName:
        log.fire(name, key=1)
    if before.state is not ChangeState.VETOED:
        log.vote(verdict=Verdict.REJECT)
    if before.step is not None:
        log.staged()
        fence = log.said(c.ExecutionRequested)[-1].fence
        begun = {"change": log.change, "step": before.step, "fence": fence}
        log.hear(f.ExecutionStarted(executor=AgentName.COST, **begun))
    assert log.saga is before
    log.hear(outcome(log))
    assert (log.saga.state, log.saga.outcome_recorded) == (before.state, True)
    assert log.hear(outcome(log)).saga.version == before.version + 1
    log.check()


@pytest.mark.parametrize("end", ENDED)
def test_what_only_the_coordinator_says_changes_nothing_when_heard_again(end: str) -> None:
    log = ENDED[end]()
    replayed = [fact for fact, _ in log.entries]
    fresh = Log(log.proposal, log.rules)
    words = (f.ChangeVetoed, f.ChangeCompleted, c.ExecutionRequested, c.RollbackRequested)
    fresh.hear(*(fact for fact in replayed if isinstance(fact, words)))
    fresh.hear(f.RecommendationSuperseded(change=log.change, by="e" * 32, reason="newer"))
    assert fresh.saga.version == 0
