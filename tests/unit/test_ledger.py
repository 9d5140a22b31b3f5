"""The sagas of one batch in memory: what others mean for one, and how what is said is named."""

from __future__ import annotations

from datetime import timedelta

import pytest

from optiinfra.coordinator.ledger import Ledger
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.arbitration import Arbitration
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Invariant, Rejected
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS, Verdict
from tests.factories import AT, event, recommendation, vote
from tests.saga_log import AUTO, put_off

CHAT, OTHER = recommendation("a"), recommendation("b")
SEARCH = recommendation("c", deployment="search")


def opened(*proposals: Recommendation, rules: Rules = AUTO) -> Ledger:
    ledger = Ledger(AT, rules)
    for proposal in proposals:
        ledger.take(event(f.RecommendationProposed(recommendation=proposal)))
    return ledger


def agree(ledger: Ledger, proposal: Recommendation) -> ChangeState:
    for agent in sorted(VOTERS):
        ledger.take(event(vote(proposal.id, agent, number=ledger.saga(proposal.id).round)))
    return ledger.saga(proposal.id).state


def test_what_is_said_is_named_by_its_place_and_tells_its_cause() -> None:
    first, second = opened(CHAT), opened(CHAT)
    assert [e.id for e in first.said] == [e.id for e in second.said]
    assert len({e.id for e in first.said}) == len(first.said) == 4
    heard = first.writes()[CHAT.id].entries[0].event
    assert {e.causation for e in first.said} == {heard.id}
    assert {e.correlation for e in first.said} == {CHAT.id}


def test_the_entries_of_a_write_are_all_that_was_heard_and_said() -> None:
    ledger = opened(CHAT)
    agree(ledger, CHAT)
    entries = ledger.writes()[CHAT.id].entries
    assert len(entries) == ledger.saga(CHAT.id).version
    assert [e.said for e in entries].count(False) == 4
    assert [e.event for e in entries if e.said] == ledger.said


def test_a_repeated_event_writes_nothing() -> None:
    ledger = opened(CHAT, CHAT)
    assert len(ledger.writes()[CHAT.id].entries) == 5


def test_the_second_of_a_batch_on_one_target_waits() -> None:
    ledger = opened(CHAT, OTHER)
    assert ledger.saga(OTHER.id).state is ChangeState.DEFERRED
    assert ledger.saga(OTHER.id).waiting == f"change {CHAT.id} goes first by age on chat"


def test_another_target_is_decided_at_the_same_time_and_moves_within_the_limit() -> None:
    ledger = opened(CHAT, SEARCH)
    assert agree(ledger, CHAT) is ChangeState.EXECUTING
    assert agree(ledger, SEARCH) is ChangeState.DEFERRED
    relaxed = opened(CHAT, SEARCH, rules=AUTO.model_copy(update={"max_moving": 2}))
    assert agree(relaxed, CHAT) is ChangeState.EXECUTING
    assert agree(relaxed, SEARCH) is ChangeState.EXECUTING


def test_the_moves_of_a_batch_count_for_the_hour() -> None:
    rules = AUTO.model_copy(update={"max_moving": 9, "movers_per_hour": 1})
    ledger = opened(CHAT, SEARCH, rules=rules)
    assert agree(ledger, CHAT) is ChangeState.EXECUTING
    assert agree(ledger, SEARCH) is ChangeState.DEFERRED
    assert "in the last hour" in (ledger.saga(SEARCH.id).waiting or "")


def test_without_a_limit_any_number_moves() -> None:
    rules = AUTO.model_copy(update={"max_moving": 9, "movers_per_hour": None})
    ledger = opened(CHAT, SEARCH, rules=rules)
    assert agree(ledger, CHAT) is ChangeState.EXECUTING
    assert agree(ledger, SEARCH) is ChangeState.EXECUTING
    assert not rules.limits_movers
    assert rules.model_copy(update={"movers_per_hour_per_target": 1}).limits_movers


