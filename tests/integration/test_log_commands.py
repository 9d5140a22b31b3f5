"""The commands that read the log of a real database, as an operator runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from optiinfra.coordinator.runner import Runner
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.postgres.database import open_database
from tests.factories import event, recommendation, vote
from tests.saga_log import AUTO

ONES = [recommendation(number, deployment=f"d-{number}", risk=Risk.LOW) for number in range(3)]


class Silent:
    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        return list(range(1, len(events) + 1))


class Shell:
    def __init__(self, url: str, home: Path) -> None:
        self._env = {
            "OPTIINFRA_HOME": str(home),
            "OPTIINFRA_POSTGRES_URL": url,
            "PATH": "/usr/bin:/bin",
        }

    def run(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            (sys.executable, "-m", "optiinfra.runtime.cli", *arguments),
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout or done.stderr

    def lines(self, *arguments: str) -> list[dict[str, object]]:
        code, out = self.run(*arguments, "--json")
        assert code == 0, out
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
async def shell(database: str, tmp_path: Path) -> Shell:
    """Over a log of one change that has begun, one that waits for it, one that is voted on."""
    async with open_database(database) as opened:
        runner = Runner(opened, Silent(), lambda: AUTO)

        async def hear(*facts: f.Fact) -> None:
            assert await runner.handle([event(fact) for fact in facts]) == [None] * len(facts)

        for one in ONES:
            await hear(f.RecommendationProposed(recommendation=one))
        for one in ONES[:2]:
            await hear(*(vote(one.id, agent) for agent in VOTERS))
    return Shell(database, tmp_path)


def states(lines: Sequence[dict[str, object]]) -> dict[object, object]:
    return {line["change"]: line["state"] for line in lines if "state" in line}


def of(one: Recommendation, state: str) -> dict[object, object]:
    return {one.id: state}


def test_a_replay_folds_the_states_without_the_tables_in_use(shell: Shell) -> None:
    told = shell.lines("events", "replay", "--tenant", "acme", "--states")
    assert states(told) == of(ONES[0], "executing") | of(ONES[1], "deferred") | of(
        ONES[2], "voting"
    )
    begun = next(line for line in told if line.get("kind") == "execution.requested")
    before = shell.lines(
        "events", "replay", "--tenant", "acme", "--states", "--until", str(begun["at"])
    )
    assert states(before)[ONES[0].id] == "voting"
    some = shell.lines(
        "events", "replay", "--tenant", "acme", "--states", "--kind", "change.opened"
    )
    assert [line["kind"] for line in some if "kind" in line] == ["change.opened"] * 3
    assert states(some) == states(told)
    one = shell.lines("events", "replay", "--tenant", "acme", "--states", "--change", ONES[2].id)
    assert states(one) == of(ONES[2], "voting")
    code, out = shell.run("events", "replay", "--tenant", "acme", "--states", "--limit", "2")
    assert code == 0
    assert [line.split("\t")[1] for line in out.splitlines()[3:]] == ["proposed"], out


def test_another_policy_is_tried_on_the_log(shell: Shell, tmp_path: Path) -> None:
    policy = tmp_path / "other.yaml"
    policy.write_text("name: nothing-by-itself\napprovals: []\n")
    (found,) = shell.lines("what-if", "--tenant", "acme", "--policy", str(policy))
    differences = found["differences"]
    assert isinstance(differences, list)
    assert {one["change"] for one in differences} == {ONES[0].id, ONES[1].id}
    assert found["changes"] == 3
    code, out = shell.run("what-if", "--tenant", "acme", "--policy", str(policy))
    assert code == 0
    assert "2 of 3 changes differ" in out
    policy.write_text("nmae: typo\n")
    code, out = shell.run("what-if", "--tenant", "acme", "--policy", str(policy))
    assert code == 2
    assert "nmae" in out


def test_an_export_is_checked_away_from_the_database(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    code, out = shell.run("audit", "export", str(file), "--tenant", "acme")
    assert code == 0, out
    assert shell.run("audit", "verify", "--file", str(file))[0] == 0
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3] + lines[4:]))
    code, out = shell.run("audit", "verify", "--file", str(file))
    assert code == 1
    assert "missing" in out
