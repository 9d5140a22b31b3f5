"""The policy on file: read, checked against the fleet, watched, shown, and doubted."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from optiinfra.runtime import cli
from optiinfra.runtime.findings import Level
from optiinfra.runtime.fleet_file import load_fleet, load_governed, watched_policy
from optiinfra.runtime.fleet_reference import main as rewrite
from optiinfra.runtime.fleet_reference import rows, written
from optiinfra.runtime.policy_checks import (
    compared,
    look_at_policy,
    look_at_recorded_policy,
)
from optiinfra.runtime.policy_file import WatchedFile, load_policy
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.evidence_names import EVIDENCE
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.policies import PolicyRecord
from tests.factories import AT

ROOT = Path(__file__).parents[2]
FLEET = """
deployments: [{ id: chat, model: qwen, provider: aws }]
clouds: { aws: { regions: [us-east-1] } }
"""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFIG", "POLICY", "POSTGRES_URL"):
        monkeypatch.delenv(f"OPTIINFRA_{name}", raising=False)
    monkeypatch.setenv("OPTIINFRA_HOME", str(tmp_path / "home"))


def wrote(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def fleet_naming(folder: Path, policy: str = "name: mine\n") -> Path:
    wrote(folder, "policy.yaml", policy)
    return wrote(folder, "fleet.yaml", FLEET + "policy: policy.yaml\n")


# Reading.


def test_what_a_file_leaves_out_is_as_the_defaults_are(tmp_path: Path) -> None:
    assert load_policy(wrote(tmp_path, "p.yaml", "name: default\n")) == Rules()


def test_the_example_is_a_good_policy_that_leaves_no_doubt() -> None:
    fleet = load_governed(
        ROOT / "deploy" / "fleet.example.yaml", ROOT / "deploy" / "policy.example.yaml"
    )
    found = look_at_policy(fleet, Path("fleet.yaml"), AT)
    assert [one.level for one in found] == [Level.OK]
    assert fleet.rules.name == "office-hours"


def test_the_example_keeps_the_published_schema() -> None:
    schema = json.loads((ROOT / "docs" / "schemas" / "policy.json").read_text())
    Draft202012Validator.check_schema(schema)
    written_down = json.dumps(
        yaml.safe_load((ROOT / "deploy" / "policy.example.yaml").read_text()),
        default=lambda one: one.isoformat(),
    )
    Draft202012Validator(schema).validate(json.loads(written_down))
    bad = json.loads(written_down) | {"freezs": []}
    assert not Draft202012Validator(schema).is_valid(bad)
    bad = json.loads(written_down)
    bad["floors"][0]["evidence"] = "ttft"
    assert not Draft202012Validator(schema).is_valid(bad)


MISTAKES = {
    "a misspelt key": ("freezs: []", "freezs: there is no such key; did you mean 'freezes'?"),
    "a misspelt key inside": (
        "freezes: [{ name: x, weekly: { dayz: [sat] } }]",
        "freezes.0.weekly.dayz: there is no such key; did you mean 'days'?",
    ),
    "an unknown zone": (
        "freezes: [{ name: x, weekly: { days: [sat], time_zone: Europe/Berln } }]",
        "freezes.0.weekly.time_zone: there is no time zone 'Europe/Berln'; did you mean",
    ),
    "a window the wrong way round": (
        "freezes: [{ name: x, starts_at: 2026-02-01T00:00:00Z, ends_at: 2026-01-01T00:00:00Z }]",
        "freezes.0: it ends (2026-01-01 00:00:00+00:00) before it starts",
    ),
    "an unknown kind": (
        "approvals: [{ name: x, kinds: [spot] }]",
        "approvals.0.kinds.0: there is no kind of change 'spot'; ",
    ),
    "text": ("just text", "must hold a mapping with the key 'name'"),
    "nothing": ("# not yet\n", "must hold a mapping with the key 'name'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_with_its_key_and_what_to_do(tmp_path: Path, case: str) -> None:
    content, told = MISTAKES[case]
    with pytest.raises(Rejected) as refused:
        load_policy(wrote(tmp_path, "p.yaml", content))
    assert told in refused.value.message
    assert "docs/policy.md" in (refused.value.hint or "")


def test_a_policy_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match="there is no policy file"):
        load_policy(tmp_path / "none.yaml")


# With a fleet.


def test_the_fleet_file_names_its_policy_relative_to_itself(tmp_path: Path) -> None:
    path = fleet_naming(tmp_path)
    assert load_governed(path).rules.name == "mine"
    assert load_governed(path).policy == tmp_path / "policy.yaml"


def test_those_who_decide_nothing_need_no_policy_file(tmp_path: Path) -> None:
    path = fleet_naming(tmp_path)
    (tmp_path / "policy.yaml").unlink()
    assert load_fleet(path).rules == Rules()
    with pytest.raises(Rejected, match="there is no policy file"):
        load_governed(path)


def test_a_policy_that_is_given_takes_the_place_of_the_fleets(tmp_path: Path) -> None:
    other = wrote(tmp_path, "other.yaml", "name: other\n")
    assert load_governed(fleet_naming(tmp_path), other).rules.name == "other"


def test_rules_and_a_policy_at_once_are_refused(tmp_path: Path) -> None:
    path = wrote(tmp_path, "fleet.yaml", FLEET + "policy: p.yaml\nrules: { name: x }\n")
    with pytest.raises(Rejected, match="under rules or in the file that policy names, not both"):
        load_fleet(path)


@pytest.mark.parametrize("name", ["chta", "zzz"])
@pytest.mark.parametrize("inline", [True, False])
def test_a_deployment_that_the_fleet_does_not_have_is_named(
    tmp_path: Path,
    name: str,
    inline: bool,  # noqa: FBT001
) -> None:
    part = f"approvals: [{{ name: x, deployments: [{name}] }}]"
    if inline:
        path = wrote(tmp_path, "fleet.yaml", f"{FLEET}rules: {{ {part} }}\n")
    else:
        path = fleet_naming(tmp_path, part)
    with pytest.raises(Rejected) as refused:
        load_governed(path)
    told = "did you mean 'chat'?" if name == "chta" else "there are chat"
    wanted = f"approvals.0 (x).deployments: the fleet has no deployment {name!r}; {told}"
    assert wanted in refused.value.message


# Watching.


def test_a_file_speaks_once_each_time_its_content_changes(tmp_path: Path) -> None:
    path = fleet_naming(tmp_path)
    file = watched_policy(path, load_governed(path))
    first = file.first()
    assert (first.rules.name, first.edited, first.by) == ("mine", False, "file:policy.yaml")
    assert first.written_at <= datetime.now(tz=UTC)
    assert file.look() is None
    wrote(tmp_path, "policy.yaml", "name: mine\n")
    assert file.look() is None
    wrote(tmp_path, "policy.yaml", "name: other\n")
    found = file.look()
    assert found is not None
    assert (found.rules.name, found.edited) == ("other", True)
    assert file.look() is None


def test_a_broken_file_is_told_once_and_heard_again_when_it_is_whole(tmp_path: Path) -> None:
    path = wrote(tmp_path, "policy.yaml", "name: a\n")
    file = WatchedFile(path, load_policy)
    file.first()
    path.write_text("name: [")
    with pytest.raises(Rejected):
        file.look()
    assert file.look() is None
    path.unlink()
    with pytest.raises(Rejected):
        file.look()
    assert file.look() is None
    path.write_text("name: a\n")
    assert file.look() is not None


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    path = wrote(tmp_path, "policy.yaml", "name: a\n")
    writing = iter(["name: b\n", "name: b\nmax_moving: 2\n"])

    def go_on() -> None:
        path.write_text(next(writing, path.read_text()))

    file = WatchedFile(path, load_policy, go_on)
    file.first()
    path.write_text("name: ab\n")
    assert [file.look(), file.look()] == [None, None]
    found = file.look()
    assert found is not None
    assert (found.rules.name, found.rules.max_moving) == ("b", 2)


def test_a_second_start_beside_a_broken_file_goes_on_with_what_it_said_last(
    tmp_path: Path,
) -> None:
    path = wrote(tmp_path, "policy.yaml", "name: [")
    file = WatchedFile(path, load_policy)
    with pytest.raises(Rejected):
        file.first()
    path.write_text("name: a\n")
    file.first()
    path.write_text("name: [")
    again = file.first()
    assert (again.rules.name, again.edited) == ("a", False)
    with pytest.raises(Rejected):
        file.look()


def test_a_file_that_goes_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = wrote(tmp_path, "policy.yaml", "name: a\n")

    def read(file: Path) -> Rules:
        rules = load_policy(file)
        file.unlink()
        return rules

    with pytest.raises(Rejected, match="has gone"):
        WatchedFile(path, read).first()


def test_rules_in_the_fleet_file_are_watched_there(tmp_path: Path) -> None:
    path = wrote(tmp_path, "fleet.yaml", FLEET)
    file = watched_policy(path, load_governed(path))
    assert file.first().rules == Rules()
    path.write_text(FLEET + "rules: { max_moving: 3 }\n")
    found = file.look()
    assert found is not None
    assert found.rules.max_moving == 3


# What is shown and checked.


def test_config_check_says_the_version_and_doubts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    swallowed = "approvals: [{ name: a }, { name: b }]\n"
    path = fleet_naming(tmp_path, swallowed)
    version = load_governed(path).rules.version
    assert cli.run(["config", "check", str(path)]) == 0
    printed = capsys.readouterr()
    assert f"policy.yaml holds a good policy: {version}" in printed.out
    assert "warning: approvals.1 (b): it never matches" in printed.err
    assert cli.run(["config", "check", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rules_version"] == version
    assert len(told["warnings"]) == 1


def test_config_check_takes_a_policy_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wrote(tmp_path, "p.yaml", "name: alone\n")
    assert cli.run(["config", "check", "--policy", str(path)]) == 0
    assert "holds a good policy: alone@" in capsys.readouterr().out
    assert cli.run(["--policy", str(path), "config", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rules"]["name"] == "alone"
    path.write_text("naem: x\n")
    assert cli.run(["config", "check", "--policy", str(path)]) == 2
    assert "naem: there is no such key; did you mean 'name'?" in capsys.readouterr().err


def test_config_show_prints_the_whole_policy_and_its_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fleet_naming(tmp_path)
    rules = load_governed(path).rules
    assert cli.run(["--config", str(path), "config", "show"]) == 0
    shown = capsys.readouterr().out
    assert f"# policy {rules.version}" in shown
    _, _, text = shown.partition(f"# policy {rules.version}\n")
    assert Rules.model_validate(yaml.safe_load(text)) == rules
    assert cli.run(["--config", str(path), "config", "show", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rules_version"], told["rules"]["name"]) == (rules.version, "mine")
    assert cli.run(["config", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rules"] is None


def test_the_doctor_doubts_what_never_counts(tmp_path: Path) -> None:
    path = fleet_naming(tmp_path, "approvals: [{ name: a }, { name: b }]\n")
    ok, doubt = look_at_policy(load_governed(path), path, AT)
    assert ok.said.endswith("policy.yaml")
    assert (doubt.level, "never matches" in doubt.said) == (Level.WARN, True)


def test_the_doctor_tells_when_another_policy_is_in_force() -> None:
    rules = Rules()
    newest = PolicyRecord(3, "other@0", "", "{}", "file:other.yaml", AT, AT)
    differs = compared(newest, rules)
    assert differs.level is Level.WARN
    assert "it is other@0 from file:other.yaml, recorded 2026-01-05 12:00 UTC" in differs.said
    same = PolicyRecord(3, rules.version, "", "{}", "file:p", AT, AT)
    assert compared(same, rules).said == f"{rules.version}, number 3"
    assert compared(None, rules).level is Level.OK


async def test_the_doctor_without_a_database_says_nothing_of_what_is_recorded(
    tmp_path: Path,
) -> None:
    fleet = load_governed(fleet_naming(tmp_path))
    assert await look_at_recorded_policy(Settings(), fleet) == []
    away = Settings(postgres_url="postgresql://x:secret@127.0.0.1:1/none")
    (found,) = await look_at_recorded_policy(away, fleet)
    assert found.level is Level.FAIL
    assert "secret" not in found.said


# Documents.


def test_every_key_of_the_policy_is_explained() -> None:
    assert [key for key, _, _, about in rows(Rules) if not about] == []


def test_the_documentation_lists_the_keys_that_there_are(tmp_path: Path) -> None:
    document = ROOT / "docs" / "policy.md"
    assert document.read_text() == written(document.read_text(), Rules), (
        "run: python -m optiinfra.runtime.fleet_reference docs/policy.md"
    )
    copy = wrote(tmp_path, "policy.md", document.read_text().replace("| `name` |", "| `nom` |"))
    assert rewrite([str(copy)]) == 0
    assert copy.read_text() == document.read_text()


def test_the_documentation_lists_the_evidence_that_there_is() -> None:
    text = (ROOT / "docs" / "policy.md").read_text()
    for name, known in EVIDENCE.items():
        voices = [", ".join(sorted(v)) or "–" for v in (known.votes, known.gates)]
        assert f"| `{name}` | {known.unit} | {voices[0]} | {voices[1]} |" in text
