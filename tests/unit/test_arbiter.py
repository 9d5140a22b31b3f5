"""Who goes first when several changes want one target."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiinfra.coordinator.arbiter import in_turn, precedence, woken_by
from optiinfra.coordinator.saga.state import Saga
from optiinfra.schemas.arbitration import Arbitration, Interest
from optiinfra.schemas.money import Interval
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.vote import AgentName
from tests.factories import AT, recommendation

DEFAULT = Arbitration()
BOUND = Arbitration(needs={"chat": ("embed",), "search": ("embed",)})


def next_in_line(waiting: list[Deferred], policy: Arbitration = DEFAULT) -> str | None:
    return next((proposal.id for proposal in in_turn(waiting, AT, policy)), None)


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
    best = min(waiting, key=lambda proposal: (precedence(proposal, DEFAULT), proposal.id))
    assert chosen == best.id


def test_the_policy_orders_the_interests_and_says_whose_good_a_kind_is_for() -> None:
    cost, speed = recommendation("a"), recommendation("b", proposer=AgentName.PERFORMANCE)
    waiting = [deferred(cost), deferred(speed)]
    turned = Arbitration(order=(Interest.COST, Interest.PERFORMANCE, Interest.CUSTOMER))
    customer = Arbitration(interests={"spot_migration": Interest.CUSTOMER})
    assert next_in_line(waiting) == speed.id
    assert next_in_line(waiting, turned) == cost.id
    assert {customer.interest(one) for one in (cost, speed)} == {Interest.CUSTOMER}


def test_who_has_waited_too_long_goes_before_all_but_the_urgent() -> None:
    old, new = recommendation("a"), recommendation("b", proposer=AgentName.APPLICATION)
    urgent = recommendation("c", urgent_until=AT)
    waiting = [deferred(new), deferred(old, waited_s=DEFAULT.max_wait_s + 1)]
    assert next_in_line(waiting) == old.id
    assert next_in_line([*waiting, deferred(urgent)]) == urgent.id
    assert next_in_line([deferred(new), deferred(old, waited_s=DEFAULT.max_wait_s)]) == new.id


def test_who_has_waited_longest_is_first_of_those_that_waited_too_long() -> None:
    limit = DEFAULT.max_wait_s
    old, older = recommendation("a", proposer=AgentName.APPLICATION), recommendation("b")
    waiting = [deferred(old, waited_s=limit + 1), deferred(older, waited_s=limit + 2)]
    assert next_in_line(waiting) == older.id


@settings(deadline=None, max_examples=30)
@given(per_turn=st.integers(1, 3), turn_s=st.sampled_from([600.0, 3600.0]))
def test_nobody_waits_for_ever_behind_a_stream_of_better_ones(per_turn: int, turn_s: float) -> None:
    patient = recommendation("patient", risk=Risk.CRITICAL)
    came = {patient.id: (patient, 0)}
    for turn in range(200):
        for n in range(per_turn):
            better = recommendation((turn, n), proposer=AgentName.APPLICATION)
            came[better.id] = (better, turn)
        waiting = [deferred(one, waited_s=(turn - since) * turn_s) for one, since in came.values()]
        if (chosen := next_in_line(waiting)) == patient.id:
            break
        del came[chosen or ""]
    assert turn * turn_s <= DEFAULT.max_wait_s + turn_s


def test_what_becomes_free_wakes_all_that_can_go_side_by_side() -> None:
    chat, again = recommendation("a"), recommendation("b", risk=Risk.MEDIUM)
    embed = recommendation("c", deployment="embed", risk=Risk.HIGH)
    both = [deferred(chat), deferred(again), deferred(embed)]
    apart = Arbitration(needs={"judge": ("chat", "embed")})
    assert woken_by("judge", both, AT, apart) == [chat.id, embed.id]
    assert woken_by("chat", both, AT, BOUND) == [chat.id]
    assert woken_by("elsewhere", both, AT, DEFAULT) == [chat.id]
    assert woken_by("embed", both, AT, DEFAULT) == [embed.id, chat.id]
    assert woken_by("chat", [], AT, DEFAULT) == []


@settings(deadline=None, max_examples=50)
@given(
    names=st.lists(st.sampled_from(["chat", "search", "embed", "other"]), max_size=6),
    data=st.data(),
)
def test_the_woken_do_not_depend_on_the_order_of_arrival(names: list[str], data: Any) -> None:
    waiting = [deferred(recommendation(n, deployment=name)) for n, name in enumerate(names)]
    shuffled = data.draw(st.permutations(waiting))
    assert woken_by("embed", waiting, AT, BOUND) == woken_by("embed", shuffled, AT, BOUND)


def test_two_that_need_the_same_are_one_target() -> None:
    assert BOUND.overlap("chat", "search")
    assert BOUND.overlap("chat", "embed")
    assert DEFAULT.overlap("chat", "chat")
    assert not DEFAULT.overlap("chat", "search")
    assert BOUND.shared("chat", "search") == "embed"
    assert BOUND.shared("chat", "chat") is None
    assert BOUND.shared("chat", "other") is None


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"order": ["cost", "cost", "customer"]}, "each of customer, performance, cost once"),
        ({"interests": {"spot": "cost"}}, "no change is of kind 'spot'"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Arbitration.model_validate(wrong)
