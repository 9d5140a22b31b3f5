"""The command line without a server: help, usage, exit codes, configuration."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from optiinfra.runtime import cli, console
from optiinfra.runtime.cli_events import time_of, time_to_come
from optiinfra.runtime.cli_recs import card
from optiinfra.schemas import errors

FLEET = """
deployments:
  - id: chat
    model: qwen
    provider: aws
clouds:
  aws:
    regions: [us-east-1]
"""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API_URL", "TOKEN", "POSTGRES_URL", "NATS_URL", "CONFIG"):
        monkeypatch.delenv(f"OPTIINFRA_{name}", raising=False)
    monkeypatch.setenv("OPTIINFRA_HOME", str(tmp_path / "home"))


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in ("demo", "up", "doctor", "recs", "changes", "events", "audit", "switch", "config"):
        assert f"  {verb} " in shown


def test_help_stays_within_its_import_budget() -> None:
    command = [sys.executable, "-c", "import optiinfra.runtime.cli, sys; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for heavy in ("pydantic", "httpx", "sqlalchemy", "fastapi", "rich", "nats", "boto3"):
        assert heavy not in loaded
    clean = [sys.executable, "-X", "importtime", "-c", "import optiinfra.runtime.cli"]
    took_s = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(clean, capture_output=True, check=True)
        took_s.append(time.perf_counter() - began)
    assert min(took_s) < 1.0


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["recs"], ["recs", "show"], ["up", "--x"]])
def test_misuse_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (errors.NotFound("x"), 3),
        (errors.Denied("x"), 4),
        (errors.Conflict("x"), 5),
        (errors.Unavailable("x"), 6),
        (errors.Rejected("x"), 2),
        (errors.Invariant("x"), 1),
        (ExceptionGroup("", [ExceptionGroup("", [errors.Conflict("x")])]), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    raised: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_given: object) -> int:
        raise raised

    monkeypatch.setattr(cli, "import_module", lambda _name: SimpleNamespace(run=fail))
    assert cli.run(["up"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("arguments", "module", "function"),
    [
        (["up"], "up", "run"),
        (["down"], "up", "stop"),
        (["status", "--json"], "up", "status"),
        (["doctor"], "doctor", "run"),
        (["doctor", "--deep"], "doctor", "run"),
        (["migrate"], "roles", "migrate"),
        (["coordinator"], "roles", "run_role"),
        (["agent", "cost"], "roles", "run_agent"),
    ],
)
def test_verbs_that_start_things_call_the_runtime_late(
    arguments: list[str], module: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def found(name: str) -> SimpleNamespace:
        called.append(name)
        return SimpleNamespace(**{function: lambda *_given: 7})

    monkeypatch.setattr(cli, "import_module", found)
    assert cli.run(arguments) == 7
    assert called == [f"optiinfra.runtime.{module}"]


def test_a_home_before_the_verb_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Path] = []

    def keep(settings: SimpleNamespace) -> int:
        seen.append(settings.home)
        return 0

    monkeypatch.setattr(cli, "import_module", lambda _name: SimpleNamespace(run=keep))
    assert cli.run(["--home", str(tmp_path / "a"), "up"]) == 0
    assert cli.run(["--home", str(tmp_path / "a"), "up", "--home", str(tmp_path / "b")]) == 0
    assert seen == [tmp_path / "a", tmp_path / "b"]


def test_the_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[SimpleNamespace] = []

    def play(options: SimpleNamespace) -> int:
        seen.append(options)
        return 0

    demo = SimpleNamespace(DemoOptions=SimpleNamespace, run=play)
    monkeypatch.setattr(cli, "import_module", lambda _name: demo)
    monkeypatch.delenv("OPTIINFRA_HOME")
    arguments = ["--fast", "--yes", "--json", "--seed", "3", "--play", "b"]
    assert cli.run(["demo", *arguments]) == 0
    assert cli.run(["demo", "--home", str(tmp_path)]) == 0
    first, second = (vars(options) for options in seen)
    wanted = {"fast": True, "yes": True, "json": True, "seed": 3, "home": None, "play": "b"}
    assert first == wanted
    assert second["home"] == tmp_path


def test_without_a_running_api_the_hint_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["recs", "ls"]) == 6
    assert "optiinfra up" in capsys.readouterr().err


def test_a_url_without_a_token_is_denied(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTIINFRA_API_URL", "http://127.0.0.1:9")
    assert cli.run(["recs", "ls"]) == 4
    monkeypatch.setenv("OPTIINFRA_TOKEN", "oi_s-1_x")
    assert cli.run(["recs", "ls"]) == 6
    assert "cannot be reached" in capsys.readouterr().err


def test_a_bad_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTIINFRA_PORTAL_PORT", "many")
    assert cli.run(["config", "show"]) == 2
    assert "portal_port" in capsys.readouterr().err


def test_the_configuration_is_shown_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTIINFRA_TOKEN", "oi_s-1_hidden")
    monkeypatch.setenv("OPTIINFRA_POSTGRES_URL", "postgresql://ana:hidden@db:5432/x")
    monkeypatch.setenv("OPTIINFRA_OPERATOR_NATS_URL", "nats://operator:hidden@bus:4222")
    assert cli.run(["config", "show", "--json"]) == 0
    shown = capsys.readouterr().out
    assert "hidden" not in shown
    assert json.loads(shown)["postgres_url"] == "postgresql://db:5432"


def test_a_fleet_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(FLEET)
    bad.write_text(FLEET.replace("model: qwen", "modle: qwen"))
    assert cli.run(["config", "check", str(good)]) == 0
    assert "serves chat" in capsys.readouterr().out
    assert cli.run(["--config", str(bad), "config", "check"]) == 2
    assert "modle" in capsys.readouterr().err
    assert cli.run(["config", "check"]) == 2


def test_times_may_be_given_as_how_long_ago() -> None:
    ago, exact = time_of("2h"), time_of("2026-01-05T12:00:00")
    assert ago is not None
    assert 7_190 < time.time() - ago.timestamp() < 7_210
    assert exact is not None
    assert exact.isoformat() == "2026-01-05T12:00:00+00:00"
    assert time_of(None) is None
    with pytest.raises(errors.Rejected, match="not a time"):
        time_of("soon")
    assert 7_190 < time_to_come("2h").timestamp() - time.time() < 7_210
    with pytest.raises(errors.Rejected, match="how long from now"):
        time_to_come("tomorrow")


def test_a_card_puts_dissent_first_and_never_shows_unknown_as_zero() -> None:
    vote = {"agent": "resource", "verdict": "approve", "reasons": ["room"]}
    found = {
        "id": "0" * 32,
        "state": "awaiting_approval",
        "version_hash": "abc",
        "proposed_at": "2026-01-05T12:00:00Z",
        "snoozed": {"by": "person:ana", "until": "2026-01-05T12:00:00Z", "reason": ""},
        "approvals": [{"by": "person:ana", "granted": True}],
        "approvals_needed": 2,
        "votes": [vote, {"agent": "performance", "verdict": "abstain", "reasons": ["unsure"]}],
        "recommendation": {
            "title": "Move",
            "deployment": "chat",
            "proposer": "cost",
            "risk": "high",
            "risk_reasons": ["reclaims"],
            "rollout": {"stages": [{"share": 0.1}, {"share": 1.0}]},
            "rollback_seconds": 5.0,
            "cannot_be_undone": [],
            "evidence": [
                {"name": "kv", "unit": "1", "source": "vllm", "reading": {"state": "unknown"}}
            ],
        },
    }
    lines = card(found)
    assert lines[0].startswith("Move  [snoozed until 2026-01-0")
    assert lines[0].endswith("by person:ana]")
    assert card({**found, "snoozed": None})[0] == "Move  [awaiting_approval]"
    votes = [line for line in lines if line.startswith("vote")]
    assert "performance" in votes[0]
    assert "approval  person:ana says yes; 1 of 2 have said yes" in lines
    assert f"saving    {console.UNKNOWN} a month" in lines
    assert any(f"kv {console.UNKNOWN}" in line for line in lines)
    assert "rollout   10% → 100%, rollback in 5 s" in lines
