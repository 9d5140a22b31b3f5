"""What a ruling of the arbiter does to a change, and what it orders for others."""

from __future__ import annotations

from typing import Literal

from optiinfra.coordinator.saga.ruling import Loss
from optiinfra.coordinator.saga.staging import defer
from optiinfra.coordinator.saga.turn import Turn
from optiinfra.events import facts as f

Verdict = Literal["waits", "yields", "superseded", "merged"]


def give_orders(turn: Turn) -> None:
    """Tells those that this change replaces or goes before."""
    ruling = turn.context.world.ruling
    orders: tuple[tuple[Verdict, tuple[Loss, ...]], ...] = (
        ("superseded", ruling.supersedes),
        ("yields", ruling.yields),
    )
    for verdict, losses in orders:
        turn.orders += [_resolved(turn, loss, verdict, order=True) for loss in losses]


def is_merged(turn: Turn) -> bool:
    """Ends a change that another one makes needless; whether it did."""
    twin = turn.context.world.ruling.merged
    if twin is None:
        return False
    turn.say(_resolved(turn, twin, "merged"))
    turn.say(
        f.RecommendationSuperseded(
            change=turn.saga.change, by=twin.change, reason=f"merged: {twin.reason}"
        )
    )
    return True


def waits_behind(turn: Turn) -> bool:
    """Lets a change wait for one that goes first; whether it does."""
    ahead = turn.context.world.ruling.behind
    if ahead is None:
        return False
    if turn.saga.waiting != ahead.reason:
        turn.say(_resolved(turn, ahead, "waits"))
    defer(turn, ahead.reason, behind=ahead.change)
    return True


def lost(turn: Turn, fact: f.ConflictResolved) -> None:
    """Another change has won: this one gives way, or is not needed any more."""
    if fact.verdict == "yields":
        defer(turn, fact.reason, behind=fact.against)
    else:
        turn.say(
            f.RecommendationSuperseded(change=turn.saga.change, by=fact.against, reason=fact.reason)
        )


def _resolved(
    turn: Turn, loss: Loss, verdict: Verdict, *, order: bool = False
) -> f.ConflictResolved:
    """The record; an order speaks of the other change, anything else of this one."""
    me = turn.saga.change
    change, against = (loss.change, me) if order else (me, loss.change)
    return f.ConflictResolved(
        change=change,
        against=against,
        verdict=verdict,
        claim=turn.saga.proposal.deployment,
        rule=loss.rule,
        reason=loss.reason,
        rules_version=turn.context.rules.version,
    )
