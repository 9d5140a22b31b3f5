"""Who goes first when several changes want one target."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiinfra.coordinator.arbiter import (
    Rival,
    arbitrate,
    in_turn,
    over_budget,
    precedence,
    replaced_by,
    woken_by,
)
from optiinfra.coordinator.saga.ruling import Ruling
from optiinfra.coordinator.saga.state import Saga
from optiinfra.schemas.arbitration import Arbitration, Budget, Interest
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.money import Interval
from optiinfra.schemas.recommendation import Recommendation, Risk, SpotMigration
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


# Between open changes of one deployment


def rival(
    name: str,
    state: ChangeState = ChangeState.VOTING,
    *,
    waited_s: float = 0.0,
    nudged: bool = False,
    preempted: int = 0,
    **changes: Any,
) -> Rival:
    saga = Saga(
        change=recommendation(name).id,
        state=state,
        recommendation=recommendation(name, **changes),
        preempted=preempted,
        touched=state is ChangeState.EXECUTING,
    )
    return Rival(saga, AT - timedelta(seconds=waited_s), nudged)


def ruled(me: Rival, *rivals: Rival, policy: Arbitration = DEFAULT, at: datetime = AT) -> Ruling:
    return arbitrate(me.saga, me.opened_at, rivals, at, policy)


BETTER: dict[str, Any] = {"proposer": AgentName.APPLICATION}


def test_nobody_else_wants_it() -> None:
    assert ruled(rival("a")) == Ruling()


def test_a_better_one_makes_the_one_that_is_being_decided_give_way() -> None:
    found = ruled(rival("new", **BETTER), rival("old"))
    assert [(loss.change, loss.rule) for loss in found.yields] == [
        (recommendation("old").id, "interest")
    ]
    assert found.behind is None


def test_a_worse_one_waits_and_is_told_by_which_rule() -> None:
    found = ruled(rival("new", risk=Risk.HIGH), rival("old"))
    assert found.behind is not None
    assert (found.behind.change, found.behind.rule) == (recommendation("old").id, "risk")
    assert found.yields == ()


def test_among_equals_the_older_goes_first() -> None:
    found = ruled(rival("new"), rival("old", waited_s=5))
    assert found.behind is not None
    assert found.behind.rule == "age"
    assert ruled(rival("old", waited_s=5), rival("new")).yields != ()


def test_what_is_urgent_goes_beside_and_what_is_not_waits_for_it() -> None:
    urgent: dict[str, Any] = {"urgent_until": AT + timedelta(hours=1)}
    assert ruled(rival("new", **urgent), rival("old", **BETTER)) == Ruling()
    found = ruled(rival("new", **BETTER), rival("old", **urgent))
    assert found.behind is not None


def test_nobody_gives_way_more_often_than_the_policy_says_nor_after_a_long_wait() -> None:
    for tired in (rival("old", preempted=3), rival("old", waited_s=30_000)):
        found = ruled(rival("new", **BETTER), tired)
        assert found.behind is not None
        assert found.behind.rule in ("preemptions", "patience")


def test_of_two_that_have_waited_too_long_the_older_goes_first() -> None:
    me, other = rival("me", waited_s=30_000), rival("other", waited_s=40_000, **BETTER)
    found = ruled(me, other)
    assert found.behind is not None
    assert found.behind.rule == "patience"


def test_a_newcomer_does_not_pass_one_whose_turn_has_come() -> None:
    waits = rival("old", ChangeState.DEFERRED, nudged=True, **BETTER)
    found = ruled(rival("new"), waits)
    assert found.behind is not None
    assert ruled(rival("new"), rival("old", ChangeState.DEFERRED, **BETTER)) == Ruling()
    assert (
        ruled(rival("new", **BETTER), rival("old", ChangeState.DEFERRED, nudged=True)) == Ruling()
    )


def test_what_says_the_same_is_merged_into_what_is_there_even_while_it_is_carried_out() -> None:
    spec = recommendation("x").spec
    for state in (ChangeState.DEFERRED, ChangeState.VOTING, ChangeState.EXECUTING):
        found = ruled(rival("new", spec=spec), rival("old", state, spec=spec))
        assert found.merged is not None
        assert found.merged.change == recommendation("old").id


def test_a_newer_proposal_for_the_same_replicas_replaces_the_older_unless_it_has_begun() -> None:
    old_spec = recommendation("x").spec
    assert isinstance(old_spec, SpotMigration)
    new_spec = old_spec.model_copy(
        update={"to": old_spec.to.model_copy(update={"instance_type": "g6.xlarge"})}
    )
    found = ruled(rival("new", spec=new_spec), rival("old", spec=old_spec))
    assert [loss.rule for loss in found.supersedes] == ["newer"]
    assert found.behind is None
    begun = rival("old", ChangeState.EXECUTING, spec=old_spec)
    assert ruled(rival("new", spec=new_spec), begun).supersedes == ()
    elsewhere = rival("old", proposer=AgentName.PERFORMANCE, spec=old_spec)
    assert ruled(rival("new", spec=new_spec), elsewhere).supersedes == ()


def test_a_change_whose_turn_comes_again_replaces_nobody() -> None:
    spec = recommendation("x").spec
    me = rival("me", ChangeState.DEFERRED, spec=spec)
    again = Rival(me.saga.model_copy(update={"round": 1}), me.opened_at)
    found = ruled(again, rival("other", ChangeState.DEFERRED, spec=spec))
    assert (found.merged, found.supersedes) == (None, ())


def test_what_is_complete_leaves_those_behind_that_wanted_its_replicas() -> None:
    spec = recommendation("x").spec
    done = rival("done", ChangeState.EXECUTING, spec=spec)
    waiting, other = rival("w", ChangeState.DEFERRED, spec=spec), rival("o", ChangeState.DEFERRED)
    found = replaced_by(done.saga, [waiting, other])
    assert [loss.change for loss in found.supersedes] == [waiting.saga.change]


@given(st.permutations(range(5)))
def test_whoever_comes_first_the_same_one_is_decided_in_the_end(order: list[int]) -> None:
    """Five changes of different worth arrive in any order; none is carried out meanwhile."""
    policy = Arbitration(max_preemptions=9)
    risks = (Risk.LOW, Risk.MEDIUM, Risk.HIGH, Risk.CRITICAL)
    worth: list[dict[str, Any]] = [BETTER, *({"risk": risk} for risk in risks)]
    rivals: dict[int, Rival] = {}
    for number in order:
        me = rival(f"c{number}", **worth[number])
        found = ruled(me, *rivals.values(), policy=policy)
        lost = {loss.change for loss in found.yields}
        for other, one in rivals.items():
            if one.saga.change in lost:
                rivals[other] = rival(f"c{other}", ChangeState.DEFERRED, **worth[other])
        state = ChangeState.DEFERRED if found.behind else ChangeState.VOTING
        rivals[number] = rival(f"c{number}", state, **worth[number])
    deciding = [number for number, one in rivals.items() if one.saga.is_deciding]
    assert deciding == [0]


# Budgets


@dataclass(frozen=True)
class UnderWay:
    deployment: str | None
    usd_per_hour: float | None = None


def test_a_budget_counts_what_is_carried_out_under_it() -> None:
    policy = Arbitration(budgets=(Budget(name="gpus", deployments=("chat", "x"), max_moving=1),))
    mine = recommendation("a")
    assert over_budget(mine, [], policy) is None
    assert over_budget(mine, [UnderWay("elsewhere")], policy) is None
    assert over_budget(mine, [UnderWay("x")], policy) == "budget 'gpus' allows 1 changes at once"
    assert over_budget(recommendation("b", deployment="y"), [UnderWay("x")], policy) is None


def test_a_budget_adds_up_dollars_and_knows_what_it_does_not_know() -> None:
    policy = Arbitration(budgets=(Budget(name="all", max_usd_per_hour=10.0),))
    mine = recommendation("a", spend_usd_per_hour=6.0)
    assert over_budget(mine, [UnderWay("x", 4.0)], policy) is None
    assert "it would be $11" in (over_budget(mine, [UnderWay("x", 5.0)], policy) or "")
    assert "no known price" in (over_budget(mine, [UnderWay("x")], policy) or "")
    assert "no known price" in (over_budget(recommendation("a"), [], policy) or "")
