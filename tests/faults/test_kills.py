"""SIGKILL of agents and coordinators at named points, and of the servers under load."""

from __future__ import annotations

import asyncio
import time

from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from tests.faults.child import ACK_WAIT_S
from tests.faults.crash import AGENT_POINTS, COORDINATOR_POINTS
from tests.faults.oracle import moved_at_once
from tests.faults.stand import Stand, playing

START_UP_S = 6.0
"""What a child may take until it hears, on a machine that is busy."""


async def test_agents_that_die_at_any_point_of_their_work_act_and_vote_once(
    stand: Stand,
    at_length: bool,  # noqa: FBT001
) -> None:
    """Started again each time, they die at many points in turn, and finish in the end."""
    points = stand.chance.sample(AGENT_POINTS, len(AGENT_POINTS) if at_length else 8)
    dying = stand.role("agents", [(point, 1) for point in points])
    async with playing(stand.role("coordinator"), dying):
        await stand.keep_busy(lambda: len(dying.exits) >= len(points))
        await stand.all_completed()
    assert set(dying.exits[: len(points)]) == {-9}
    assert await stand.dead_letters() == 0


async def test_agents_that_die_while_one_command_does_it_all_do_each_thing_once(
    stand: Stand,
) -> None:
    """From the launch to the end of the old machine, with a death before and after each act."""
    acts = ("launch", "put", "terminate", "finish", "execution.staged")
    crashes = [(f"{act}.{side}", 1) for act in acts for side in ("before", "after")]
    crashes += [("put.before", 2), ("put.after", 3)]
    stand.chance.shuffle(crashes)
    dying = stand.role("agents", crashes)
    async with playing(stand.role("coordinator"), dying):
        await stand.keep_busy(lambda: len(dying.exits) >= len(crashes), lost=True)
        await stand.all_completed()
    assert set(dying.exits[: len(crashes)]) == {-9}
    assert await stand.dead_letters() == 0


async def test_another_instance_finishes_what_a_dead_one_had_in_hand(stand: Stand) -> None:
    point = stand.chance.choice(("begin.after", "put.after", "launch.after", "finish.before"))
    dying = stand.role("agents", [(point, 1)], restarts=False)
    async with playing(stand.role("coordinator"), dying):
        await stand.propose(1)
        await dying.ended()
        died = time.monotonic()
        async with playing(stand.role("agents")):
            await stand.staged(1)
            assert time.monotonic() - died < ACK_WAIT_S + 1.0 + START_UP_S
            await stand.all_completed()


async def test_a_coordinator_that_dies_at_any_point_loses_and_doubles_nothing(
    stand: Stand,
) -> None:
    crashes = [(point, stand.chance.randint(1, 5)) for point in COORDINATOR_POINTS]
    stand.chance.shuffle(crashes)
    dying = stand.role("coordinator", crashes)
    async with playing(dying, stand.role("agents")):
        await stand.keep_busy(lambda: len(dying.exits) >= len(crashes))
        await stand.all_completed()
    assert set(dying.exits[: len(crashes)]) == {-9}


async def test_two_coordinators_of_which_one_keeps_dying_decide_each_change_once(
    stand: Stand,
) -> None:
    crashes = [(stand.chance.choice(COORDINATOR_POINTS), 3) for _ in range(3)]
    roles = (stand.role("coordinator", crashes), stand.role("coordinator"))
    async with playing(*roles, stand.role("agents"), stand.role("agents")):
        await stand.propose(12)
        await stand.all_completed()


async def test_two_coordinators_keep_a_limit_together(stand: Stand) -> None:
    """Each stands for a while between writing and committing, to be in the other's way."""
    roles = [stand.role("coordinator", stands=("written", 0.05), max_moving=1) for _ in range(2)]
    async with playing(*roles, stand.role("agents")):
        await stand.propose(5)
        await stand.all_completed()
    assert await moved_at_once(stand.database) == 1


async def test_everything_killed_at_moments_of_chance(stand: Stand) -> None:
    roles = [stand.role(name) for name in ("coordinator", "coordinator", "agents", "agents")]
    async with playing(*roles):
        await stand.propose(10, soak_s=0.5)
        for _ in range(8):
            await asyncio.sleep(stand.chance.uniform(0.2, 1.2))
            stand.chance.choice(roles).kill()
        await stand.all_completed()
    assert sum(len(role.exits) for role in roles) >= 6


async def test_a_broker_killed_again_and_again_loses_nothing(
    stand: Stand, server: NatsServer
) -> None:
    async with playing(stand.role("coordinator"), stand.role("agents")):
        await stand.propose(8, soak_s=0.5)
        for _ in range(4):
            await asyncio.sleep(stand.chance.uniform(0.5, 2.0))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await stand.all_completed()
    assert await stand.dead_letters() == 0


async def test_a_database_that_stops_at_once_again_and_again_loses_nothing(
    stand_alone: tuple[Stand, PostgresServer],
) -> None:
    stand, postgres = stand_alone
    roles = (stand.role("coordinator"), stand.role("agents"))
    async with playing(*roles):
        await stand.propose(8, soak_s=0.5)
        for _ in range(3):
            await asyncio.sleep(stand.chance.uniform(1.0, 2.0))
            await asyncio.to_thread(postgres.stop_immediately)
            await asyncio.to_thread(postgres.start)
        began = time.monotonic()
        await stand.all_completed()
        assert time.monotonic() - began < 60
    assert await stand.dead_letters() == 0
