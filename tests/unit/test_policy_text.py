"""Policies as text: read, told where a finding stands, and written so that they mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optiinfra.portal_api.policy_text import NotYaml, read_policy, written
from optiinfra.schemas.rules import Rules

EXAMPLE = Path(__file__).parents[2] / "deploy" / "policy.example.yaml"
TEXT = """\
name: a
approvals:
  - name: night(x.y)
    kinds:
      - spot_migration
      - spot_migratoin
    when: [{start: "18:00"}]
max_movin: 1
"""


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        ("max_movin: there is no such key", 8),
        ("approvals.0.kinds.1: there is no kind", 6),
        ("approvals.0 (night(x.y)).deployments: the fleet has none", 3),
        ("approvals.0.when.0.start: no", 7),
        ("approvals.7: there is none", 2),
        ("approvals: the name 'a' stands twice", 2),
        ("it is wrong as a whole", None),
        ("freezes.0 (b): it ended", None),
    ],
)
def test_a_finding_has_the_line_of_its_key_or_of_what_is_around_it(
    finding: str, line: int | None
) -> None:
    assert read_policy(TEXT).line_of(finding) == line


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("max_moving: [\n", "not YAML", 2),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice", 3),
        ("approvals:\n- {name: a, name: b}\n", "the key 'name' stands twice", 2),
        ("- a\n", "a policy is a mapping", 1),
        ("", "a policy is a mapping", 1),
        ("a: 1\n--- \nb: 2\n", "not YAML", 2),
        ("a: !!python/object:os.system x", "not YAML", 1),
        ("a: 2026-99-99", "cannot be read", None),
        (f"a: {'9' * 5000}", "cannot be read", None),
        ("a: 1\nb: " + "[" * 9000, "more than 50 deep", 2),
        ("- " * 9000, "cannot be read", None),
        ("a: \x00", "cannot be read", None),
    ],
)
def test_what_is_no_policy_is_told_with_its_line(text: str, said: str, line: int | None) -> None:
    with pytest.raises(NotYaml, match=said) as refused:
        read_policy(text)
    assert refused.value.line == line


def test_a_text_that_names_itself_ends() -> None:
    policy = read_policy("a: &a [*a, &b {c: *b}]\nd: *a\n")
    assert policy.line_of("d.1.c.c.nothing: x") == 1


def test_a_policy_is_written_without_defaults_and_means_the_same() -> None:
    rules = Rules.model_validate(yaml.safe_load(EXAMPLE.read_text()))
    text = written(rules.model_dump(mode="json"))
    assert "vote_deadline_s" not in text
    assert Rules.model_validate(read_policy(text).content).sha256 == rules.sha256
    assert written(Rules().model_dump(mode="json")) == "name: default\n"
    unlimited = Rules(movers_per_hour=None)
    text = written(unlimited.model_dump(mode="json"))
    assert Rules.model_validate(read_policy(text).content).sha256 == unlimited.sha256


def test_a_policy_of_another_release_is_written_whole() -> None:
    policy = {"name": "a", "from_next_year": 1, "max_moving": 1}
    assert yaml.safe_load(written(policy)) == policy
