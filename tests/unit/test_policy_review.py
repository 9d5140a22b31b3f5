"""Parts of a valid policy that never count, and the deployments that it names."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from optiinfra.schemas.policy_review import named_deployments, undeclared, warnings
from optiinfra.schemas.rules import Rules
from tests.factories import AT


def doubts(**content: Any) -> tuple[str, ...]:
    return warnings(Rules.model_validate(content), AT)


def test_a_policy_whose_every_part_counts_leaves_no_doubt() -> None:
    assert doubts() == ()
    assert (
        doubts(
            approvals=[
                {"name": "night", "when": [{"start": "22:00", "end": "06:00"}], "decision": "ask"},
                {"name": "low"},
                {"name": "medium", "max_risk": "medium"},
            ],
            four_eyes_from="high",
            freezes=[{"name": "x", "starts_at": AT, "ends_at": AT + timedelta(hours=1)}],
            movers_per_hour_per_target=3,
        )
        == ()
    )


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "swallowed": (
        {"approvals": [{"name": "all", "max_risk": "critical"}, {"name": "late"}]},
        "approvals.1 (late): it never matches, as 'all' before it",
    ),
    "irreversible": (
        {"approvals": [{"name": "buy", "kinds": ["commitment_purchase"]}]},
        "approvals.0 (buy): no rule approves what cannot be undone",
    ),
    "above four eyes": (
        {"approvals": [{"name": "bold", "max_risk": "high"}], "four_eyes_from": "high"},
        "approvals.0 (bold).max_risk: from risk high on two people are asked",
    ),
    "over": (
        {"freezes": [{"name": "old", "starts_at": AT - timedelta(days=1), "ends_at": AT}]},
        "freezes.0 (old): it ended at 2026-01-05 12:00:00+00:00; drop it",
    ),
    "a limit that is never reached": (
        {"movers_per_hour": 3, "movers_per_hour_per_target": 3},
        "movers_per_hour_per_target: 3 is not below movers_per_hour (3)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_part_that_never_counts_is_told_with_its_key(case: str) -> None:
    content, told = CASES[case]
    (doubt,) = doubts(**content)
    assert doubt.startswith(told)


def test_rules_that_ask_are_not_suspected_of_approving() -> None:
    asking = {"name": "buy", "kinds": ["commitment_purchase"], "decision": "ask"}
    assert doubts(approvals=[asking], four_eyes_from="low") == ()


def test_every_deployment_that_is_named_is_found_with_its_key() -> None:
    rules = Rules.model_validate(
        {
            "approvals": [{"name": "a"}, {"name": "b", "deployments": ["chat", "search"]}],
            "freezes": [{"name": "w", "weekly": {"days": ["sun"]}, "deployments": ["chat"]}],
            "floors": [{"name": "f", "evidence": "ttft_p95_s", "max": 1, "deployments": ["x"]}],
        }
    )
    assert list(named_deployments(rules)) == [
        ("approvals.1 (b).deployments", "chat"),
        ("approvals.1 (b).deployments", "search"),
        ("freezes.0 (w).deployments", "chat"),
        ("floors.0 (f).deployments", "x"),
    ]


def test_what_is_bound_names_deployments_too() -> None:
    rules = Rules.model_validate({"arbitration": {"needs": {"chat": ["embed"]}}})
    where = "arbitration.needs.chat"
    assert list(named_deployments(rules)) == [(where, "chat"), (where, "embed")]


def test_deployments_that_nobody_declares_are_named_with_what_was_meant() -> None:
    rules = Rules.model_validate(
        {"approvals": [{"name": "x", "deployments": ["chat", "cod", "xyzzy"]}]}
    )
    assert list(undeclared(rules, ("chat", "code"))) == [
        "approvals.0 (x).deployments: the fleet has no deployment 'cod'; did you mean 'code'?",
        "approvals.0 (x).deployments: the fleet has no deployment 'xyzzy'; there are chat, code",
    ]
