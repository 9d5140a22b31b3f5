"""Who goes first when several changes want the same target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from optiinfra.coordinator.saga.state import Saga
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.vote import AgentName


class Waiting(Protocol):
    """A deferred change, as the order needs it; `body` is its saga as JSON."""

    @property
    def change(self) -> str: ...

    @property
    def opened_at(self) -> datetime: ...

    @property
    def body(self) -> str: ...


_CUSTOMER, _PERFORMANCE, _COST = range(3)
_INTEREST = {
    AgentName.APPLICATION: _CUSTOMER,
    AgentName.PERFORMANCE: _PERFORMANCE,
    AgentName.RESOURCE: _PERFORMANCE,
    AgentName.COST: _COST,
}
"""In whose interest an agent proposes: better answers for customers go before speed and money."""

Precedence = tuple[bool, int, int, float]


def precedence(proposal: Recommendation) -> Precedence:
    """Smaller goes first: what is lost by waiting (urgent), then customer > performance > cost,
    then the lower risk, then the higher expected saving in $ a month (none counts as 0).
    """
    saving = proposal.saving_usd_per_month
    return (
        proposal.urgent_until is None,
        _INTEREST[proposal.proposer],
        proposal.risk.rank,
        -saving.mid if saving else 0.0,
    )


def next_in_line(waiting: Sequence[Waiting]) -> str | None:
    """The change whose turn comes next; among equals who has waited longest, then by id."""

    def rank(change: Waiting) -> tuple[Precedence, datetime, str]:
        proposal = Saga.model_validate_json(change.body).proposal
        return precedence(proposal), change.opened_at, change.change

    return min(waiting, key=rank).change if waiting else None