def test_the_stop_switch_reaches_the_next_decision_of_the_batch() -> None:
    ledger = opened(CHAT)
    ledger.turn_switch("acme", stopped=True)
    assert agree(ledger, CHAT) is ChangeState.APPROVED
    ledger.turn_switch("acme", stopped=False)
    ledger.turn_switch("acme", stopped=False)
    assert ledger.saga(CHAT.id).paused_by == "stop switch"


def test_a_change_that_ends_frees_its_target() -> None:
    ledger = opened(CHAT)
    assert ledger.freed == set()
    ledger.take(event(vote(CHAT.id, "resource", Verdict.REJECT)))
    assert ledger.freed == {("acme", "chat")}


def test_a_change_that_is_put_off_frees_its_target() -> None:
    ledger = opened(CHAT, rules=Rules())
    agree(ledger, CHAT)
    ledger.take(event(put_off(CHAT, 60.0)))
    assert ledger.freed == {("acme", "chat")}
    ledger.take(event(f.RecommendationProposed(recommendation=OTHER)))
    assert ledger.saga(OTHER.id).state is ChangeState.VOTING


def test_a_deadline_waits_for_what_was_said_before_it() -> None:
    """A vote may stand in the queue; silence counts once everything older has been heard."""
    later = AT + timedelta(hours=1)
    deadline = f.TimerFired(change=CHAT.id, name=TimerName.VOTE_DEADLINE, key="1")
    for heard_until, state in (
        (AT, ChangeState.VOTING),
        (later, ChangeState.VETOED),
        (None, ChangeState.VETOED),
    ):
        ledger = Ledger(later, AUTO, heard_until)
        ledger._sagas[CHAT.id] = opened(CHAT).saga(CHAT.id)
        ledger.take(event(deadline))
        assert ledger.saga(CHAT.id).state is state


def test_a_timer_that_comes_before_its_time_waits_for_the_sweep() -> None:
    ledger = opened(CHAT)
    fired = f.TimerFired(change=CHAT.id, name=TimerName.VOTE_DEADLINE, key="1")
    ledger.take(event(fired))
    assert ledger.saga(CHAT.id).state is ChangeState.VOTING
    assert TimerName.VOTE_DEADLINE in ledger.saga(CHAT.id).timers
    late = Ledger(AT + timedelta(hours=1), AUTO)
    late._sagas[CHAT.id] = ledger.saga(CHAT.id)
    late.take(event(fired))
    assert late.saga(CHAT.id).state is ChangeState.VETOED


def test_another_tenants_event_cannot_touch_a_change() -> None:
    ledger = opened(CHAT)
    with pytest.raises(Rejected, match="does not belong to tenant"):
        ledger.take(event(vote(CHAT.id, "resource"), tenant="other"))


def test_an_event_of_no_change_is_nothing_for_the_ledger() -> None:
    lost = f.AgentLost(tenant="acme", agent="cost", instance="1", last_seen_at=AT)
    with pytest.raises(Invariant, match="belongs to no change"):
        Ledger(AT, AUTO).take(event(lost))


def test_votes_before_their_proposal_make_an_embryo_without_target() -> None:
    ledger = Ledger(AT, AUTO)
    ledger.take(event(vote(CHAT.id, "resource")))
    assert ledger.writes()[CHAT.id].deployment is None
    assert ledger.said == []
    assert ledger.saga("0" * 32).version == 0


def test_what_is_needed_by_a_change_under_way_does_not_change_meanwhile() -> None:
    bound = AUTO.model_copy(
        update={"max_moving": 9, "arbitration": Arbitration(needs={"chat": ("search",)})}
    )
    ledger = opened(CHAT, SEARCH, rules=bound)
    assert agree(ledger, CHAT) is ChangeState.EXECUTING
    assert agree(ledger, SEARCH) is ChangeState.DEFERRED
    wait = ledger.saga(SEARCH.id).waiting
    assert wait == f"change {CHAT.id} is being carried out on a target that shares search"
    late = recommendation("late", deployment="search")
    ledger.take(event(f.RecommendationProposed(recommendation=late)))
    assert ledger.saga(late.id).waiting == f"change {CHAT.id} has the target search"
