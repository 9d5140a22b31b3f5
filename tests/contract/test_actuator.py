"""One suite over every actuator: in memory, local processes, EC2 by moto, Kubernetes by a stub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from optiinfra.agents.actuators.port import Actuator, LaunchSpec
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.ids import derived_id
from tests.actuator_stand import aws, local, spec, until_serving
from tests.cost_stand import FakeActuator
from tests.kubernetes_stand import kubernetes


@dataclass
class Bench:
    """An actuator under test and a launch that suits it."""

    actuator: Actuator
    spec: LaunchSpec


@pytest.fixture(params=["fake", "local", "aws", "kubernetes"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "fake":
        yield Bench(FakeActuator(), spec(Provider.AWS))
    elif request.param == "local":
        async with local(tmp_path) as actuator:
            yield Bench(actuator, spec(Provider.LOCAL))
    elif request.param == "kubernetes":
        async with kubernetes(tmp_path) as (actuator, _):
            yield Bench(actuator, spec(Provider.KUBERNETES))
    else:
        yield Bench(aws(request.getfixturevalue("cloud")), spec(Provider.AWS))


async def test_a_launch_is_read_back_and_comes_to_serve(bench: Bench) -> None:
    launched = await bench.actuator.launch(bench.spec)
    assert (launched.created, launched.market) == (True, Market.SPOT)
    replica = launched.replica
    assert replica.launch_token == bench.spec.token
    assert replica.instance.instance_type == bench.spec.placement.instance_type
    assert replica.instance.market is Market.SPOT
    await until_serving(bench.actuator, replica.id)
    assert [one.id for one in await bench.actuator.replicas("acme", "chat")] == [replica.id]
    assert list(await bench.actuator.replicas("acme", "other")) == []


async def test_two_launches_with_one_token_give_one_machine(bench: Bench) -> None:
    first = await bench.actuator.launch(bench.spec)
    second = await bench.actuator.launch(bench.spec)
    assert (first.created, second.created) == (True, False)
    assert first.replica.instance.id == second.replica.instance.id
    assert len(await bench.actuator.replicas("acme", "chat")) == 1


async def test_launches_at_the_same_time_with_one_token_give_one_machine(bench: Bench) -> None:
    found = await asyncio.gather(*(bench.actuator.launch(bench.spec) for _ in range(4)))
    assert len({launched.replica.instance.id for launched in found}) == 1
    assert len(await bench.actuator.replicas("acme", "chat")) == 1


async def test_another_token_gives_another_machine(bench: Bench) -> None:
    one = await bench.actuator.launch(bench.spec)
    two = await bench.actuator.launch(replace(bench.spec, token=derived_id("two")))
    assert two.created
    assert one.replica.id != two.replica.id


async def test_terminating_twice_is_harmless(bench: Bench) -> None:
    replica = (await bench.actuator.launch(bench.spec)).replica
    assert await bench.actuator.terminate("acme", "chat", replica.id)
    assert await bench.actuator.replica("acme", "chat", replica.id) is None
    assert list(await bench.actuator.replicas("acme", "chat")) == []
    assert not await bench.actuator.terminate("acme", "chat", replica.id)


async def test_a_replica_that_never_was_is_unknown(bench: Bench) -> None:
    assert await bench.actuator.replica("acme", "chat", "nobody") is None
    assert not await bench.actuator.terminate("acme", "chat", "nobody")


async def test_a_machine_of_another_tenant_is_not_touched(bench: Bench) -> None:
    replica = (await bench.actuator.launch(bench.spec)).replica
    if isinstance(bench.actuator, FakeActuator):
        pytest.skip("the fake knows one tenant")
    assert not await bench.actuator.terminate("rival", "chat", replica.id)
    assert len(await bench.actuator.replicas("acme", "chat")) == 1
