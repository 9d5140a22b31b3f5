"""The policy that people write: which rule is about what, what makes no sense, what names it."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from optiinfra.schemas.approval_rules import KINDS, ApprovalRule, Decision
from optiinfra.schemas.money import Interval
from optiinfra.schemas.recommendation import Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.windows import WeeklyWindow
from tests.factories import AT, recommendation

MIGRATION = recommendation()


def rule(name: str = "rule", **fields: Any) -> ApprovalRule:
    return ApprovalRule(name=name, **fields)


def saving(low: float, mid: float, high: float) -> dict[str, Interval]:
    return {"saving_usd_per_month": Interval(low=low, mid=mid, high=high)}


def test_without_rules_none_is_about_anything() -> None:
    assert Rules().rule_for(MIGRATION, AT) is None


def test_a_rule_that_approves_is_about_low_risk_unless_it_says_more() -> None:
    assert rule().matches(MIGRATION, AT)
    assert not rule().matches(recommendation(risk=Risk.MEDIUM), AT)
    assert rule(decision="ask").matches(recommendation(risk=Risk.CRITICAL), AT)


@pytest.mark.parametrize("risk", [*Risk])
def test_a_rule_covers_risks_between_its_own(risk: Risk) -> None:
    covered = rule(min_risk=Risk.MEDIUM, max_risk=Risk.HIGH).matches(recommendation(risk=risk), AT)
    assert covered == (risk in (Risk.MEDIUM, Risk.HIGH))


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"kinds": ("spot_migration",)}, True),
        ({"kinds": ("right_sizing", "spot_migration")}, True),
        ({"kinds": ("right_sizing",)}, False),
        ({"deployments": ("chat",)}, True),
        ({"deployments": ("search",)}, False),
        ({"kinds": ("spot_migration",), "deployments": ("search",)}, False),
        ({"when": ({"days": ["mon"], "start": "12:00", "end": "13:00"},)}, True),
        ({"when": ({"days": ["tue"]}, {"days": ["mon"]})}, True),
        ({"when": ({"start": "12:01"},)}, False),
    ],
)
def test_every_given_condition_must_match(fields: dict[str, Any], matches: bool) -> None:  # noqa: FBT001
    assert rule(**fields).matches(MIGRATION, AT) is matches


def test_the_first_rule_that_matches_is_the_one() -> None:
    ask, approve = rule("ask", decision="ask"), rule("approve")
    other = rule("other", kinds=("right_sizing",))
    assert Rules(approvals=(ask, approve)).rule_for(MIGRATION, AT) == ask
    assert Rules(approvals=(approve, ask)).rule_for(MIGRATION, AT) == approve
    assert Rules(approvals=(other, approve)).rule_for(MIGRATION, AT) == approve
    assert Rules(approvals=(other,)).rule_for(MIGRATION, AT) is None


@pytest.mark.parametrize(
    ("limits", "forecast", "told"),
    [
        ({}, {}, None),
        ({"max_added_usd_per_month": 100}, {}, "is not forecast"),
        ({"max_added_usd_per_month": 100}, saving(-100, 5, 10), None),
        ({"max_added_usd_per_month": 100}, saving(-101, 5, 10), "may add $101.00 a month"),
        ({"max_added_usd_per_month": 0}, saving(1, 5, 1e6), None),
        ({"max_change_usd_per_month": 100}, saving(1, 5, 100), None),
        ({"max_change_usd_per_month": 100}, saving(1, 5, 101), "by $101.00 a month, the limit is"),
        ({"max_change_usd_per_month": 100}, saving(-1234.5, 5, 101), "by $1,234.50 a month"),
    ],
)
def test_limits_look_at_the_costly_end_of_the_forecast(
    limits: dict[str, Any], forecast: dict[str, Any], told: str | None
) -> None:
    exceeded = rule(**limits).exceeded(recommendation(**forecast))
    assert (exceeded is None) if told is None else (exceeded is not None and told in exceeded)


def test_approvals_expire_sooner_the_higher_the_risk() -> None:
    hours = [Rules().approval_expiry_s[risk] / 3600 for risk in Risk]
    assert hours == [168, 48, 24, 4]


def test_two_people_are_needed_from_the_risk_on_that_the_policy_says() -> None:
    needed = [Rules(four_eyes_from="high").needed(recommendation(risk=risk)) for risk in Risk]
    assert needed == [1, 1, 2, 2]
    assert {Rules().needed(recommendation(risk=risk)) for risk in Risk} == {1}


SWALLOWED = [
    ({}, {}, True),
    ({"kinds": ("spot_migration",)}, {"kinds": ("spot_migration",)}, True),
    ({"kinds": ("spot_migration",)}, {}, False),
    ({}, {"kinds": ("spot_migration",)}, True),
    ({"deployments": ("a", "b")}, {"deployments": ("a",)}, True),
    ({"deployments": ("a",)}, {"deployments": ("a", "b")}, False),
    ({"max_risk": "low"}, {"max_risk": "high"}, False),
    ({"min_risk": "medium", "max_risk": "high"}, {"max_risk": "high"}, False),
    ({"when": ({"days": ["mon"]},)}, {}, False),
    ({"when": ({"days": ["mon"]},)}, {"when": ({"days": ["mon"]},)}, True),
]


@pytest.mark.parametrize(("first", "later", "swallowed"), SWALLOWED)
def test_a_rule_swallows_one_that_is_about_no_more(
    first: dict[str, Any],
    later: dict[str, Any],
    swallowed: bool,  # noqa: FBT001
) -> None:
    assert rule("a", **first).swallows(rule("b", **later)) is swallowed


def test_the_version_names_the_content_and_nothing_else() -> None:
    rules = Rules(name="night")
    content = rules.model_dump(mode="json")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert rules.sha256 == hashlib.sha256(canonical.encode()).hexdigest()
    assert rules.version == f"night@{rules.sha256[:12]}"
    assert Rules.model_validate_json(rules.model_dump_json()).version == rules.version
    assert Rules(name="night", max_moving=1).version == rules.version
    assert Rules(name="night", max_moving=2).version != rules.version


def test_a_changed_copy_has_a_version_of_its_own() -> None:
    rules = Rules()
    assert rules.version
    changed = rules.model_copy(update={"max_moving": 7})
    assert changed.version == Rules(max_moving=7).version != rules.version


def test_a_file_of_the_first_release_calls_the_name_version() -> None:
    assert Rules.model_validate({"version": "2026-01"}).name == "2026-01"
    assert Rules.model_validate(Rules(name="x")) == Rules(name="x")


def test_every_kind_of_change_can_be_named() -> None:
    assert len(KINDS) == 14
    assert Rules(approvals=(rule(kinds=KINDS),)).rule_for(MIGRATION, AT) is not None


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no deadline": ({"vote_deadline_s": 0}, "greater than 0"),
    "no rounds": ({"max_vote_rounds": 0}, "greater than or equal to 1"),
    "nothing moves": ({"max_moving": 0}, "greater than or equal to 1"),
    "nothing moves in an hour": ({"movers_per_hour": 0}, "greater than or equal to 1"),
    "an unknown key": ({"no_such_rule": 1}, "Extra inputs"),
    "both names": ({"name": "a", "version": "b"}, "Extra inputs"),
    "an unknown decision": ({"approvals": [{"name": "x", "decision": "perhaps"}]}, "'approve'"),
    "an unknown kind": (
        {"approvals": [{"name": "x", "kinds": ["spot_migraton"]}]},
        "there is no kind of change 'spot_migraton'; did you mean 'spot_migration'?",
    ),
    "a kind like no other": (
        {"approvals": [{"name": "x", "kinds": ["zzz"]}]},
        "'zzz'; there are spot_migration, ",
    ),
    "risks the wrong way round": (
        {"approvals": [{"name": "x", "min_risk": "high"}]},
        "min_risk high is above max_risk low; raise max_risk",
    ),
    "a limit on asking": (
        {"approvals": [{"name": "x", "decision": "ask", "max_per_day": 3}]},
        "max_per_day limits approvals, but decision is ask",
    ),
    "a name that cannot be told from a version": (
        {"approvals": [{"name": "low@night"}]},
        "pattern",
    ),
    "a name twice": (
        {"approvals": [{"name": "x"}, {"name": "x"}]},
        "approvals: the name 'x' stands twice; rename one",
    ),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_a_policy_that_makes_no_sense_is_refused_and_says_why(case: str) -> None:
    content, told = NONSENSE[case]
    with pytest.raises(ValidationError) as refused:
        Rules.model_validate(content)
    assert told in str(refused.value)


def test_what_a_rule_must_count_is_known() -> None:
    assert not rule(max_added_usd_per_month=1).counts
    assert rule(max_per_hour=1).counts
    assert rule(max_per_day=1).counts
    assert rule(max_per_day=1, max_per_hour=1).limits == ("max_per_hour", "max_per_day")


def test_hours_are_those_of_the_rules_own_zone() -> None:
    office = WeeklyWindow(start="09:00", end="17:00", time_zone="America/New_York")
    late = rule(when=(office,), decision=Decision.ASK)
    at = datetime(2026, 1, 5, 13, 59, tzinfo=UTC)
    assert not late.matches(MIGRATION, at)
    assert late.matches(MIGRATION, at + timedelta(minutes=1))
