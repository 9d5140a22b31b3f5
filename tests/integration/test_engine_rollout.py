"""The performance agent tunes real processes behind a real gateway, under load, and goes back."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from optiinfra.agents.actuators.kubernetes import KubernetesActuator
from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.actuators.port import LaunchSpec, Traffic
from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Hands
from optiinfra.agents.moving.warm_up import CompletionWarmUp
from optiinfra.agents.performance.agent import PerformanceAgent
from optiinfra.agents.performance.execute import EngineMoves
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.facts import ExecutionFailed, ExecutionStaged, Fact, RollbackCompleted
from optiinfra.schemas.deployment import Market, Provider, Replica, ReplicaState
from optiinfra.schemas.recommendation import BatchTuning, Placement, Recommendation
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.schemas.routing import Backend, RouteTable
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.engines import VllmConfig
from tests.cost_stand import DEPLOYMENT, FakeIntents, Time, pricing
from tests.factories import event, recommendation
from tests.integration import engine_process
from tests.integration.gateway_stand import CHAT, TOKEN
from tests.integration.test_gateway_process import process
from tests.telemetry import Fleet, Recorded

NOW = VllmConfig(model="m", max_num_seqs=64, max_num_batched_tokens=2048)
COMMAND = (
    sys.executable, str(Path(engine_process.__file__)), "--model", "{model}", "--host", "{host}",
    "--port", "{port}", "--grace", "5", "{engine_arguments}",
)  # fmt: skip
HERE = Placement(
    provider=Provider.LOCAL, instance_type="local", region="local", market=Market.ON_DEMAND
)
Engines = LocalActuator | KubernetesActuator


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Stand:
    """The agent with a fleet of two that serves."""

    agent: PerformanceAgent
    actuator: Engines
    traffic: Traffic
    http: httpx.AsyncClient
    url: str
    said: list[Fact] = field(default_factory=list)
    fence: int = 0

    async def _hear(self, command: Fact) -> Fact:
        async def say(fact: Fact) -> None:
            self.said.append(fact)

        heard = event(command).model_copy(update={"time": now()})
        facts = await self.agent.handle(heard, say)
        assert len(facts) == 1
        return facts[0]

    async def step(
        self,
        proposal: Recommendation,
        share: float,
        *,
        kind: StepKind = StepKind.APPLY,
        within_s: float = 60.0,
    ) -> Fact:
        self.fence += 1
        return await self._hear(
            ExecutionRequested(
                change=proposal.id,
                step=Step(kind=kind, stage=int(share * 10), share=share),
                fence=self.fence,
                executor=AgentName.PERFORMANCE,
                recommendation=proposal,
                deadline=now() + timedelta(seconds=within_s),
            )
        )

    async def staged(
        self, proposal: Recommendation, share: float, kind: StepKind = StepKind.APPLY
    ) -> ExecutionStaged:
        fact = await self.step(proposal, share, kind=kind)
        assert isinstance(fact, ExecutionStaged), fact
        return fact

    async def failure(self, proposal: Recommendation, share: float, within_s: float = 60.0) -> str:
        fact = await self.step(proposal, share, within_s=within_s)
        assert isinstance(fact, ExecutionFailed), fact
        return fact.reason

    async def rolled_back(self, proposal: Recommendation) -> None:
        self.fence += 1
        fact = await self._hear(
            RollbackRequested(
                change=proposal.id,
                fence=self.fence,
                executor=AgentName.PERFORMANCE,
                recommendation=proposal,
                reason="a gate said so",
                deadline=now() + timedelta(seconds=60),
            )
        )
        assert isinstance(fact, RollbackCompleted), fact
        assert fact.proved, fact.detail

    async def fleet(self) -> Sequence[Replica]:
        return await self.actuator.replicas("acme", "chat")

    async def world(self) -> tuple[tuple[Backend, ...], set[str]]:
        """The routes, and the processes behind them."""
        table = (await self.traffic.status("acme", "chat")).table
        return table.backends, {one.instance.id for one in await self.fleet()}

    async def batches(self) -> list[int]:
        """What the running processes were really started with."""
        found = []
        for one in await self.fleet():
            words = psutil.Process(self.pid_of(one)).cmdline()
            found.append(int(words[words.index("--max-num-seqs") + 1]))
        return sorted(found)

    def pid_of(self, replica: Replica) -> int:
        return int(replica.instance.id.removeprefix("local-"))

    async def lost(self) -> tuple[int, int]:
        """What the gateway counted as failed, and as cut."""
        counters = (await self.traffic.status("acme", "chat")).counters
        return sum(row.failed for row in counters), sum(row.truncated for row in counters)


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with (
        httpx.AsyncClient(trust_env=False, timeout=30.0) as http,
        process(tmp_path) as (_, addresses),
        GatewayTraffic(addresses["admin_url"], TOKEN) as traffic,
    ):
        command = EngineCommand(COMMAND, emulated=True)
        actuator = LocalActuator(tmp_path / "engines", command, http, clock=now)
        try:
            await first_two(actuator, traffic)
            yield Stand(
                agent_on(actuator, traffic, http), actuator, traffic, http, addresses["url"]
            )
        finally:
            for replica in await actuator.replicas("acme", "chat"):
                await actuator.terminate("acme", "chat", replica.id)


async def first_two(
    actuator: Engines, traffic: Traffic, place: Placement = HERE, engine: VllmConfig = NOW
) -> None:
    for token in ("first-1", "first-2"):
        await actuator.launch(LaunchSpec("acme", "chat", "m", place, token, engine=engine))
    async with asyncio.timeout(60):
        while True:
            found = await actuator.replicas("acme", "chat")
            if [one.state for one in found] == [ReplicaState.SERVING] * 2:
                break
            await asyncio.sleep(0.1)
    backends = tuple(Backend(replica=one.id, url=one.url or "", weight=1) for one in found)
    await traffic.put(
        RouteTable(tenant="acme", deployment="chat", model="m", version=1, backends=backends)
    )


def agent_on(
    actuator: Engines,
    traffic: Traffic,
    http: httpx.AsyncClient,
    provider: Provider = Provider.LOCAL,
) -> PerformanceAgent:
    hands = Hands(
        actuators={provider: actuator},
        traffic=traffic,
        intents=FakeIntents(),
        pricing=pricing(Time()),
        drain_timeout_s=20.0,
        clock=now,
        monotonic=time.monotonic,
        sleep=asyncio.sleep,
        warm_up=CompletionWarmUp(http),
    )
    moves = EngineMoves({"chat": DEPLOYMENT}, {provider: actuator}, {})
    return PerformanceAgent(
        {"chat": DEPLOYMENT},
        Fleet(),
        Recorded(),
        EngineScraper(http, now),
        models={},
        clock=now,
        executor=Executor({("acme", "chat"): DEPLOYMENT}, hands, moves),
    )


def batch(size: int) -> Recommendation:
    return recommendation(
        spec=BatchTuning(max_num_seqs=size), proposer=AgentName.PERFORMANCE, tenant="acme"
    )


@dataclass
class Load:
    """Users who ask all the time; `whole` are statuses, `streams` whether each came to its end."""

    whole: list[int] = field(default_factory=list)
    streams: list[bool] = field(default_factory=list)

    async def more(self, requests: int) -> None:
        """Until so many more have been answered."""
        wanted = len(self.whole) + requests
        async with asyncio.timeout(60):
            while len(self.whole) < wanted:  # noqa: ASYNC110 filled by the users
                await asyncio.sleep(0.02)


@asynccontextmanager
async def load(stand: Stand, *, streaming: int = 2) -> AsyncIterator[Load]:
    told, stop, numbers = Load(), asyncio.Event(), count()

    async def ask(stream: bool) -> None:  # noqa: FBT001
        while not stop.is_set():
            body: dict[str, Any] = {
                "model": "m", "stream": stream, "max_tokens": 32,
                "messages": [{"role": "user", "content": f"question {next(numbers)}"}],
            }  # fmt: skip
            headers = {"X-Session-Id": f"session-{next(numbers)}"}
            try:
                answer = await stand.http.post(stand.url + CHAT, json=body, headers=headers)
            except httpx.RemoteProtocolError:
                assert stream, "only what has begun may be cut"
                told.streams.append(False)
                continue
            if stream:
                told.streams.append(answer.text.rstrip().endswith("data: [DONE]"))
            else:
                told.whole.append(answer.status_code)

    async with asyncio.TaskGroup() as group:
        for user in range(4 + streaming):
            group.create_task(ask(user < streaming))
        try:
            yield told
        finally:
            stop.set()


async def test_a_larger_batch_goes_all_the_way_under_load_and_loses_no_request(
    stand: Stand,
) -> None:
    before = {one.id for one in await stand.fleet()}
    proposal = batch(128)
    async with load(stand) as told:
        for share, new in ((0.1, 1), (0.5, 1), (1.0, 2)):
            done = await stand.staged(proposal, share)
            backends, _ = await stand.world()
            weights = {one.replica: one.weight for one in backends}
            on_new = sum(weights[name] for name in done.result.arms.canary)
            assert on_new / sum(weights.values()) == pytest.approx(share)
            assert await stand.batches() == [64, 64] + [128] * new
            await told.more(40)
        await stand.staged(proposal, 1.0, StepKind.FINISH)
        await told.more(10)
    assert set(told.whole) == {200}
    assert all(told.streams)
    assert await stand.lost() == (0, 0)
    assert await stand.batches() == [128, 128]
    assert not before & {one.id for one in await stand.fleet()}


async def test_what_a_tuning_leaves_alone_stays_and_the_next_one_starts_from_there(
    stand: Stand,
) -> None:
    proposal = batch(128)
    await stand.staged(proposal, 1.0)
    await stand.staged(proposal, 1.0, StepKind.FINISH)
    engines = [await stand.actuator.engine("acme", "chat", one.id) for one in await stand.fleet()]
    assert engines == [NOW.model_copy(update={"max_num_seqs": 128})] * 2
    assert "runs with that already" in await stand.failure(
        proposal.model_copy(update={"id": "0" * 32}), 0.1
    )


@pytest.mark.parametrize(
    ("size", "within_s", "reason"),
    [
        (engine_process.DOES_NOT_START, 60.0, "new replica 1 ended once before it served"),
        (engine_process.RUNS_OUT_OF_MEMORY, 60.0, "has ended: it did not answer a warm-up"),
        (engine_process.LOADS_FOR_EVER, 4.0, "0 of 1 new replicas serve: .* is starting"),
    ],
    ids=["does-not-start", "out-of-memory", "too-slow"],
)
async def test_a_replica_that_does_not_come_up_gets_no_request_and_is_taken_back(
    stand: Stand, size: int, within_s: float, reason: str
) -> None:
    await does_not_come_up(stand, size, within_s, reason)


async def does_not_come_up(stand: Stand, size: int, within_s: float, reason: str) -> None:
    """The play of a replica that is not routed, and is taken back."""
    before = await stand.world()
    proposal = batch(size)
    async with load(stand) as told:
        failure = await stand.failure(proposal, 0.1, within_s)
        assert (await stand.world())[0] == before[0], "it must not be routed"
        await stand.rolled_back(proposal)
        await told.more(10)
    assert re.search(reason, failure), failure
    assert set(told.whole) == {200}
    assert all(told.streams)
    assert await stand.lost() == (0, 0)
    assert await stand.world() == before


async def test_a_replica_that_crashes_at_half_the_traffic_is_rolled_back(stand: Stand) -> None:
    before = await stand.world()
    proposal = batch(128)
    async with load(stand) as told:
        await stand.staged(proposal, 0.1)
        canary = (await stand.staged(proposal, 0.5)).result.arms.canary[0]
        await told.more(40)
        crashing = next(one for one in await stand.fleet() if one.id == canary)
        os.kill(stand.pid_of(crashing), signal.SIGKILL)
        await told.more(40)
        assert "ended once" in await stand.failure(proposal, 1.0)
        await stand.rolled_back(proposal)
        await told.more(20)
    assert set(told.whole) == {200}, "what had not begun to answer is asked elsewhere"
    assert told.streams.count(False) <= 2, "only the streams that had begun there are cut"
    assert await stand.world() == before
