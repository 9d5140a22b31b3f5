"""The doctor: what it finds, how it tells it, and that it shows no secret."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from optiinfra.runtime import doctor, machine
from optiinfra.runtime.findings import Finding, Level, checking, failed, public
from optiinfra.runtime.fleet_file import load_fleet
from optiinfra.runtime.fleet_reference import main as rewrite
from optiinfra.runtime.fleet_reference import rows, written
from optiinfra.runtime.settings import Settings, load_settings
from optiinfra.schemas.errors import Unavailable

ROOT = Path(__file__).resolve().parents[2]
LOCAL: dict[str, Any] = {
    "clouds": {"local": {"command": ["engine"]}},
    "deployments": [
        {"id": "chat", "model": "m", "provider": "local", "perf_card": "l40s-8b-fp16-tp1"}
    ],
}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OPTIINFRA_")]:
        monkeypatch.delenv(name)


def settings(folder: Path, content: object = None) -> Settings:
    """Settings of a home that is not there yet, with free ports."""
    config = None
    if content is not None:
        config = folder / "fleet.yaml"
        config.write_text(yaml.safe_dump(content))
    return load_settings(home=folder / "home", config=config, portal_port=0, gateway_port=0)


def level_of(found: list[Finding], what: str) -> Level:
    [one] = [one for one in found if one.what == what]
    return one.level


async def test_a_good_set_up_has_no_failure(tmp_path: Path) -> None:
    found = await doctor.examine(settings(tmp_path, LOCAL))
    assert [one for one in found if one.level is Level.FAIL] == []
    assert level_of(found, "deployment chat") is Level.WARN
    assert level_of(found, "golden set") is Level.OK
    assert level_of(found, "clouds.local") is Level.OK
    assert not (tmp_path / "home").exists()


async def test_without_a_fleet_file_it_looks_at_the_rest_and_says_so(tmp_path: Path) -> None:
    found = await doctor.examine(settings(tmp_path))
    assert level_of(found, "fleet file") is Level.WARN
    assert level_of(found, "python") is Level.OK


async def test_a_bad_fleet_file_a_missing_golden_set_and_no_card_are_told(tmp_path: Path) -> None:
    found = await doctor.examine(settings(tmp_path, {**LOCAL, "mode": "dry"}))
    [bad] = [one for one in found if one.level is Level.FAIL]
    assert bad.what == "fleet file"
    assert "mode" in bad.said
    [declared] = LOCAL["deployments"]
    changed = {**declared, "golden": "none.jsonl", "perf_card": None}
    found = await doctor.examine(settings(tmp_path, {**LOCAL, "deployments": [changed]}))
    assert level_of(found, "golden set") is Level.FAIL
    assert [one.level for one in found if one.what == "deployment chat"] == [Level.WARN] * 2


async def test_a_gateway_without_its_token_fails(tmp_path: Path) -> None:
    gateway = {"url": "http://127.0.0.1:9", "admin_url": "http://127.0.0.1:9"}
    found = await doctor.examine(settings(tmp_path, {**LOCAL, "gateway": gateway}))
    [bad] = [one for one in found if one.level is Level.FAIL]
    assert "OPTIINFRA_GATEWAY_ADMIN_TOKEN" in bad.todo


@pytest.mark.parametrize(
    ("free", "level"), [(1 << 20, Level.FAIL), (3 << 30, Level.WARN), (9 << 30, Level.OK)]
)
def test_too_little_disk_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level
) -> None:
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    found = machine.look_at_machine(settings(tmp_path))
    assert level_of(found, "disk") is level


def test_an_embedded_part_that_is_not_installed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda _name: None)
    found = machine.look_at_machine(settings(tmp_path))
    assert level_of(found, "PostgreSQL") is Level.FAIL


def test_lines_and_json_tell_the_same_and_the_exit_code_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.run(settings(tmp_path, LOCAL), False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " checks: 0 fail, " in lines[-1]
    assert doctor.run(settings(tmp_path, LOCAL), True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    heads = [line for line in lines[:-1] if not line.startswith(" ")]
    assert [line.split(": ")[0].split(maxsplit=1)[1] for line in heads] == [
        one["what"] for one in told["findings"]
    ]
    assert doctor.run(settings(tmp_path, {}), False) == 1
    assert "→ " in capsys.readouterr().out


def test_deep_looks_at_the_work_too_and_says_why_it_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.run(settings(tmp_path, LOCAL), False, True) == 1
    assert "fail  deep checks: there is no bus" in capsys.readouterr().out
    finding = Finding(Level.WARN, "outbox", "2 unsent", "start one", "nobody acts before")
    doctor._print_lines([finding], sys.stdout)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["warn  outbox: 2 unsent", "      nobody acts before", "      → start one"]


def test_a_finding_shows_no_password() -> None:
    error = Unavailable("no answer from nats://me:secret@host:4222/x", hint="see redis://:p@h")
    shown = failed("nats_url", error)
    assert "secret" not in shown.said
    assert shown.said.endswith("nats://host:4222/x")
    assert shown.todo == "see redis://h"
    assert public("http://host/a@b") == "http://host/a@b"


def test_a_failure_without_advice_gets_that_of_the_check() -> None:
    found: list[Finding] = []
    with checking(found, "x", "do this"):
        raise Unavailable("away")
    with checking(found, "y", "do this"):
        raise Unavailable("away", hint="do that")
    with checking(found, "z") as said:
        said("first")
        said("last")
    assert [(one.said, one.todo) for one in found] == [
        ("away", "do this"),
        ("away", "do that"),
        ("last", ""),
    ]


def test_every_key_of_the_fleet_file_is_explained() -> None:
    unexplained = [key for key, _, _, about in rows() if not about]
    assert unexplained == []


def test_the_documentation_lists_the_keys_that_there_are(tmp_path: Path) -> None:
    document = ROOT / "docs" / "fleet.md"
    assert document.read_text() == written(document.read_text()), (
        "run: python -m optiinfra.runtime.fleet_reference docs/fleet.md"
    )
    copy = tmp_path / "fleet.md"
    copy.write_text(document.read_text().replace("| `tenant` | text |", "| stale |"))
    assert rewrite([str(copy)]) == 0
    assert copy.read_text() == document.read_text()


def test_the_example_is_a_good_fleet_file() -> None:
    fleet = load_fleet(ROOT / "deploy" / "fleet.example.yaml")
    assert fleet.mode == "observe"
