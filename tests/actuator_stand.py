"""Actuators on real parts: local processes, and EC2 by moto; what their suites share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from optiinfra.agents.actuators.aws import AwsActuator, LaunchTemplate
from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.actuators.port import Actuator, LaunchSpec
from optiinfra.agents.collectors.clouds import (
    AwsApi,
    AwsInstances,
)
from optiinfra.schemas.deployment import Provider, ReplicaState
from optiinfra.schemas.ids import derived_id
from tests.cost_stand import placement

REGION = "us-east-1"


def now() -> datetime:
    return datetime.now(UTC)


def spec(provider: Provider, **changes: Any) -> LaunchSpec:
    to = placement(provider=provider, region=REGION, **changes)
    return LaunchSpec("acme", "chat", "m", to, token=derived_id("one"))


def aws(
    client: Any, *, template: bool = True, health: int = 200, start_up_s: float = 900.0
) -> AwsActuator:
    api = AwsApi(client)
    transport = httpx.MockTransport(lambda _: httpx.Response(health))
    image = client.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    return AwsActuator(
        api,
        AwsInstances(api),
        httpx.AsyncClient(transport=transport),
        clock=now,
        template=LaunchTemplate(image) if template else None,
        start_up_s=start_up_s,
    )


@asynccontextmanager
async def local(folder: Path, **changes: Any) -> AsyncIterator[LocalActuator]:
    """Engines that answer `/health`: a plain file server over a folder with that file."""
    (folder / "www").mkdir(exist_ok=True)
    (folder / "www" / "health").write_text("ok")
    serve = (sys.executable, "-m", "http.server", "{port}", "--bind", "{host}")
    args = (*serve, "--directory", str(folder / "www"))
    async with httpx.AsyncClient(trust_env=False) as http:
        command = replace(EngineCommand(args), **changes)
        actuator = LocalActuator(folder / "engines", command, http, clock=now)
        try:
            yield actuator
        finally:
            for replica in await actuator.replicas("acme", "chat"):
                await actuator.terminate("acme", "chat", replica.id)


async def until_serving(actuator: Actuator, replica_id: str) -> None:
    async with asyncio.timeout(20):
        while True:
            found = await actuator.replica("acme", "chat", replica_id)
            if found is not None and found.state is ReplicaState.SERVING:
                return
            await asyncio.sleep(0.02)
