"""What follows from a fact: one table from facts and timers to decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from optiinfra.coordinator.saga import conflict, control, staging, voting
from optiinfra.coordinator.saga.evolve import counted, evolve
from optiinfra.coordinator.saga.freeze import FREEZE
from optiinfra.coordinator.saga.state import Context, Saga
from optiinfra.coordinator.saga.turn import Turn
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.tenant import POLICY


@dataclass(frozen=True, slots=True)
class Advance:
    """A saga after one fact, with the facts that the coordinator says because of it.

    `said` is empty and `changed` False when the fact was repeated or came too late.
    """

    saga: Saga
    said: tuple[f.Fact, ...]
    changed: bool
    orders: tuple[f.ConflictResolved, ...] = ()
    """What becomes of other changes because of this one: facts for their sagas."""


def advance(saga: Saga, fact: f.Fact, context: Context) -> Advance:
    """Takes one fact in. Raises `Rejected` for one that can never be true of this change.

    What only the coordinator says is in the log already: hearing it again changes nothing, and
    so does what claims to be its word, such as a rule's grant.
    """
    if type(fact) not in _HEARD or _is_a_rules_word(fact):
        return Advance(saga, (), changed=False)
    taken = evolve(saga, fact, context.at)
    if taken is saga:
        return Advance(saga, (), changed=False)
    turn = Turn(counted(taken), context)
    react = _REACTIONS.get(type(fact))
    if react is not None and taken.recommendation is not None:
        react(turn, fact)
    return Advance(turn.saga, tuple(turn.said), changed=True, orders=tuple(turn.orders))


def _is_a_rules_word(fact: f.Fact) -> bool:
    if not isinstance(fact, f.ApprovalGranted | f.ApprovalDenied):
        return False
    return fact.approval.by.kind == POLICY


def _turn_came(turn: Turn, fact: f.TimerFired) -> None:
    if turn.saga.state is ChangeState.DEFERRED:
        voting.take_turn(turn)
    elif turn.saga.paused_by == FREEZE:
        staging.thaw(turn)
    elif turn.saga.state is ChangeState.AWAITING_APPROVAL:
        voting.slept(turn)


_TIMERS: dict[TimerName, Callable[[Turn, f.TimerFired], None]] = {
    TimerName.VOTE_REMINDER: voting.remind,
    TimerName.VOTE_DEADLINE: voting.vote_deadline,
    TimerName.REVOTE: voting.revote,
    TimerName.APPROVAL_EXPIRY: voting.approval_expired,
    TimerName.APPLY_DEADLINE: staging.apply_deadline,
    TimerName.SOAK: staging.look,
    TimerName.LOOK: staging.look,
    TimerName.LOOK_DEADLINE: staging.look_deadline,
    TimerName.HOLD_LIMIT: staging.hold_limit,
    TimerName.ROLLBACK_DEADLINE: staging.rollback_deadline,
    TimerName.TURN: _turn_came,
}


def _timer_fired(turn: Turn, fact: f.TimerFired) -> None:
    _TIMERS[fact.name](turn, fact)


_REACTIONS: dict[type, Callable[[Turn, Any], None]] = {
    f.RecommendationProposed: voting.proposed,
    f.VoteCast: voting.voted,
    f.ApprovalGranted: voting.granted,
    f.ApprovalDenied: voting.denied,
    f.RecommendationSnoozed: voting.put_off,
    f.RecommendationWoken: voting.put_off,
    f.ConflictResolved: conflict.lost,
    f.ExecutionStaged: staging.staged,
    f.ExecutionFailed: staging.execution_failed,
    f.GateAnswered: staging.answered,
    f.QualityRegressed: staging.regressed,
    f.RollbackCompleted: staging.rolled_back,
    c.ControlRequested: control.controlled,
    f.TimerFired: _timer_fired,
}
_HEARD = frozenset(_REACTIONS) | {f.ExecutionStarted, f.OutcomeRecorded}
