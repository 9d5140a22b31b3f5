"""Who goes first when several changes want one target."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiinfra.coordinator.conflicts import next_in_line, precedence
from optiinfra.coordinator.saga.state import Saga
from optiinfra.schemas.money import Interval
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.vote import AgentName
from tests.factories import AT, recommendation


@dataclass(frozen=True)
class Deferred:
    change: str
    opened_at: datetime
    body: str


def deferred(proposal: Recommendation, *, waited_s: float = 0.0) -> Deferred:
    saga = Saga(change=proposal.id, recommendation=proposal)
    return Deferred(proposal.id, AT - timedelta(seconds=waited_s), saga.model_dump_json())


def saving(usd: float) -> Interval:
    return Interval(low=usd - 1, mid=usd, high=usd + 1)


def first(**proposals: Recommendation) -> str | None:
    """The name of the proposal whose turn comes."""
    names = {proposal.id: name for name, proposal in proposals.items()}
    chosen = next_in_line([deferred(proposal) for proposal in proposals.values()])
    return names.get(chosen or "")


def test_nobody_waits_nobody_is_next() -> None:
    assert next_in_line([]) is None


@pytest.mark.parametrize(
    ("sooner", "later"),
    [
        ({"proposer": AgentName.APPLICATION}, {"proposer": AgentName.PERFORMANCE}),
        ({"proposer": AgentName.PERFORMANCE}, {"proposer": AgentName.COST}),
        ({"proposer": AgentName.RESOURCE}, {"proposer": AgentName.COST}),
        ({"risk": Risk.LOW}, {"risk": Risk.MEDIUM}),
        ({"saving_usd_per_month": saving(90)}, {"saving_usd_per_month": saving(10)}),
        ({"saving_usd_per_month": saving(10)}, {}),
        ({"urgent_until": AT}, {"proposer": AgentName.APPLICATION}),
        (
            {"proposer": AgentName.PERFORMANCE, "risk": Risk.HIGH},
            {"saving_usd_per_month": saving(9000)},
        ),
        ({"risk": Risk.LOW}, {"risk": Risk.HIGH, "saving_usd_per_month": saving(9000)}),
    ],
)
def test_one_goes_before_the_other(sooner: dict[str, Any], later: dict[str, Any]) -> None:
    assert first(a=recommendation("a", **sooner), b=recommendation("b", **later)) == "a"
    assert first(b=recommendation("b", **later), a=recommendation("a", **sooner)) == "a"


def test_among_equals_who_has_waited_longest_goes_first() -> None:
    a, b = recommendation("a"), recommendation("b")
    assert next_in_line([deferred(a, waited_s=1), deferred(b, waited_s=9)]) == b.id


def test_among_those_that_came_together_the_id_decides() -> None:
    a, b = recommendation("a"), recommendation("b")
    assert next_in_line([deferred(a), deferred(b)]) == min(a.id, b.id)


@settings(deadline=None)
@given(
    st.permutations(
        [
            recommendation(n, proposer=proposer, risk=risk)
            for n, (proposer, risk) in enumerate((p, r) for p in AgentName for r in Risk)
        ]
    )
)
def test_the_order_does_not_depend_on_who_is_looked_at_first(waiting: list[Recommendation]) -> None:
    chosen = next_in_line([deferred(proposal) for proposal in waiting])
    best = min(waiting, key=lambda proposal: (precedence(proposal), proposal.id))
    assert chosen == best.id
