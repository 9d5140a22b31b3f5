"""From proposal to a decision of the agents: rounds, vetoes, reminders, deadlines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Invariant, Rejected
from optiinfra.schemas.recommendation import CommitmentPurchase
from optiinfra.schemas.vote import VOTERS, Verdict
from tests.factories import AT, recommendation, rollout, vote
from tests.saga_log import ASK, AUTO, Log, votes

UNGATED = rollout().model_copy(update={"gates": ()})


def ended(log: Log) -> f.ChangeVetoed:
    """The one veto of a change that was vetoed."""
    assert log.saga.state is ChangeState.VETOED
    assert log.saga.timers == {}
    (veto,) = log.said(f.ChangeVetoed)
    log.check()
    return veto


def test_a_proposal_opens_a_change_and_asks_all_three_voters() -> None:
    log = Log().open()
    assert log.kinds() == ["change.opened", "vote.requested"]
    (asked,) = log.said(c.VoteRequested)
    assert set(asked.agents) == VOTERS
    assert asked.round == 1
    assert (asked.deadline - AT).total_seconds() == AUTO.vote_deadline_s
    assert set(log.saga.timers) == {TimerName.VOTE_REMINDER, TimerName.VOTE_DEADLINE}


def test_a_repeated_proposal_changes_nothing() -> None:
    log = Log().open()
    version = log.saga.version
    assert log.open().saga.version == version


def test_one_rejection_is_a_veto_at_once_and_says_why() -> None:
    veto = ended(Log().open().vote("resource", verdict=Verdict.REJECT))
    assert veto.by == ("resource",)
    assert veto.reasons == ("resource: resource says reject",)


def test_two_different_votes_of_one_agent_in_one_round_are_a_veto() -> None:
    log = Log().open().vote("resource").vote("resource", verdict=Verdict.ABSTAIN)
    assert ended(log).reasons == ("resource cast two different votes",)


@pytest.mark.parametrize("place", ["asked", "approved and paused"])
def test_a_second_different_vote_is_a_veto_also_after_all_have_voted(place: str) -> None:
    log = Log(rules=ASK).open().vote()
    if place != "asked":
        log.world = replace(log.world, stopped=True)
        log.decide()
        assert log.saga.state is ChangeState.APPROVED
    assert ended(log.vote("resource", verdict=Verdict.REJECT)).by == ("resource",)


def test_the_same_vote_twice_is_one_vote() -> None:
    log = Log().open().vote("resource")
    version = log.saga.version
    assert log.vote("resource").saga.version == version
    assert len(log.saga.votes) == 1


def test_a_vote_missing_at_the_deadline_is_a_veto_by_the_silent() -> None:
    veto = ended(Log().open().vote("resource").fire(TimerName.VOTE_DEADLINE))
    assert veto.by == ("application", "performance")
    assert veto.reasons[0] == "application did not vote in time"


def test_a_deadline_after_all_have_voted_means_nothing() -> None:
    log = Log(rules=ASK).open().vote().fire(TimerName.VOTE_DEADLINE)
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert log.last == ()


def test_only_the_missing_are_reminded_with_the_same_deadline() -> None:
    log = Log().open().vote("resource").fire(TimerName.VOTE_REMINDER)
    first, reminder = log.said(c.VoteRequested)
    assert reminder.agents == ("application", "performance")
    assert (reminder.round, reminder.deadline) == (1, first.deadline)
    assert log.saga.round == 1


def test_nobody_is_reminded_who_has_voted() -> None:
    log = Log().open().vote("resource", "performance").vote("application", verdict=Verdict.ABSTAIN)
    assert log.fire(TimerName.VOTE_REMINDER).last == ()


def test_an_abstention_asks_everybody_again_after_a_pause() -> None:
    log = Log().open().vote("performance", "application").vote("resource", verdict=Verdict.ABSTAIN)
    assert log.saga.state is ChangeState.VOTING
    assert set(log.saga.timers) >= {TimerName.REVOTE}
    log.fire(TimerName.REVOTE)
    assert log.saga.round == 2
    assert set(log.said(c.VoteRequested)[-1].agents) == VOTERS
    assert log.vote().saga.state is ChangeState.EXECUTING
    log.check()


def abstain(log: Log) -> Log:
    return log.vote("performance", "application").vote("resource", verdict=Verdict.ABSTAIN)


def test_an_abstention_in_the_last_round_is_a_veto_for_lack_of_evidence() -> None:
    log = abstain(Log().open())
    for _ in range(AUTO.max_vote_rounds - 1):
        abstain(log.fire(TimerName.REVOTE))
    veto = ended(log)
    assert veto.by == ("resource",)
    assert veto.reasons == ("resource: resource says abstain",)


def test_rounds_after_a_wait_are_counted_afresh() -> None:
    log = Log(rules=AUTO.model_copy(update={"max_vote_rounds": 2}))
    abstain(log.open()).fire(TimerName.REVOTE)
    log.world = replace(log.world, moving=1)
    assert log.vote().kinds()[-1] == "change.deferred"
    log.world = replace(log.world, moving=0)
    abstain(log.fire(TimerName.TURN))
    assert log.saga.round == 3
    assert log.saga.state is ChangeState.VOTING
    assert ended(abstain(log.fire(TimerName.REVOTE))).by == ("resource",)


def test_while_a_new_round_is_awaited_a_changed_mind_is_a_veto() -> None:
    log = abstain(Log().open()).vote("resource")
    assert ended(log).by == ("resource",)


def test_a_vote_for_a_later_round_does_not_move_the_pause_before_it() -> None:
    log = abstain(Log().open())
    pause = log.saga.timers[TimerName.REVOTE]
    log.wait(5).hear(vote(log.change, "resource", number=2))
    assert log.last == ()
    assert log.saga.timers[TimerName.REVOTE] == pause
    log.fire(TimerName.REVOTE).vote("performance", "application")
    assert log.saga.state is ChangeState.EXECUTING


def test_a_vote_of_an_earlier_round_is_late() -> None:
    log = abstain(Log().open()).fire(TimerName.REVOTE)
    late = vote(log.change, "application", Verdict.REJECT, 1)
    version = log.saga.version
    assert log.hear(late).saga.version == version


@pytest.mark.parametrize("name", [TimerName.REVOTE, TimerName.VOTE_DEADLINE])
def test_a_timer_of_another_round_is_void(name: TimerName) -> None:
    log = Log().open()
    version = log.saga.version
    assert log.fire(name, key=9).saga.version == version


def test_votes_that_come_before_the_proposal_count() -> None:
    log = Log().vote()
    assert log.saga.recommendation is None
    assert log.open().saga.state is ChangeState.EXECUTING
    log.check()


def test_a_rejection_before_the_proposal_vetoes_it_when_it_comes() -> None:
    assert ended(Log().vote("resource", verdict=Verdict.REJECT).open()).by == ("resource",)


def test_votes_after_a_veto_are_recorded_and_decide_nothing() -> None:
    log = Log().open().vote("resource", verdict=Verdict.REJECT).vote("performance")
    assert log.last == ()
    assert len(log.saga.votes) == 2
    assert ended(log).by == ("resource",)


def test_a_strangers_vote_can_never_be_true() -> None:
    with pytest.raises(Rejected, match="holds no safety vote"):
        Log().open().vote("cost")


def test_an_embryo_has_no_proposal_to_speak_of() -> None:
    with pytest.raises(Invariant, match="no recommendation yet"):
        _ = Log().vote().saga.proposal


def test_an_urgent_proposal_is_voted_on_in_a_hurry() -> None:
    until = AT.replace(hour=13)
    log = Log(recommendation(urgent_until=until)).open()
    (asked,) = log.said(c.VoteRequested)
    assert (asked.deadline - AT).total_seconds() == AUTO.urgent_vote_deadline_s


def test_a_rollout_that_nobody_would_judge_is_refused() -> None:
    log = Log(recommendation(rollout=UNGATED)).open()
    assert log.saga.state is ChangeState.REJECTED
    (refusal,) = log.said(f.ChangeRejected)
    assert refusal.by == "coordinator"
    assert "names no assessor" in refusal.reason
    assert log.said(c.VoteRequested) == []
    log.check()


def test_what_alters_no_server_needs_no_gate() -> None:
    bought = CommitmentPurchase(
        provider="aws",
        instance_type="g5.xlarge",
        region="us-east-1",
        count=1,
        term_years=1,
        payment="no_upfront",
    )
    log = Log(recommendation(rollout=UNGATED, spec=bought)).open()
    assert log.saga.state is ChangeState.VOTING


def test_the_approving_votes_are_all_needed() -> None:
    proposal = recommendation()
    for missing in range(3):
        log = Log(proposal).open()
        cast = votes(proposal.id)
        log.hear(*(v for place, v in enumerate(cast) if place != missing))
        assert log.saga.state is ChangeState.VOTING
