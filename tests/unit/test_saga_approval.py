"""A person's or a policy's word: bound to a version, in time, on votes that are still fresh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.change import ChangeState, ControlVerb
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import CommitmentPurchase, Risk
from optiinfra.schemas.tenant import person
from optiinfra.schemas.vote import Verdict
from tests.factories import AT, recommendation, vote
from tests.saga_log import ASK, AUTO, Log, decision

BOUGHT = CommitmentPurchase(
    provider="aws",
    instance_type="g5.xlarge",
    region="us-east-1",
    count=1,
    term_years=1,
    payment="no_upfront",
)


def test_a_policy_rule_approves_in_its_own_name() -> None:
    log = Log().open().vote()
    assert log.kinds() == ["approval.granted", "change.approved", "execution.requested"]
    (grant,) = log.said(f.ApprovalGranted)
    assert str(grant.approval.by) == f"policy:low@{AUTO.version}"
    assert grant.approval.version_hash == log.proposal.version_hash
    log.check()


def test_without_a_rule_a_person_is_asked_for_as_long_as_the_risk_allows() -> None:
    log = Log(recommendation(risk=Risk.HIGH), rules=ASK).open().vote()
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    (asked,) = log.said(f.ApprovalRequested)
    assert asked.version_hash == log.proposal.version_hash
    assert (asked.expires_at - AT).total_seconds() == 24 * 3600


def test_a_policy_file_that_leaves_a_risk_out_keeps_the_default_expiry() -> None:
    rules = ASK.model_copy(update={"approval_expiry_s": {Risk.HIGH: 1.0}})
    (asked,) = Log(rules=rules).open().vote().said(f.ApprovalRequested)
    assert (asked.expires_at - AT).total_seconds() == 7 * 86400


def test_a_person_approves_and_the_first_stage_is_requested() -> None:
    log = Log().to_awaiting().decide()
    assert log.kinds() == ["change.approved", "execution.requested"]
    assert log.said(f.ChangeApproved)[0].by == "person:ana"
    log.check()


def test_an_early_grant_waits_for_the_votes() -> None:
    log = Log(rules=ASK).open().decide()
    assert log.kinds() == []
    assert log.vote().saga.state is ChangeState.EXECUTING
    assert log.said(f.ApprovalRequested) == []


def test_a_grant_before_the_proposal_counts_for_that_version() -> None:
    log = Log(rules=ASK).decide().open().vote()
    assert log.saga.state is ChangeState.EXECUTING


def test_a_grant_of_another_version_before_the_proposal_counts_for_nothing() -> None:
    log = Log(rules=ASK).decide(version_hash="0" * 16).open().vote()
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert log.saga.approval is None


@pytest.mark.parametrize("granted", [True, False])
def test_a_word_on_another_version_is_void(*, granted: bool) -> None:
    log = Log().to_awaiting()
    version = log.saga.version
    assert log.decide(granted=granted, version_hash="0" * 16).saga.version == version


@pytest.mark.parametrize("place", ["voting", "awaiting", "deferred", "embryo"])
def test_a_denial_ends_an_undecided_change(place: str) -> None:
    log = Log(rules=ASK)
    if place == "deferred":
        log.world = replace(log.world, executing="f" * 32)
    if place != "embryo":
        log.open()
    if place == "awaiting":
        log.vote()
    log.decide(granted=False, reason="not this week")
    if place == "embryo":
        log.open()
    assert log.saga.state is ChangeState.REJECTED
    (rejected,) = log.said(f.ChangeRejected)
    assert (rejected.by, rejected.reason) == ("person:ana", "not this week")
    log.check()


def test_a_denial_without_reason_says_so() -> None:
    log = Log().to_awaiting().decide(granted=False)
    assert log.saga.end_reason == "no reason was given"


def test_a_denial_beats_an_earlier_grant_while_undecided() -> None:
    log = Log(rules=ASK).open().decide().decide(granted=False)
    assert log.saga.state is ChangeState.REJECTED


def test_a_denial_stands_against_a_later_grant() -> None:
    log = Log(rules=ASK).decide(granted=False).decide().open()
    assert log.saga.state is ChangeState.REJECTED


def test_a_second_persons_grant_is_kept_and_the_first_one_stays_the_approval() -> None:
    log = Log(rules=ASK).open().decide().decide(by=person("bob"))
    assert [str(grant.by) for grant in log.saga.grants] == ["person:ana", "person:bob"]
    assert log.saga.approval is not None
    assert log.saga.approval.by.name == "ana"


def test_a_persons_second_grant_changes_nothing() -> None:
    log = Log(rules=ASK).open().decide()
    version = log.saga.version
    assert log.decide(reason="yes, still").saga.version == version


def test_a_word_on_what_is_being_carried_out_comes_too_late() -> None:
    log = Log().to_applying()
    version = log.saga.version
    assert log.decide(granted=False).saga.version == version


@pytest.mark.parametrize("kind", [f.ApprovalGranted, f.ApprovalDenied])
def test_a_grant_that_denies_and_a_denial_that_grants_can_never_be_true(kind: Any) -> None:
    approval: Approval = decision(recommendation(), granted=kind is f.ApprovalDenied).approval
    with pytest.raises(Rejected, match="contradict"):
        Log().open().hear(kind(approval=approval))


def test_an_approval_that_does_not_come_in_time_expires_the_change() -> None:
    log = Log().to_awaiting().fire(TimerName.APPROVAL_EXPIRY)
    assert log.saga.state is ChangeState.EXPIRED
    assert log.saga.end_reason == "nobody approved it in time"
    assert log.decide().saga.state is ChangeState.EXPIRED
    log.check()


def test_an_expiry_that_fires_after_the_grant_means_nothing() -> None:
    log = Log().to_awaiting().decide().fire(TimerName.APPROVAL_EXPIRY)
    assert log.saga.state is ChangeState.EXECUTING


def test_no_policy_approves_what_cannot_be_undone() -> None:
    log = Log(recommendation(spec=BOUGHT)).open().vote()
    assert log.saga.state is ChangeState.AWAITING_APPROVAL


def test_stale_votes_are_cast_again_and_the_approval_stays() -> None:
    log = Log().to_awaiting().wait(ASK.votes_valid_s + 1).decide()
    assert log.kinds() == ["vote.requested"]
    assert log.saga.round == 2
    log.vote()
    assert log.saga.state is ChangeState.EXECUTING
    assert len(log.said(f.ApprovalRequested)) == 1
    log.check()


def test_a_rejection_among_the_new_votes_vetoes_what_was_approved() -> None:
    log = Log().to_awaiting().wait(ASK.votes_valid_s + 1).decide()
    assert log.vote("resource", verdict=Verdict.REJECT).saga.state is ChangeState.VETOED


def test_a_vote_for_a_later_round_does_not_freshen_stale_ones() -> None:
    log = Log().to_awaiting().wait(ASK.votes_valid_s + 1)
    log.hear(vote(log.change, "resource", number=2)).decide()
    assert log.saga.state is ChangeState.VOTING
    assert log.said(c.ExecutionRequested) == []


def test_votes_age_while_an_approved_change_is_paused() -> None:
    log = Log().open().control(ControlVerb.PAUSE).vote()
    assert log.kinds() == ["approval.granted", "change.approved"]
    log.wait(AUTO.votes_valid_s + 1).control(ControlVerb.RESUME)
    assert log.kinds() == ["change.resumed", "vote.requested"]
    assert log.vote().saga.state is ChangeState.EXECUTING
    log.check()
