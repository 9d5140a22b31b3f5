"""The simulated cloud: moto whose instances bring up emulated engines; told what to do on stdin."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from pydantic import Field, TypeAdapter, ValidationError
from werkzeug.serving import make_server

from optiinfra.agents.collectors.clouds import (
    TAG_DEPLOYMENT,
    TAG_REPLICA,
    TAG_TENANT,
    AwsAccount,
    AwsApi,
)
from optiinfra.demo.children import say, stdin_lines
from optiinfra.demo.machines import EngineSpec, Machines, tags_of
from optiinfra.demo.market import CloudFront, SpotMarket
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected
from optiinfra.twin.defects import Defect

QUEUE = "optiinfra-interruptions"
EC2_NOTICE = timedelta(minutes=2)
"""EC2 warns so long before it takes an instance; a shorter notice is a warning read late."""


class FleetPlan(Value):
    """On-demand machines that are there from the start, spread over the zones."""

    engine: EngineSpec
    instance_type: str
    replicas: int = Field(ge=1)


class CloudPlan(Value):
    """The simulated region."""

    tenant: str
    region: str
    fleets: tuple[FleetPlan, ...]
    log_dir: Path
    seed: int = 0


class SetSpotCapacity(Value):
    do: Literal["spot_capacity"] = "spot_capacity"
    available: bool


class SetDefect(Value):
    """From now on launched replicas of a deployment have this defect."""

    do: Literal["defect"] = "defect"
    deployment: str
    defect: Defect


class Reclaim(Value):
    """Take back the oldest spot machine of a deployment after `notice_s`."""

    do: Literal["reclaim"] = "reclaim"
    deployment: str
    notice_s: float = Field(gt=0, le=120)


Command = Annotated[SetSpotCapacity | SetDefect | Reclaim, Field(discriminator="do")]
_COMMAND: TypeAdapter[Command] = TypeAdapter(Command)


class Cloud:
    """One region; use as `async with opened_cloud(plan) as cloud`."""

    def __init__(self, plan: CloudPlan, ec2: AwsApi, sqs: AwsApi, market: SpotMarket) -> None:
        self.plan = plan
        self.queue_url = ""
        self._ec2 = ec2
        self._sqs = sqs
        self._market = market
        self._taking: set[asyncio.Task[None]] = set()
        specs = {fleet.engine.deployment: fleet.engine for fleet in plan.fleets}
        self.machines = Machines(ec2, specs, log_dir=plan.log_dir, say=say)

    async def begin(self) -> None:
        """Make the queue, launch the fleets, and wait until all of them serve."""
        made = await self._sqs.call("create_queue", {"QueueName": QUEUE})
        self.queue_url = made["QueueUrl"]
        started: list[str] = []
        for fleet in self.plan.fleets:
            started += await self._launch(fleet)
        self.machines.wake()
        await self.machines.serving(frozenset(started))

    async def _launch(self, fleet: FleetPlan) -> list[str]:
        name = fleet.engine.deployment
        found = []
        for number in range(fleet.replicas):
            tags = {
                TAG_TENANT: self.plan.tenant,
                TAG_DEPLOYMENT: name,
                TAG_REPLICA: f"{name}-{number + 1}",
                "optiinfra:model": fleet.engine.model,
            }
            answer = await self._ec2.call(
                "run_instances",
                {
                    "ImageId": "ami-simulated",
                    "InstanceType": fleet.instance_type,
                    "MinCount": 1,
                    "MaxCount": 1,
                    "Placement": {
                        "AvailabilityZone": self._market.zones[number % len(self._market.zones)]
                    },
                    "TagSpecifications": [
                        {
                            "ResourceType": "instance",
                            "Tags": [{"Key": k, "Value": v} for k, v in tags.items()],
                        }
                    ],
                },
            )
            found.append(str(answer["Instances"][0]["InstanceId"]))
        return found

    async def obey(self, command: Command) -> None:
        """Raises `Rejected` when there is nothing to reclaim."""
        match command:
            case SetSpotCapacity():
                self._market.open = command.available
            case SetDefect():
                self.machines.defects[command.deployment] = command.defect
            case Reclaim():
                await self._reclaim(command)
        say("done", do=command.do)

    async def _reclaim(self, command: Reclaim) -> None:
        spots = [
            raw
            for raw in (await self.machines.running()).values()
            if raw.get("InstanceLifecycle") == "spot"
            and tags_of(raw)[TAG_DEPLOYMENT] == command.deployment
        ]
        if not spots:
            raise Rejected(f"{command.deployment} has no spot machine to take back")
        chosen = min(spots, key=lambda raw: (raw["LaunchTime"], raw["InstanceId"]))
        gone_at = datetime.now(UTC) + timedelta(seconds=command.notice_s)
        await self._warn(chosen["InstanceId"], gone_at - EC2_NOTICE)
        replica = tags_of(chosen).get(TAG_REPLICA, "")
        say(
            "reclaiming",
            replica=replica,
            instance=chosen["InstanceId"],
            gone_at=gone_at.isoformat(),
        )
        task = asyncio.create_task(self._take(chosen["InstanceId"], replica, command.notice_s))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _warn(self, instance_id: str, at: datetime) -> None:
        body = {
            "version": "0",
            "id": f"simulated-{instance_id}",
            "detail-type": "EC2 Spot Instance Interruption Warning",
            "source": "aws.ec2",
            "time": at.isoformat().replace("+00:00", "Z"),
            "region": self.plan.region,
            "detail": {"instance-id": instance_id, "instance-action": "terminate"},
        }
        await self._sqs.call(
            "send_message", {"QueueUrl": self.queue_url, "MessageBody": json.dumps(body)}
        )

    async def _take(self, instance_id: str, replica: str, notice_s: float) -> None:
        """The end of the notice: power off, whatever still runs there."""
        await asyncio.sleep(notice_s)
        was_there = instance_id in await self.machines.running()
        if was_there:
            self.machines.kill(instance_id)
            await self._ec2.call("terminate_instances", {"InstanceIds": [instance_id]})
        say("reclaimed", replica=replica, instance=instance_id, was_there=was_there)

    async def close(self) -> None:
        """Forget the machines that were to be taken."""
        for task in self._taking:
            task.cancel()


@asynccontextmanager
async def opened_cloud(plan: CloudPlan) -> AsyncIterator[tuple[Cloud, str]]:
    """A region whose API listens on a free port of the loopback address, with its URL."""
    plan.log_dir.mkdir(parents=True, exist_ok=True)
    market = SpotMarket(
        region=plan.region,
        zones=tuple(f"{plan.region}{letter}" for letter in "abc"),
        seed=plan.seed,
        clock=lambda: datetime.now(UTC),
    )
    loop = asyncio.get_running_loop()
    woken: list[Machines] = []

    def changed() -> None:
        for machines in woken:
            loop.call_soon_threadsafe(machines.wake)

    front = CloudFront(
        DomainDispatcherApplication(create_backend_app),
        market,
        changed=changed,
        refused=lambda kind, zone: say("no_capacity", instance_type=kind, zone=zone),
    )
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(_listening(front))
        account = AwsAccount(region=plan.region, endpoint_url=url)
        ec2 = await asyncio.to_thread(AwsApi.connect, "ec2", account)
        stack.callback(ec2.close)
        sqs = await asyncio.to_thread(AwsApi.connect, "sqs", account)
        stack.callback(sqs.close)
        cloud = Cloud(plan, ec2, sqs, market)
        woken.append(cloud.machines)
        engines = asyncio.create_task(cloud.machines.run(), name="machines")
        stack.push_async_callback(_cancelled, engines)
        stack.push_async_callback(cloud.close)
        yield cloud, url


@asynccontextmanager
async def _listening(front: CloudFront) -> AsyncIterator[str]:
    server = make_server("127.0.0.1", 0, front, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="moto", daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def serve(plan: CloudPlan) -> None:
    """Runs until SIGTERM, or until the parent closes our stdin."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        async with opened_cloud(plan) as (cloud, url):
            await cloud.begin()
            say("ready", endpoint_url=url, queue_url=cloud.queue_url)
            async for line in stdin_lines():
                try:
                    await cloud.obey(_COMMAND.validate_python(line))
                except (Rejected, ValidationError) as error:
                    say("refused", error=str(error))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a region from its plan (a JSON file)."""
    parser = argparse.ArgumentParser(prog="optiinfra.demo.cloud", description=__doc__)
    parser.add_argument("plan", type=Path)
    plan = CloudPlan.model_validate_json(parser.parse_args(argv).plan.read_text())
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    asyncio.run(serve(plan))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
