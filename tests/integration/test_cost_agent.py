"""The cost agent on a cloud played by moto, a real gateway and engines that really answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from optiinfra.agents.actuators.aws import AwsActuator, LaunchTemplate
from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.agents.base.recent import RecentChange
from optiinfra.agents.collectors.clouds import TAG_ENDPOINT, AwsApi, AwsInstances, AwsSpot
from optiinfra.agents.collectors.interruptions import SqsInterruptions
from optiinfra.agents.cost.agent import CostAgent
from optiinfra.agents.cost.graph import Senses
from optiinfra.agents.cost.policy import CostPolicy
from optiinfra.agents.cost.pricing import Pricing
from optiinfra.agents.moving.job import Hands
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.facts import (
    ChangeCompleted,
    ExecutionStaged,
    Fact,
    OutcomeRecorded,
    RecommendationProposed,
    RollbackCompleted,
)
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.recommendation import Recommendation, SpotMigration, SpotReplacement
from optiinfra.schemas.rollout import Arms, Step, StepKind
from optiinfra.schemas.routing import Backend, RouteTable
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.prices import Catalogue
from tests.cost_stand import DEPLOYMENT, FakeIntents, FakeRecent, FakeTelemetry
from tests.factories import event
from tests.integration.gateway_stand import TOKEN, Bench, Engine, standing

REGION, TYPE = "ap-northeast-2", "g5.xlarge"
POLICY = CostPolicy(drain_timeout_s=20)


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def client(service: str, endpoint: str) -> Any:
    make: Any = boto3.client
    return make(
        service,
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )


@dataclass
class SmallCloud:
    """Starts an engine for every machine that moto runs and stops it with the machine."""

    ec2: Any
    stack: AsyncExitStack
    engines: dict[str, Engine] = field(default_factory=dict)

    async def follow(self) -> None:
        while True:
            answer = await asyncio.to_thread(self.ec2.describe_instances)
            for reservation in answer["Reservations"]:
                for raw in reservation["Instances"]:
                    await self._meet(raw)
            await asyncio.sleep(0.05)

    async def _meet(self, raw: dict[str, Any]) -> None:
        if raw["State"]["Name"] != "running" or raw["InstanceId"] in self.engines:
            return
        engine = Engine(raw["InstanceId"])
        await self.stack.enter_async_context(engine.running())
        self.engines[raw["InstanceId"]] = engine
        tags = [{"Key": TAG_ENDPOINT, "Value": engine.url}]
        await asyncio.to_thread(self.ec2.create_tags, Resources=[raw["InstanceId"]], Tags=tags)


@dataclass
class Story:
    """The agent with everything around it."""

    agent: CostAgent
    actuator: AwsActuator
    traffic: GatewayTraffic
    bench: Bench
    recent: FakeRecent
    sqs: Any
    queue: str
    said: list[Fact] = field(default_factory=list)
    fence: int = 0

    async def proposals(self) -> list[Recommendation]:
        facts = await self.agent.sense()
        return [fact.recommendation for fact in facts if isinstance(fact, RecommendationProposed)]

    async def hear(self, fact: Fact) -> Sequence[Fact]:
        async def say(fact: Fact) -> None:
            self.said.append(fact)

        return await self.agent.handle(event(fact).model_copy(update={"time": now()}), say)

    async def step(self, proposal: Recommendation, share: float, kind: StepKind) -> ExecutionStaged:
        self.fence += 1
        command = ExecutionRequested(
            change=proposal.id,
            step=Step(kind=kind, stage=int(share * 10), share=share),
            fence=self.fence,
            executor=AgentName.COST,
            recommendation=proposal,
            deadline=now() + timedelta(seconds=60),
        )
        answer = (await self.hear(command))[0]
        assert isinstance(answer, ExecutionStaged), answer
        return answer

    async def markets(self) -> dict[str, Market]:
        found = await self.actuator.replicas("acme", "chat")
        return {one.id: one.instance.market for one in found}


@pytest.fixture
async def story(moto: str, tmp_path: Path) -> AsyncIterator[Story]:
    async with httpx.AsyncClient(trust_env=False) as admin:
        await admin.post(f"{moto}/moto-api/reset")
    ec2, sqs = client("ec2", moto), client("sqs", moto)
    queue = sqs.create_queue(QueueName="reclaims")["QueueUrl"]
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    for name in ("chat-1", "chat-2"):
        tags = {"tenant": "acme", "deployment": "chat", "replica": name}
        rows = [{"Key": f"optiinfra:{key}", "Value": value} for key, value in tags.items()]
        spec = [{"ResourceType": "instance", "Tags": rows}]
        ec2.run_instances(
            ImageId=image, MinCount=1, MaxCount=1, InstanceType=TYPE, TagSpecifications=spec
        )
    async with AsyncExitStack() as stack:
        bench = await stack.enter_async_context(standing(tmp_path))
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        traffic = await stack.enter_async_context(GatewayTraffic(bench.gateway.admin_url, TOKEN))
        cloud = SmallCloud(ec2, stack)
        following = asyncio.create_task(cloud.follow())
        api = AwsApi(ec2)
        actuator = AwsActuator(
            api, AwsInstances(api), http, clock=now, template=LaunchTemplate(image)
        )
        await route_all(actuator, traffic)
        recent = FakeRecent()
        yield Story(
            wire(actuator, traffic, recent, (api, SqsInterruptions(AwsApi(sqs), queue, 0))),
            actuator,
            traffic,
            bench,
            recent,
            sqs,
            queue,
        )
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    ec2.close()
    sqs.close()


def wire(
    actuator: AwsActuator,
    traffic: GatewayTraffic,
    recent: FakeRecent,
    cloud: tuple[AwsApi, SqsInterruptions],
) -> CostAgent:
    actuators = {Provider.AWS: actuator}
    pricing = Pricing(Catalogue.load(), {Provider.AWS: AwsSpot(cloud[0])}, now)
    senses = Senses([DEPLOYMENT], actuators, [cloud[1]], pricing, recent, POLICY, now)
    hands = Hands(
        actuators,
        traffic,
        FakeIntents(),
        pricing,
        POLICY.drain_timeout_s,
        now,
        time.monotonic,
        asyncio.sleep,
    )
    return CostAgent(senses, hands, FakeTelemetry())


async def route_all(actuator: AwsActuator, traffic: GatewayTraffic) -> None:
    """Waits until both machines serve and routes to them."""
    async with asyncio.timeout(30):
        while True:
            found = await actuator.replicas("acme", "chat")
            if [one.state for one in found] == ["serving", "serving"]:
                break
            await asyncio.sleep(0.05)
    backends = tuple(Backend(replica=one.id, url=one.url or "", weight=1) for one in found)
    await traffic.put(
        RouteTable(tenant="acme", deployment="chat", model="m", version=1, backends=backends)
    )


@asynccontextmanager
async def load(bench: Bench) -> AsyncIterator[list[int]]:
    """Sessions that ask all the time; gives the statuses of the answers."""
    statuses: list[int] = []
    stop = asyncio.Event()

    async def ask(session: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            status, _ = await bench.ask(session=f"{session}-{number}")
            statuses.append(status)
            await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(ask(session)) for session in range(4)]
    try:
        yield statuses
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def test_a_migration_moves_a_fleet_under_load_and_loses_no_request(story: Story) -> None:
    proposal = (await story.proposals())[0]
    assert isinstance(proposal.spec, SpotMigration)
    assert proposal.price_source is not None
    assert proposal.price_source.name == "aws price list", "moto's quotes are implausible"
    async with load(story.bench) as statuses:
        for share in (0.1, 0.5, 1.0):
            staged = await story.step(proposal, share, StepKind.APPLY)
            weights = {
                one.replica: one.weight
                for one in (await story.traffic.status("acme", "chat")).table.backends
            }
            on_canaries = sum(weights[name] for name in staged.result.arms.canary)
            assert on_canaries / sum(weights.values()) == pytest.approx(share)
        done = await story.step(proposal, 1.0, StepKind.FINISH)
    assert set(statuses) == {200}
    totals = await story.bench.totals()
    assert (totals["failed"], totals["truncated"]) == (0, 0)
    assert await story.markets() == dict.fromkeys(done.result.arms.canary, Market.SPOT)
    facts = await story.hear(ChangeCompleted(change=proposal.id, arms=Arms()))
    assert isinstance(facts[0], OutcomeRecorded)
    realised = facts[0].outcome.realised_usd_per_month
    assert isinstance(realised, Known)
    assert realised.value == pytest.approx(2 * 730 * (1.237 - 0.3515))


async def test_a_rollback_under_load_restores_the_fleet_and_loses_no_request(
    story: Story,
) -> None:
    proposal = (await story.proposals())[0]
    before = (await story.traffic.status("acme", "chat")).table.backends
    async with load(story.bench) as statuses:
        await story.step(proposal, 0.5, StepKind.APPLY)
        undo = RollbackRequested(
            change=proposal.id,
            fence=story.fence + 1,
            executor=AgentName.COST,
            recommendation=proposal,
            reason="worse answers",
            deadline=now() + timedelta(seconds=60),
        )
        answer = (await story.hear(undo))[0]
    assert isinstance(answer, RollbackCompleted)
    assert answer.proved, answer.detail
    assert set(statuses) == {200}
    assert (await story.traffic.status("acme", "chat")).table.backends == before
    assert await story.markets() == dict.fromkeys(("chat-1", "chat-2"), Market.ON_DEMAND)


async def test_a_reclaim_notice_on_the_queue_ends_in_a_replaced_replica(story: Story) -> None:
    fleet = await story.actuator.replicas("acme", "chat")
    doomed = next(one for one in fleet if one.id == "chat-1")
    warning = {
        "detail-type": "EC2 Spot Instance Interruption Warning",
        "time": now().isoformat(),
        "detail": {"instance-id": doomed.instance.id, "instance-action": "terminate"},
    }
    story.sqs.send_message(QueueUrl=story.queue, MessageBody=json.dumps(warning))
    story.sqs.send_message(QueueUrl=story.queue, MessageBody='{"detail-type": "other"}')
    proposal = (await story.proposals())[0]
    assert isinstance(proposal.spec, SpotReplacement)
    assert proposal.spec.to.zone != doomed.instance.zone
    async with load(story.bench) as statuses:
        await story.step(proposal, 1.0, StepKind.APPLY)
        done = await story.step(proposal, 1.0, StepKind.FINISH)
    assert set(statuses) == {200}
    markets = await story.markets()
    assert markets == {"chat-2": Market.ON_DEMAND, done.result.arms.canary[0]: Market.SPOT}
    assert await waiting(story) == 1, "not yet on record"


async def test_a_notice_leaves_the_queue_once_its_change_is_on_record(story: Story) -> None:
    doomed = (await story.actuator.replicas("acme", "chat"))[0]
    warning = {
        "detail-type": "EC2 Spot Instance Interruption Warning",
        "time": now().isoformat(),
        "detail": {"instance-id": doomed.instance.id, "instance-action": "terminate"},
    }
    story.sqs.send_message(QueueUrl=story.queue, MessageBody=json.dumps(warning))
    proposal = (await story.proposals())[0]
    assert await waiting(story) == 1
    story.recent.changes["spot_replacement"] = [RecentChange(proposal.id, ChangeState.VOTING, None)]
    assert await story.proposals() == []
    assert await waiting(story) == 0


async def waiting(story: Story) -> int:
    found = await asyncio.to_thread(
        story.sqs.get_queue_attributes, QueueUrl=story.queue, AttributeNames=["All"]
    )
    return int(found["Attributes"]["ApproximateNumberOfMessages"])
