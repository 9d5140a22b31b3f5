"""`kill -9` in the middle of a change: a restart on the same home finishes the story."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from optiinfra.agents.collectors.clouds import TAG_TOKEN, AwsAccount, AwsApi
from optiinfra.demo import scenario
from optiinfra.demo.children import child_environment
from optiinfra.demo.scenario import FAST, Play
from optiinfra.schemas.base import Value
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.verification import verify
from optiinfra.storage.testing.servers import reachable_home
from tests.up_stand import Up, until_answered

STORY_S = 150.0
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@dataclass
class Helper:
    """A child of the test that says JSON lines."""

    module: str
    plan: Value
    folder: Path
    said: list[dict[str, Any]] = field(default_factory=list)
    process: Process | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Helper]:
        path = self.folder / f"{self.module}.json"
        path.write_text(self.plan.model_dump_json())
        with (self.folder / f"{self.module}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self.module, str(path),
                stdin=PIPE, stdout=PIPE, stderr=log, env=child_environment(**CREDENTIALS),
            )  # fmt: skip
        hearing = asyncio.create_task(self._hear(self.process))
        try:
            yield self
        finally:
            if self.process.returncode is None:
                self.process.terminate()
            async with asyncio.timeout(30):
                await hearing
                await self.process.wait()

    async def _hear(self, process: Process) -> None:
        assert process.stdout is not None
        async for raw in process.stdout:
            self.said.append(json.loads(raw))

    async def says(self, event: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                for line in self.said:
                    if line["event"] == event:
                        return line
                await asyncio.sleep(0.05)


@dataclass
class Stage:
    """The cloud, OptiInfra, and the users."""

    cloud: Helper
    up: Up
    load: Helper
    ec2: AwsApi

    async def machines(self) -> list[dict[str, Any]]:
        """Every instance that was ever launched, also those that have ended."""
        answer = await self.ec2.call("describe_instances", {})
        return [raw for one in answer["Reservations"] for raw in one["Instances"]]


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A fleet of two under load, in which policy approves its migration to spot."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    plays = (Play.MIGRATION,)
    with reachable_home() as folder:
        cloud = Helper(
            "optiinfra.demo.cloud",
            scenario.cloud_plan(plays, seed=1, log_dir=folder / "engines"),
            folder,
        )
        async with cloud.running():
            at = await cloud.says("ready")
            up = Up(folder, fleet_of(at), CREDENTIALS)
            ec2 = AwsApi.connect(
                "ec2", AwsAccount(region=scenario.REGION, endpoint_url=at["endpoint_url"])
            )
            try:
                session = await up.start()
                plan = scenario.load_plan(plays, seed=1, gateway_url=str(session.gateway_url))
                for stream in plan.streams:
                    await until_answered(plan.gateway_url, stream.model)
                load = Helper("optiinfra.demo.load", plan, folder)
                async with load.running():
                    yield Stage(cloud, up, load, ec2)
            finally:
                ec2.close()
                await up.close()


def fleet_of(at: dict[str, Any]) -> dict[str, Any]:
    content = scenario.fleet_file(
        (Play.MIGRATION,), FAST, endpoint_url=at["endpoint_url"], queue_url=at["queue_url"]
    )
    content["rules"]["approvals"] = [{"name": "all", "max_risk": "critical"}]
    content["timing"] |= {
        "stage_shares": [0.5, 1.0],
        "stage_soak_s": [3.0, 3.0],
        "apply_timeout_s": STORY_S,  # a second start on a slow machine takes its time from a step's
    }
    return content


@asynccontextmanager
async def database_of(stage: Stage) -> AsyncIterator[Database]:
    async with stage.up.database() as database:
        yield database


async def log_of(database: Database, *kinds: str) -> list[dict[str, Any]]:
    """What has been said of changes so far, oldest first."""
    types = [f"optiinfra.{kind}.v1" for kind in kinds]
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT chain, body FROM event_log WHERE type = ANY($1) ORDER BY position", types
        )
    return [{"chain": row["chain"], **json.loads(row["body"])} for row in rows]


async def until_said(stage: Stage, kind: str) -> dict[str, Any]:
    """The first event of a kind; fails with what was said instead."""
    async with database_of(stage) as database:
        try:
            async with asyncio.timeout(STORY_S):
                while not (found := await log_of(database, kind)):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            everything = await story(database)
            raise AssertionError(f"no {kind}: {everything[-30:]}") from None
    return found[0]


async def story(database: Database) -> list[str]:
    """What was said and when, s since the first."""
    async with database.connection() as connection:
        rows = await connection.fetch("SELECT type, at FROM event_log ORDER BY position")
    return [f"{(row['at'] - rows[0]['at']).total_seconds():.1f} {row['type']}" for row in rows]


async def killed_while_applying(stage: Stage) -> None:
    """Kills when the step has begun (its intent stands) and before it has ended."""
    async with database_of(stage) as database, asyncio.timeout(STORY_S):
        while not await _open_intents(database):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)
    await stage.up.kill()


async def _open_intents(database: Database) -> int:
    async with database.connection() as connection:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM executions WHERE finished_at IS NULL"
        )
    return count


async def killed_between_stages(stage: Stage) -> None:
    """Kills after the first stage is in force, while its gate is asked."""
    await until_said(stage, "execution.staged")
    await stage.up.kill()


async def check_the_end(stage: Stage) -> None:
    """Completed; each step applied once; no machine too many; no request lost; the log whole."""
    completed = await until_said(stage, "change.completed")
    change = completed["change"]
    async with database_of(stage) as database:
        staged = await log_of(database, "execution.staged")
        steps = [json.dumps(one["result"]["step"], sort_keys=True) for one in staged]
        assert len(steps) == len(set(steps)) == 3
        assert len(await log_of(database, "change.completed")) == 1
        assert not await log_of(database, "change.failed", "change.rolled_back")
        await check_intents(database, change)
        assert (await verify(database)).ok
    await check_machines(await stage.machines())
    await check_requests(stage)


async def check_intents(database: Database, change: str) -> None:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT kind, stage, attempt, finished_at FROM executions WHERE change_id = $1", change
        )
    assert len({(row["kind"], row["stage"], row["attempt"]) for row in rows}) == len(rows) == 3
    assert all(row["finished_at"] is not None for row in rows)


async def check_machines(machines: Sequence[dict[str, Any]]) -> None:
    """Two on demand at first, two on spot at last, each launched under a name of its own."""
    spot = [raw for raw in machines if raw.get("InstanceLifecycle") == "spot"]
    tokens = [tag["Value"] for raw in spot for tag in raw["Tags"] if tag["Key"] == TAG_TOKEN]
    assert len(tokens) == len(set(tokens)) == len(spot) == 2
    running = [raw for raw in machines if raw["State"]["Name"] == "running"]
    assert sorted(raw["InstanceId"] for raw in running) == sorted(r["InstanceId"] for r in spot)


async def check_requests(stage: Stage) -> None:
    assert stage.load.process is not None
    stage.load.process.terminate()
    counts = await stage.load.says("ended")
    assert counts["served"] > 20, counts
    assert (counts["failed"], counts["truncated"]) == (0, 0), counts["lost"]


@pytest.mark.timeout(400)
async def test_killed_between_stages_it_finishes_the_change(stage: Stage) -> None:
    await killed_between_stages(stage)
    await stage.up.start()
    await check_the_end(stage)


@pytest.mark.timeout(400)
async def test_killed_while_it_applies_a_step_it_finishes_the_change(stage: Stage) -> None:
    await killed_while_applying(stage)
    await stage.up.start()
    await check_the_end(stage)
