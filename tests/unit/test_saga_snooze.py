"""A decision that is put off: pending, in nobody's way, and not made before it wakes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.coordinator.arbiter import Rival, arbitrate
from optiinfra.coordinator.saga.ruling import Ruling
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.arbitration import Arbitration
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.recommendation import APPROVAL_EXPIRY_S, Risk
from optiinfra.schemas.tenant import person
from optiinfra.schemas.vote import AgentName, Verdict
from tests.factories import recommendation
from tests.saga_log import ASK, AUTO, SOAKED, Log, put_off, woken

HOUR = 3_600.0
NAP = 120.0
"""So short that the votes are still fresh after it."""
TWO = ASK.model_copy(update={"four_eyes_from": Risk.LOW})


def asleep() -> Log:
    return Log().to_awaiting().snooze(HOUR)


def test_what_is_put_off_stays_pending_and_nothing_is_said_of_it() -> None:
    log = asleep()
    assert log.kinds() == []
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert log.saga.is_asleep(log.at)
    assert not log.saga.is_asleep(log.wait(HOUR).at)
    log.check()


def test_when_it_wakes_people_are_asked_again_once_until_the_same_time() -> None:
    log = Log().to_awaiting()
    (first,) = log.said(f.ApprovalRequested)
    log.snooze(HOUR, by="person:eve").fire(TimerName.TURN)
    assert log.kinds() == ["approval.requested"]
    again = log.said(f.ApprovalRequested)[-1]
    assert again.model_copy(update={"reason": first.reason}) == first
    assert again.reason.startswith("person:eve had put it off until now; ")
    assert TimerName.TURN not in log.saga.timers
    log.check()


def test_who_woke_it_early_is_not_asked_again_at_the_time_it_was_put_off_to() -> None:
    log = asleep().wait(60).wake().fire(TimerName.TURN)
    assert log.kinds() == []
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    log.check()


def test_the_later_word_counts_whatever_comes_first() -> None:
    log = asleep().wait(60)
    late = put_off(log.proposal, 5 * HOUR, at=log.at)
    log.wait(60).wake()
    assert not log.saga.is_asleep(log.at)
    version = log.saga.version
    assert log.hear(late).saga.version == version
    assert log.wait(1).snooze(HOUR, by="person:eve").saga.is_asleep(log.at)
    log.check()


@given(random=st.randoms(use_true_random=False))
def test_words_on_its_sleep_lead_to_the_same_in_every_order(random: Random) -> None:
    start = Log().to_awaiting()
    words: list[f.Fact] = [
        put_off(start.proposal, HOUR, at=start.at),
        woken(start.proposal, at=start.wait(1).at),
        put_off(start.proposal, 2 * HOUR, at=start.wait(1).at),
    ]
    random.shuffle(words)
    start.hear(*words, *words)
    assert start.saga.snooze is not None
    assert start.saga.snooze.at == start.at
    start.check()


@pytest.mark.parametrize("place", ["voting", "applying", "ended"])
def test_only_what_a_person_is_asked_about_is_put_off(place: str) -> None:
    log = Log(rules=ASK if place == "voting" else AUTO).open()
    if place != "voting":
        log.vote(verdict=Verdict.REJECT if place == "ended" else Verdict.APPROVE)
    version = log.saga.version
    assert log.snooze(HOUR).wake().saga.version == version


def test_a_word_on_another_version_is_void() -> None:
    log = Log().to_awaiting()
    assert log.snooze(HOUR, version_hash="0" * 16).saga.snooze is None


def test_it_expires_when_it_did() -> None:
    expiry = APPROVAL_EXPIRY_S[Risk.LOW]
    log = Log().to_awaiting().snooze(expiry).fire(TimerName.APPROVAL_EXPIRY)
    assert log.saga.state is ChangeState.EXPIRED
    log.check()


def test_a_person_may_reject_it_in_its_sleep() -> None:
    assert asleep().decide(granted=False).saga.state is ChangeState.REJECTED


def test_a_yes_that_was_on_its_way_waits_until_it_wakes() -> None:
    log = Log().to_awaiting().snooze(NAP).wait(60).decide()
    assert log.kinds() == []
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    log.fire(TimerName.TURN)
    assert log.kinds() == ["change.approved", "execution.requested"]
    log.check()


def test_after_a_long_sleep_the_agents_are_asked_afresh_and_the_yes_stays() -> None:
    log = asleep().decide().fire(TimerName.TURN)
    assert log.kinds() == ["vote.requested"]
    assert log.vote().said(f.ChangeApproved)
    log.check()


def test_a_yes_waits_on_when_the_sleep_was_made_longer() -> None:
    log = Log().to_awaiting().snooze(NAP).decide()
    first = log.saga.timers[TimerName.TURN]
    log.wait(60).snooze(NAP)
    assert log.saga.timers[TimerName.TURN].fire_at > first.fire_at
    version = log.saga.version
    log.hear(f.TimerFired(change=log.change, name=TimerName.TURN, key=first.key))
    assert log.saga.version == version
    log.fire(TimerName.TURN)
    assert log.said(f.ChangeApproved)


def test_whoever_wakes_it_lets_that_yes_count_at_once() -> None:
    log = asleep().decide().wait(60).wake()
    assert log.said(f.ChangeApproved)
    log.check()


def test_one_yes_of_two_is_still_one_when_it_wakes() -> None:
    log = Log(rules=TWO).open().vote().decide()
    asked = len(log.said(f.ApprovalRequested))
    log.snooze(NAP).fire(TimerName.TURN)
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert len(log.said(f.ApprovalRequested)) == asked + 1, "the other one is asked again"
    assert log.decide(by=person("bob")).said(f.ChangeApproved)


def test_no_rule_approves_because_it_slept() -> None:
    """Under a policy that has come meanwhile and would have approved it by itself."""
    log = asleep()
    log.rules = AUTO
    log.wait(60).wake()
    assert log.kinds() == []
    log.snooze(60).wait(120).hear(
        f.TimerFired(change=log.change, name=TimerName.TURN, key=str(log.saga.version))
    )
    assert log.saga.state is ChangeState.AWAITING_APPROVAL


def test_who_sleeps_is_in_nobodys_way() -> None:
    ahead = Log(recommendation("a", proposer=AgentName.PERFORMANCE, rollout=SOAKED)).to_awaiting()
    behind = Log(recommendation("b")).open()
    rivals = [Rival(ahead.saga, ahead.at)]
    policy = Arbitration()
    assert arbitrate(behind.saga, behind.at, rivals, behind.at, policy).behind is not None
    rivals = [Rival(ahead.snooze(HOUR).saga, ahead.at)]
    assert arbitrate(behind.saga, behind.at, rivals, behind.at, policy) == Ruling()
