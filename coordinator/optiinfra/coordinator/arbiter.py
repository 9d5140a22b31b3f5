"""Who goes first when several changes want the same target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from optiinfra.coordinator.saga.state import Saga
from optiinfra.schemas.arbitration import Arbitration
from optiinfra.schemas.recommendation import Recommendation


class Waiting(Protocol):
    """A deferred change, as the order needs it; `body` is its saga as JSON."""

    @property
    def change(self) -> str: ...

    @property
    def opened_at(self) -> datetime: ...

    @property
    def body(self) -> str: ...


Precedence = tuple[int, int, float]


def precedence(proposal: Recommendation, policy: Arbitration) -> Precedence:
    """Smaller goes first: the interest, then the lower risk, then the higher expected saving
    in $ a month (none counts as 0).
    """
    saving = proposal.saving_usd_per_month
    place = policy.order.index(policy.interest(proposal))
    return place, proposal.risk.rank, -saving.mid if saving else 0.0


def in_turn(waiting: Sequence[Waiting], at: datetime, policy: Arbitration) -> list[Recommendation]:
    """Who goes first: what is lost by waiting (urgent), then who has waited too long (the
    longest first), then by precedence; among equals who has waited longest, then by id.
    """
    ranked = [(change, Saga.model_validate_json(change.body).proposal) for change in waiting]

    def rank(pair: tuple[Waiting, Recommendation]) -> tuple[object, ...]:
        change, proposal = pair
        aged = (at - change.opened_at).total_seconds() > policy.max_wait_s
        by_value = (0, 0, 0.0) if aged else precedence(proposal, policy)
        return (
            proposal.urgent_until is None,
            not aged,
            by_value,
            change.opened_at,
            change.change,
        )

    return [proposal for _, proposal in sorted(ranked, key=rank)]


def woken_by(
    freed: str, waiting: Sequence[Waiting], at: datetime, policy: Arbitration
) -> list[str]:
    """The changes whose turn comes when a deployment becomes free: the first in turn of all
    the tenant's (it may wait for a limit), and each that wanted what is free, as far as those
    before it leave room.
    """
    chosen: list[Recommendation] = []
    ordered = in_turn(waiting, at, policy)
    for proposal in ordered:
        target = proposal.deployment
        wanted = policy.overlap(target, freed)
        if wanted and not any(policy.overlap(target, one.deployment) for one in chosen):
            chosen.append(proposal)
    return list(dict.fromkeys(proposal.id for proposal in [*chosen, *ordered[:1]]))
