"""What the policy says about letting a change begin: rules, limits, refusals, two pairs of eyes."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.coordinator.saga.state import World
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.change import ChangeState, ControlVerb
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.money import Interval
from optiinfra.schemas.recommendation import CommitmentPurchase, Recommendation, Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import Actor, person, policy
from tests.factories import recommendation
from tests.saga_log import ASK, AUTO, SOAKED, Log, decision, votes

TWO = Rules(name="two", four_eyes_from="high")
HIGH = recommendation(risk=Risk.HIGH, rollout=SOAKED)
ANA, BOB, COST = person("ana"), person("bob"), person("cost")


def ruled(*rules: dict[str, Any], **fields: Any) -> Rules:
    made = tuple(ApprovalRule.model_validate({"name": f"r{n}", **r}) for n, r in enumerate(rules))
    return Rules(approvals=made, **fields)


def asked(log: Log) -> f.ApprovalRequested:
    return log.said(f.ApprovalRequested)[-1]


# Rules.


def test_every_decision_says_under_which_policy_it_was_made() -> None:
    log = Log().to_finishing().staged()
    said = [fact for fact, _ in log.entries if "rules_version" in type(fact).model_fields]
    assert len(said) > 10
    assert {getattr(fact, "rules_version") for fact in said} == {AUTO.version}  # noqa: B009


def test_a_persons_own_word_names_no_policy() -> None:
    log = Log().to_awaiting().decide()
    (word,) = log.said(f.ApprovalGranted)
    assert word.rules_version is None


def test_what_a_rule_denies_is_rejected_without_votes() -> None:
    rules = ruled({"decision": "deny", "kinds": ["spot_migration"]})
    log = Log(rules=rules).open()
    assert log.kinds() == ["change.opened", "change.rejected"]
    (rejected,) = log.said(f.ChangeRejected)
    assert rejected.by == f"policy:r0@{rules.version}"
    assert rejected.reason == f"rule 'r0' of policy {rules.version!r} refuses it"
    log.check()


def test_a_denial_by_the_policy_that_is_in_force_by_then_beats_a_persons_yes() -> None:
    log = Log(rules=ASK).open().decide()
    log.rules = ruled({"decision": "deny"})
    assert log.vote().saga.state is ChangeState.REJECTED
    later = Log().to_awaiting()
    later.rules = ruled({"decision": "deny"})
    assert later.decide().saga.state is ChangeState.REJECTED


def test_a_rule_that_asks_asks_although_a_later_one_would_approve() -> None:
    log = Log(rules=ruled({"decision": "ask"}, {})).open().vote()
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert asked(log).needed == 1
    assert asked(log).reason.startswith("rule 'r0' of policy ")


def test_without_a_rule_the_request_says_so() -> None:
    assert asked(Log(rules=ASK).open().vote()).reason == "no rule of the policy is about it"


def test_a_rule_that_wants_two_asks_two() -> None:
    log = Log(rules=ruled({"decision": "ask_two"})).open().vote()
    assert asked(log).needed == log.saga.needed == 2
    assert asked(log).reason.endswith("asks two people")
    assert log.decide(by=ANA).saga.state is ChangeState.AWAITING_APPROVAL
    assert log.decide(by=BOB).saga.state is ChangeState.EXECUTING


LIMITS: list[tuple[dict[str, Any], World, str]] = [
    ({"max_added_usd_per_month": 10}, World(), "it may add $20.00 a month"),
    ({"max_change_usd_per_month": 10}, World(), "it may change cost by $30.00 a month"),
    (
        {"max_per_hour": 2},
        World(approved_last_hour={"r0": 2}),
        "it has approved 2 in the last hour",
    ),
    ({"max_per_day": 3}, World(approved_last_day={"r0": 4}), "4 in the last day, its limit is 3"),
]


@pytest.mark.parametrize(("limit", "world", "told"), LIMITS)
def test_beyond_a_limit_of_its_rule_a_person_is_asked_and_told_why(
    limit: dict[str, Any], world: World, told: str
) -> None:
    saving = Interval(low=-20, mid=5, high=30)
    proposal = recommendation(saving_usd_per_month=saving, rollout=SOAKED)
    log = Log(proposal, rules=ruled(limit, {}))
    log.world = world
    log.open().vote()
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert "would approve, but " in asked(log).reason
    assert told in asked(log).reason


def test_within_its_limits_a_rule_approves() -> None:
    saving = Interval(low=1, mid=5, high=9)
    rules = ruled({"max_added_usd_per_month": 0, "max_per_hour": 2, "max_per_day": 9})
    log = Log(recommendation(saving_usd_per_month=saving, rollout=SOAKED), rules=rules)
    log.world = World(approved_last_hour={"r0": 1, "other": 5}, approved_last_day={"r0": 8})
    assert log.open().vote().saga.state is ChangeState.EXECUTING


def test_what_cannot_be_undone_is_asked_for_whatever_a_rule_says() -> None:
    bought = CommitmentPurchase(
        provider="aws",
        instance_type="g5.xlarge",
        region="us-east-1",
        count=1,
        term_years=1,
        payment="no_upfront",
    )
    log = Log(recommendation(spec=bought), rules=ruled({"max_risk": "critical"})).open().vote()
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert "what cannot be undone is a person's decision" in asked(log).reason


# A rule's grant while the change waits.


def deferred_after_approval(rules: Rules) -> Log:
    log = Log(rules=rules)
    log.world = World(moving=9)
    log.open().vote()
    assert log.saga.state is ChangeState.DEFERRED
    log.world = World(approved_last_hour={"r0": 1})
    return log


def test_a_rules_grant_stays_good_under_the_same_policy_and_is_counted_once() -> None:
    log = deferred_after_approval(ruled({"max_per_hour": 1}))
    assert log.fire(TimerName.TURN).vote().saga.state is ChangeState.EXECUTING
    assert len(log.said(f.ApprovalGranted)) == 1
    assert log.said(f.ChangeApproved)[-1].by.startswith("policy:r0@")
    log.check()


def test_a_rules_grant_is_asked_anew_under_another_policy() -> None:
    log = deferred_after_approval(ruled({}))
    log.rules = ruled({"decision": "ask"})
    assert log.fire(TimerName.TURN).vote().saga.state is ChangeState.AWAITING_APPROVAL
    assert log.decide().saga.state is ChangeState.EXECUTING
    assert log.said(f.ChangeApproved)[-1].by == "person:ana"


def test_a_persons_grant_stays_good_under_another_policy() -> None:
    log = Log(rules=ASK)
    log.world = World(moving=9)
    log.open().decide().vote()
    log.world, log.rules = World(), ASK.model_copy(update={"max_moving": 2})
    assert log.fire(TimerName.TURN).vote().saga.state is ChangeState.EXECUTING


# Two pairs of eyes.


def test_high_risk_needs_two_different_people_where_the_policy_says_so() -> None:
    log = Log(HIGH, rules=TWO).open().vote()
    assert asked(log).needed == 2
    assert log.decide(by=ANA).kinds() == []
    assert log.decide(by=ANA, reason="again").saga.state is ChangeState.AWAITING_APPROVAL
    assert log.decide(by=BOB).saga.state is ChangeState.EXECUTING
    assert log.said(f.ChangeApproved)[0].by == "person:ana, person:bob"
    assert len(log.said(f.ApprovalRequested)) == 1
    log.check()


def test_below_that_risk_one_is_enough() -> None:
    log = Log(rules=TWO).open().vote()
    assert asked(log).needed == 1
    assert log.decide().saga.state is ChangeState.EXECUTING


def test_no_rule_stands_in_for_the_second_person() -> None:
    rules = ruled({"max_risk": "critical"}, four_eyes_from="high")
    log = Log(HIGH, rules=rules).open().vote()
    assert "two people decide from risk high on" in asked(log).reason
    assert log.decide(by=ANA).saga.state is ChangeState.AWAITING_APPROVAL


def test_the_agent_that_proposed_is_nobodys_second_pair_of_eyes() -> None:
    log = Log(HIGH, rules=TWO).open().vote().decide(by=ANA).decide(by=COST)
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert log.decide(by=BOB).saga.state is ChangeState.EXECUTING


@pytest.mark.parametrize("kind", ["agent", "system"])
def test_only_people_and_policies_have_a_word(kind: str) -> None:
    with pytest.raises(Rejected, match="neither a person nor a policy"):
        Log(HIGH, rules=TWO).open().decide(by=Actor(kind=kind, name="cost"))


def test_one_denial_beats_every_grant() -> None:
    log = Log(HIGH, rules=TWO).open().vote().decide(by=ANA).decide(granted=False, by=BOB)
    assert log.saga.state is ChangeState.REJECTED
    assert log.saga.grants == ()


def test_grants_for_another_version_before_the_proposal_count_for_nothing() -> None:
    log = Log(HIGH, rules=TWO).decide(by=ANA, version_hash="0" * 16)
    log.decide(by=ANA).decide(by=BOB).open()
    assert [grant.by for grant in log.saga.grants] == [ANA, BOB]
    assert log.saga.approval is not None
    assert log.saga.approval.version_hash == HIGH.version_hash
    assert log.vote().saga.state is ChangeState.EXECUTING


def test_a_policy_that_becomes_stricter_while_people_are_asked_asks_for_more() -> None:
    log = Log(HIGH, rules=ASK).open().vote()
    until = asked(log).expires_at
    log.rules = TWO
    log.wait(60).decide(by=ANA)
    assert log.saga.state is ChangeState.AWAITING_APPROVAL
    assert (asked(log).needed, asked(log).expires_at) == (2, until)
    assert log.saga.timers[TimerName.APPROVAL_EXPIRY].fire_at == until
    assert log.decide(by=BOB).saga.state is ChangeState.EXECUTING


def test_a_policy_that_becomes_milder_needs_no_second_word() -> None:
    log = Log(HIGH, rules=TWO).open().vote()
    log.rules = ASK
    assert log.decide(by=ANA).saga.state is ChangeState.EXECUTING


def test_two_grants_on_stale_votes_have_them_cast_again_and_stay() -> None:
    log = Log(HIGH, rules=TWO).open().vote().decide(by=ANA)
    log.wait(TWO.votes_valid_s + 1).decide(by=BOB)
    assert log.saga.state is ChangeState.VOTING
    assert log.vote().saga.state is ChangeState.EXECUTING


def test_a_change_that_waits_for_its_second_word_can_be_stopped() -> None:
    log = Log(HIGH, rules=TWO).open().vote().decide(by=ANA).control(ControlVerb.ABORT)
    assert log.saga.state is ChangeState.CANCELLED


PEOPLE = st.lists(
    st.tuples(st.sampled_from(["ana", "bob", "cost"]), st.sampled_from([True, True, True, False])),
    max_size=5,
)


def end_of(proposal: Recommendation, facts: list[f.Fact]) -> tuple[ChangeState, str | None]:
    log = Log(proposal, rules=TWO).hear(*facts)
    log.check()
    approved = log.said(f.ChangeApproved)
    return log.saga.state, approved[0].by if approved else None


@given(PEOPLE, st.randoms(use_true_random=False))
def test_the_order_and_the_number_of_words_mean_nothing(
    words: list[tuple[str, bool]], random: Any
) -> None:
    """All words are spoken before the votes are in; then any order ends the same."""
    said: list[f.Fact] = [
        decision(HIGH, granted=granted, by=person(name)) for name, granted in words
    ]
    proposed = f.RecommendationProposed(recommendation=HIGH)
    jumbled = [*said, *said, proposed]
    random.shuffle(jumbled)
    last = votes(HIGH.id)
    state, by = end_of(HIGH, [*jumbled, *last])
    yes = sorted({name for name, granted in words if granted} - {"cost"})
    if any(not granted for _, granted in words):
        assert state is ChangeState.REJECTED
    elif len(yes) >= 2:
        assert (state, by) == (ChangeState.EXECUTING, "person:ana, person:bob")
    else:
        assert state is ChangeState.AWAITING_APPROVAL


def test_two_words_among_the_votes_end_the_same_in_every_order() -> None:
    facts: list[f.Fact] = [
        *votes(HIGH.id), decision(HIGH, by=ANA), decision(HIGH, by=BOB),
    ]  # fmt: skip
    proposed = f.RecommendationProposed(recommendation=HIGH)
    ends = {end_of(HIGH, [proposed, *order]) for order in permutations(facts)}
    assert ends == {(ChangeState.EXECUTING, "person:ana, person:bob")}


@pytest.mark.parametrize("granted", [True, False])
def test_a_rules_word_that_is_heard_is_an_echo_and_means_nothing(granted: bool) -> None:  # noqa: FBT001
    log = Log(rules=ASK).open()
    version = log.saga.version
    log.hear(decision(log.proposal, granted=granted, by=policy(f"r0@{ASK.version}")))
    assert log.saga.version == version
    assert log.vote().saga.state is ChangeState.AWAITING_APPROVAL


def test_a_rule_of_the_new_policy_grants_in_its_own_name() -> None:
    log = deferred_after_approval(ruled({}))
    log.rules = ruled({}, name="new")
    assert log.fire(TimerName.TURN).vote().saga.state is ChangeState.EXECUTING
    assert log.saga.approval is not None
    assert log.saga.approval.by.name == f"r0@{log.rules.version}"
    assert len(log.said(f.ApprovalGranted)) == 2
    log.check()
