"""Every first replica gets its requests, however late it serves, and no change is disturbed."""

from __future__ import annotations

from dataclasses import dataclass, field

from optiinfra.runtime.routes import seed_routes
from optiinfra.schemas.deployment import Deployment, Replica, ReplicaState
from optiinfra.schemas.ids import derived_id
from tests.cost_stand import FakeActuator, FakeTraffic, machine
from tests.telemetry import deployment

LOADING, UNREACHED = ReplicaState.STARTING, ReplicaState.UNKNOWN


@dataclass
class World:
    """One deployment whose replicas come up one after the other."""

    replicas: list[Replica]
    moving: bool = False
    chat: Deployment = field(default_factory=deployment)

    def __post_init__(self) -> None:
        self.fleet = FakeActuator(self.replicas)
        self.traffic = FakeTraffic([])

    async def are_under_way(self, tenant: str, deployment: str) -> bool:
        return self.moving

    async def seeded(self) -> bool:
        return await seed_routes(self.chat, self.fleet, self.traffic, self)

    def now_serves(self, number: int) -> None:
        self.fleet.machines[f"chat-{number}"] = machine(number)


async def test_the_first_that_serves_takes_requests_and_the_later_ones_join_it() -> None:
    world = World([machine(1), machine(2, state=LOADING), machine(3, state=UNREACHED)])
    assert not await world.seeded(), "two are still to come"
    assert world.traffic.weights() == {"chat-1": 1.0}
    world.now_serves(2)
    assert not await world.seeded()
    assert world.traffic.weights() == {"chat-1": 1.0, "chat-2": 1.0}
    world.now_serves(3)
    assert await world.seeded()
    assert world.traffic.weights() == {"chat-1": 1.0, "chat-2": 1.0, "chat-3": 1.0}
    assert await world.seeded()
    assert len(world.traffic.history) == 3, "nothing is written twice"


async def test_nothing_is_whole_while_nothing_serves() -> None:
    world = World([])
    assert not await world.seeded()
    assert world.traffic.history == []


async def test_while_a_change_is_under_way_the_routes_are_its_own() -> None:
    world = World([machine(1), machine(2, state=LOADING)])
    await world.seeded()
    world.moving = True
    world.now_serves(2)
    assert not await world.seeded()
    assert world.traffic.weights() == {"chat-1": 1.0}
    world.moving = False
    assert await world.seeded()
    assert world.traffic.weights() == {"chat-1": 1.0, "chat-2": 1.0}


async def test_what_a_change_has_left_behind_gets_no_requests() -> None:
    world = World([machine(1)])
    await world.seeded()
    left = machine(2, launch_token=derived_id("some change", "launch", 0, 0))
    first = machine(3, launch_token=derived_id("first", "acme", "chat", 4))
    world.fleet.machines |= {"chat-2": left, "chat-3": first}
    assert await world.seeded()
    assert world.traffic.weights() == {"chat-1": 1.0, "chat-3": 1.0}


async def test_routes_that_somebody_wrote_meanwhile_are_read_again() -> None:
    world = World([machine(1), machine(2)])

    def another_writer() -> None:
        world.traffic.before_put = lambda: None
        moved = world.traffic.table.model_copy(update={"version": 5})
        world.traffic.table = moved

    world.traffic.before_put = another_writer
    assert not await world.seeded()
    assert world.traffic.weights() == {}
    assert await world.seeded()
    assert world.traffic.weights() == {"chat-1": 1.0, "chat-2": 1.0}
