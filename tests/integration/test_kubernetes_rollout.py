"""The plays of the engine rollout on Kubernetes: the same agent and gateway, pods for processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from optiinfra.agents.actuators.http_route import GatewayRef, HttpRouteTraffic
from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.kubernetes_cloud import EngineRequests
from optiinfra.schemas.deployment import Market, Provider, Replica, ReplicaState
from optiinfra.schemas.recommendation import Placement
from optiinfra.schemas.rollout import StepKind
from tests.integration import engine_process
from tests.integration.gateway_stand import TOKEN
from tests.integration.test_engine_rollout import (
    NOW,
    Stand,
    agent_on,
    batch,
    does_not_come_up,
    first_two,
    load,
)
from tests.integration.test_gateway_process import process
from tests.kubernetes_stand import INSTANCE, REGION, free_port, kubernetes
from tests.kubernetes_stub import ClusterAt, Node

HERE = Placement(
    provider=Provider.KUBERNETES,
    instance_type=INSTANCE["node.kubernetes.io/instance-type"],
    region=REGION,
    market=Market.ON_DEMAND,
)


def emulated(command: Sequence[str], address: str) -> Sequence[str]:
    """The emulator in place of `vllm serve`, with the same flags."""
    program, serve, model, *flags = command
    assert (program, serve) == ("vllm", "serve")
    flags[flags.index("--host") + 1] = address
    script = str(Path(engine_process.__file__))
    return (sys.executable, script, "--model", model, "--grace", "5", *flags)


@dataclass
class Cluster(Stand):
    """The stand on a cluster of four GPUs, where a pod is a process of this machine."""

    at: ClusterAt | None = None
    requests: EngineRequests | None = None

    def pid_of(self, replica: Replica) -> int:
        assert self.at is not None
        return self.at.stub.processes[replica.id].pid

    def route_weights(self) -> dict[str, int]:
        """What the HTTPRoute says."""
        assert self.at is not None
        (route,) = self.at.stub.of("httproutes")
        return {one["name"]: one["weight"] for one in route["spec"]["rules"][0]["backendRefs"]}

    async def crash_loop(self, replica: Replica) -> None:
        """Kills the engine each time that Kubernetes starts it, until that waits longer."""
        async with asyncio.timeout(30):
            while True:
                found = await self.actuator.replica("acme", "chat", replica.id)
                assert found is not None
                if found.state is ReplicaState.STOPPED:
                    return
                if self.at is not None and self.at.stub.is_running(replica.id):
                    os.kill(self.pid_of(replica), signal.SIGKILL)
                await asyncio.sleep(0.01)


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Cluster]:
    engine = NOW.model_copy(update={"port": free_port()})
    nodes = [Node(INSTANCE, gpus=4)]
    async with (
        httpx.AsyncClient(trust_env=False, timeout=30.0) as http,
        process(tmp_path) as (_, addresses),
        GatewayTraffic(addresses["admin_url"], TOKEN) as traffic,
        kubernetes(tmp_path, emulated, nodes=nodes) as (actuator, at),
    ):
        await first_two(actuator, traffic, HERE, engine)
        agent = agent_on(actuator, traffic, http, Provider.KUBERNETES)
        yield Cluster(agent, actuator, traffic, http, addresses["url"], at=at)


async def test_a_larger_batch_goes_all_the_way_under_load_and_loses_no_request(
    stand: Cluster,
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
            await told.more(20)
        await stand.staged(proposal, 1.0, StepKind.FINISH)
        await told.more(10)
    assert set(told.whole) == {200}
    assert all(told.streams)
    assert await stand.lost() == (0, 0)
    assert await stand.batches() == [128, 128]
    assert not before & {one.id for one in await stand.fleet()}
    assert stand.at is not None
    assert len(stand.at.stub.of("pods")) == len(stand.at.stub.of("services")) == 2


@pytest.mark.parametrize(
    ("size", "within_s", "reason"),
    [
        (engine_process.DOES_NOT_START, 60.0, "new replica 1 ended once before it served"),
        (engine_process.RUNS_OUT_OF_MEMORY, 60.0, "it did not answer a warm-up"),
        (engine_process.LOADS_FOR_EVER, 4.0, "0 of 1 new replicas serve: .* is starting"),
    ],
    ids=["does-not-start", "out-of-memory", "too-slow"],
)
async def test_a_replica_that_does_not_come_up_gets_no_request_and_is_taken_back(
    stand: Cluster, size: int, within_s: float, reason: str
) -> None:
    await does_not_come_up(stand, size, within_s, reason)


async def test_a_replica_that_keeps_crashing_at_half_the_traffic_is_rolled_back(
    stand: Cluster,
) -> None:
    before = await stand.world()
    proposal = batch(128)
    async with load(stand) as told:
        await stand.staged(proposal, 0.1)
        canary = (await stand.staged(proposal, 0.5)).result.arms.canary[0]
        await told.more(20)
        await stand.crash_loop(next(one for one in await stand.fleet() if one.id == canary))
        await told.more(20)
        assert "ended once" in await stand.failure(proposal, 1.0)
        await stand.rolled_back(proposal)
        await told.more(20)
    assert set(told.whole) == {200}, "what had not begun to answer is asked elsewhere"
    assert told.streams.count(False) <= 2, "only the streams that had begun there are cut"
    assert await stand.world() == before


@pytest.fixture
async def routed(tmp_path: Path) -> AsyncIterator[Cluster]:
    """The stand without a gateway of ours: the weights of an HTTPRoute are the traffic."""
    engine = NOW.model_copy(update={"port": free_port()})
    nodes = [Node(INSTANCE, gpus=4)]
    fleet = Fleet.model_validate(
        {
            "tenant": "acme",
            "clouds": {"kubernetes": {"namespace": "serving"}},
            "deployments": [{"id": "chat", "model": "m", "provider": "kubernetes"}],
        }
    )
    async with (
        httpx.AsyncClient(trust_env=False, timeout=30.0) as http,
        kubernetes(tmp_path, emulated, nodes=nodes, grace_s=0.3) as (actuator, at),
    ):
        api, requests = at.api(tmp_path), EngineRequests(fleet, actuator, http)
        traffic = HttpRouteTraffic(api, GatewayRef("inference"), requests)
        await first_two(actuator, traffic, HERE, engine)
        agent = agent_on(actuator, traffic, http, Provider.KUBERNETES)
        yield Cluster(agent, actuator, traffic, http, "", at=at, requests=requests)
        await api.close()


async def test_the_weights_of_a_route_carry_a_change_all_the_way(routed: Cluster) -> None:
    proposal = batch(128)
    for share in (0.1, 0.5, 1.0):
        new = (await routed.staged(proposal, share)).result.arms.canary
        weights = routed.route_weights()
        assert sum(weights[name] for name in new) / sum(weights.values()) == pytest.approx(
            share, abs=1e-4
        )
    await routed.staged(proposal, 1.0, StepKind.FINISH)
    assert routed.route_weights() == dict.fromkeys(new, 10_000)
    assert await routed.batches() == [128, 128]


async def test_a_busy_engine_is_not_ended_and_the_weights_go_back(routed: Cluster) -> None:
    before, weights = await routed.world(), routed.route_weights()
    proposal = batch(128)
    canary = (await routed.staged(proposal, 0.5)).result.arms.canary[0]
    url = next(one.url for one in await routed.fleet() if one.id == canary)
    body = {"model": "m", "prompt": "Count", "max_tokens": 1000, "ignore_eos": True}
    asking = asyncio.create_task(routed.http.post(f"{url}/v1/completions", json=body))
    assert routed.requests is not None
    async with asyncio.timeout(20):
        while not await routed.requests("chat", canary):  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
    assert not asking.done()
    await routed.rolled_back(proposal)
    assert asking.done(), "it was waited for"
    assert (await asking).json()["usage"]["completion_tokens"] == 1000
    assert routed.route_weights() == weights
    assert await routed.world() == before


async def test_a_replica_that_keeps_crashing_behind_a_route_has_nothing_to_wait_for(
    routed: Cluster,
) -> None:
    before, weights = await routed.world(), routed.route_weights()
    proposal = batch(128)
    canary = (await routed.staged(proposal, 0.5)).result.arms.canary[0]
    await routed.crash_loop(next(one for one in await routed.fleet() if one.id == canary))
    assert "ended once" in await routed.failure(proposal, 1.0)
    await routed.rolled_back(proposal)
    assert routed.route_weights() == weights
    assert await routed.world() == before


async def test_a_change_that_finds_no_free_gpu_waits_and_is_taken_back(stand: Cluster) -> None:
    assert stand.at is not None
    stand.at.stub.nodes[0].gpus = 2
    before = await stand.world()
    proposal = batch(128)
    assert "no capacity" in await stand.failure(proposal, 0.1, within_s=8.0)
    await stand.rolled_back(proposal)
    assert await stand.world() == before
    assert len(stand.at.stub.of("pods")) == 2
