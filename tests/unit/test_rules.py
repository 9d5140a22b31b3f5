"""The policy that people write: which rule approves what, and what no rule may approve."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from optiinfra.schemas.recommendation import CommitmentPurchase, Risk
from optiinfra.schemas.rules import ApprovalRule, Rules
from tests.factories import recommendation

MIGRATION = recommendation()
PURCHASE = recommendation(
    spec=CommitmentPurchase(
        provider="aws",
        instance_type="g5.xlarge",
        region="us-east-1",
        count=1,
        term_years=1,
        payment="no_upfront",
    )
)


def rule(name: str = "rule", **fields: Any) -> ApprovalRule:
    return ApprovalRule(name=name, **fields)


def test_without_rules_a_person_decides() -> None:
    assert Rules().automatic(MIGRATION) is None


def test_a_rule_without_conditions_approves_what_is_of_low_risk() -> None:
    assert Rules(approvals=(rule(),)).automatic(MIGRATION) == rule()
    medium = recommendation(risk=Risk.MEDIUM)
    assert Rules(approvals=(rule(),)).automatic(medium) is None


@pytest.mark.parametrize("risk", [*Risk])
def test_a_rule_covers_risks_up_to_its_own(risk: Risk) -> None:
    covered = rule(max_risk=Risk.HIGH).matches(recommendation(risk=risk))
    assert covered == (risk is not Risk.CRITICAL)


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"kinds": ("spot_migration",)}, True),
        ({"kinds": ("right_sizing", "spot_migration")}, True),
        ({"kinds": ("right_sizing",)}, False),
        ({"deployments": ("chat",)}, True),
        ({"deployments": ("search",)}, False),
        ({"kinds": ("spot_migration",), "deployments": ("search",)}, False),
    ],
)
def test_every_given_condition_must_match(fields: dict[str, Any], matches: bool) -> None:  # noqa: FBT001
    assert rule(**fields).matches(MIGRATION) is matches


def test_the_first_rule_that_matches_decides() -> None:
    ask, approve = rule("ask", decision="ask"), rule("approve")
    other = rule("other", kinds=("right_sizing",))
    assert Rules(approvals=(ask, approve)).automatic(MIGRATION) is None
    assert Rules(approvals=(approve, ask)).automatic(MIGRATION) == approve
    assert Rules(approvals=(other, approve)).automatic(MIGRATION) == approve
    assert Rules(approvals=(other,)).automatic(MIGRATION) is None


def test_no_rule_approves_what_cannot_be_taken_back() -> None:
    everything = rule(kinds=("commitment_purchase",), max_risk=Risk.CRITICAL)
    assert everything.matches(PURCHASE)
    assert Rules(approvals=(everything,)).automatic(PURCHASE) is None


def test_approvals_expire_sooner_the_higher_the_risk() -> None:
    hours = [Rules().approval_expiry_s[risk] / 3600 for risk in Risk]
    assert hours == [168, 48, 24, 4]


@pytest.mark.parametrize(
    "wrong",
    [
        {"vote_deadline_s": 0},
        {"max_vote_rounds": 0},
        {"max_moving": 0},
        {"movers_per_hour": 0},
        {"no_such_rule": 1},
        {"approvals": [{"name": "x", "decision": "perhaps"}]},
    ],
)
def test_a_policy_file_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rules.model_validate(wrong)
