"""What an operator may ask of a change that is under way."""

from __future__ import annotations

from collections.abc import Callable

from optiinfra.coordinator.saga.freeze import FREEZE
from optiinfra.coordinator.saga.staging import close_look_as, proceed, roll_back
from optiinfra.coordinator.saga.state import STOP_SWITCH
from optiinfra.coordinator.saga.turn import Turn
from optiinfra.coordinator.saga.voting import begin
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.schemas.change import ChangeState, ControlVerb, Phase
from optiinfra.schemas.rollout import GateVerdict


def controlled(turn: Turn, fact: c.ControlRequested) -> None:
    _CONTROLS[fact.verb](turn, fact)


def _pause(turn: Turn, fact: c.ControlRequested) -> None:
    """A person's pause takes the place of the stop switch's or a freeze's, so that only a person
    ends it.
    """
    by_person = turn.saga.paused_by not in (None, STOP_SWITCH, FREEZE)
    again = by_person or turn.saga.paused_by == fact.by
    if not again and turn.saga.state is not ChangeState.ROLLING_BACK:
        reason = fact.reason or "paused by an operator"
        turn.say(f.ChangePaused(change=turn.saga.change, by=fact.by, reason=reason))


def _resume(turn: Turn, fact: c.ControlRequested) -> None:
    if turn.saga.paused_by is None:
        return
    turn.say(f.ChangeResumed(change=turn.saga.change, by=fact.by))
    if turn.saga.state is ChangeState.APPROVED:
        begin(turn)
    elif turn.saga.passed:
        proceed(turn)


def _promote(turn: Turn, fact: c.ControlRequested) -> None:
    """An operator takes the gate's decision on himself; only a held or soaking stage allows it."""
    in_stage = turn.saga.phase in (Phase.SOAKING, Phase.GATING)
    if in_stage and not turn.saga.passed:
        close_look_as(turn, GateVerdict.PASS, (f"promoted by {fact.by}: {fact.reason}",))
        proceed(turn)


def _abort(turn: Turn, fact: c.ControlRequested) -> None:
    reason = f"{fact.verb} by {fact.by}" + (f": {fact.reason}" if fact.reason else "")
    if not turn.saga.touched:
        turn.say(f.ChangeCancelled(change=turn.saga.change, by=fact.by, reason=reason))
    elif turn.saga.state is ChangeState.EXECUTING:
        roll_back(turn, reason)


_CONTROLS: dict[ControlVerb, Callable[[Turn, c.ControlRequested], None]] = {
    ControlVerb.PAUSE: _pause,
    ControlVerb.RESUME: _resume,
    ControlVerb.PROMOTE: _promote,
    ControlVerb.ABORT: _abort,
    ControlVerb.ROLLBACK: _abort,
}
