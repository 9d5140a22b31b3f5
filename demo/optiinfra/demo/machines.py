"""What runs on the simulated machines: one emulated engine for each instance that is paid for."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from optiinfra.agents.collectors.clouds import (
    PAID_STATES,
    TAG_DEPLOYMENT,
    TAG_EMULATED,
    TAG_ENDPOINT,
    TAG_REPLICA,
    AwsApi,
)
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.storage.embedded.child import launched
from optiinfra.twin.defects import Defect

_LOOK_S = 1.0
_STARTUP_S = 30.0
Say = Callable[..., None]


class EngineSpec(Value):
    """What serves one deployment on the simulated machines."""

    deployment: str
    model: str
    card: str
    seed: int = 0
    grace_s: float = Field(default=10.0, ge=0)


@dataclass(slots=True)
class _Engine:
    replica: str
    task: asyncio.Task[None]
    process: Process | None = None


class Machines:
    """Keeps engines and instances in step: `run` until it is cancelled."""

    def __init__(
        self, ec2: AwsApi, specs: Mapping[str, EngineSpec], *, log_dir: Path, say: Say
    ) -> None:
        self._ec2 = ec2
        self._specs = specs
        self._log_dir = log_dir
        self._say = say
        self._engines: dict[str, _Engine] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._serving: set[str] = set()
        self._served = asyncio.Condition()
        self.defects: dict[str, Defect] = {}
        """By deployment: what is wrong with replicas that are launched from now on."""

    def wake(self) -> None:
        """Look now: something has been launched or terminated."""
        self._woken.set()

    async def run(self) -> None:
        """Look at every change and each second; at the end stop all engines."""
        try:
            while True:
                self._woken.clear()
                await self._look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._woken.wait()
        finally:
            self._stop(list(self._engines))
            await asyncio.gather(*self._stopping)

    async def serving(self, instances: frozenset[str]) -> None:
        """Wait until engines serve on all of `instances`."""
        async with self._served:
            await self._served.wait_for(lambda: instances <= self._serving)

    def kill(self, instance_id: str) -> None:
        """Take the power away: the engine is gone at once, whatever it was doing."""
        engine = self._engines.get(instance_id)
        if engine is not None and engine.process is not None:
            with suppress(ProcessLookupError):
                engine.process.kill()

    async def running(self) -> dict[str, dict[str, Any]]:
        """Instances with our tags that are paid for, by id."""
        filters = [
            {"Name": "tag-key", "Values": [TAG_DEPLOYMENT]},
            {"Name": "instance-state-name", "Values": list(PAID_STATES)},
        ]
        reservations = await self._ec2.pages(
            "describe_instances", {"Filters": filters}, "Reservations"
        )
        return {raw["InstanceId"]: raw for one in reservations for raw in one["Instances"]}

    async def _look(self) -> None:
        there = await self.running()
        for instance_id in sorted(there.keys() - self._engines.keys()):
            tags = tags_of(there[instance_id])
            spec = self._specs.get(tags[TAG_DEPLOYMENT])
            if spec is None:
                continue
            replica = tags.get(TAG_REPLICA, instance_id)
            defect = self.defects.get(spec.deployment, Defect())
            self._say(
                "launched",
                replica=replica,
                deployment=spec.deployment,
                instance=instance_id,
                instance_type=there[instance_id]["InstanceType"],
                zone=there[instance_id]["Placement"]["AvailabilityZone"],
                market=there[instance_id].get("InstanceLifecycle", "on_demand"),
            )
            task = asyncio.create_task(self._engine(instance_id, replica, spec, defect))
            self._engines[instance_id] = _Engine(replica, task)
        self._stop([name for name in self._engines if name not in there])

    def _stop(self, instances: list[str]) -> None:
        """Ends the engines of `instances`; none waits for another that still answers."""
        for name in instances:
            self._serving.discard(name)
            ending = asyncio.create_task(self._ended(name, self._engines.pop(name)))
            self._stopping.add(ending)
            ending.add_done_callback(self._stopping.discard)

    async def _ended(self, instance_id: str, engine: _Engine) -> None:
        engine.task.cancel()
        with suppress(asyncio.CancelledError):
            await engine.task
        self._say("stopped", replica=engine.replica, instance=instance_id)

    async def _engine(
        self, instance_id: str, replica: str, spec: EngineSpec, defect: Defect
    ) -> None:
        """One engine's life, from the start of its process to the end of its instance."""
        with (self._log_dir / f"{replica}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *launched(None, signal.SIGTERM), *_command(spec, defect),
                stdin=DEVNULL, stdout=PIPE, stderr=log,
            )  # fmt: skip
        self._engines[instance_id].process = process
        try:
            try:
                await self._register(instance_id, replica, await _first_word(process))
            except (Rejected, Unavailable) as error:
                self._say("failed", replica=replica, instance=instance_id, error=str(error))
            await asyncio.Event().wait()
        finally:
            await _end(process, spec.grace_s)

    async def _register(self, instance_id: str, replica: str, url: str) -> None:
        """The tags by which the agents find it."""
        tags = {TAG_ENDPOINT: url, TAG_EMULATED: "true"}
        await self._ec2.call(
            "create_tags",
            {
                "Resources": [instance_id],
                "Tags": [{"Key": name, "Value": value} for name, value in tags.items()],
            },
        )
        self._say("serving", replica=replica, instance=instance_id, url=url)
        async with self._served:
            self._serving.add(instance_id)
            self._served.notify_all()


def tags_of(raw: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a described instance."""
    return {tag["Key"]: tag["Value"] for tag in raw.get("Tags", [])}


def _command(spec: EngineSpec, defect: Defect) -> list[str]:
    return [
        *(sys.executable, "-m", "optiinfra.twin.emulator"),
        *("--card", spec.card, "--model", spec.model, "--port", "0"),
        *("--seed", str(spec.seed), "--grace", str(spec.grace_s)),
        *("--defect", defect.model_dump_json()),
    ]


async def _first_word(process: Process) -> str:
    """The URL that the engine says it serves at. Raises `Unavailable` when it does not."""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_STARTUP_S):
            line = await process.stdout.readline()
        return str(json.loads(line)["url"])
    except (TimeoutError, ValueError, KeyError) as silent:
        raise Unavailable("the engine did not say that it serves") from silent


async def _end(process: Process, grace_s: float) -> None:
    """An orderly stop within the engine's own grace, else the hard one."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(grace_s + 1.0):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
