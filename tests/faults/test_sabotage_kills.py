"""Kills at moments of chance, and of a whole machine, without what they are survived by."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.database import Database
from tests.faults.oracle import names
from tests.faults.processes import Program
from tests.faults.stand import SETTLE_S, Stand, playing
from tests.faults.test_sabotage import UNSAID

STANDS_S = 0.3
"""How long a role stands at the point that matters, so that chance finds it soon."""
_TAKEN_IN = "SELECT count(*) FROM sagas"
"""The coordinator is at work."""
_VOTED_ON = "SELECT count(*) FROM event_log WHERE type LIKE 'optiinfra.change.approved.%'"
"""So are the agents."""


async def test_without_the_relay_a_coordinator_killed_by_chance_leaves_things_unsaid(
    stand: Stand,
) -> None:
    dying = stand.role("coordinator", without=("relay",), stands=("committed", STANDS_S))
    async with playing(dying, stand.role("agents")):
        await kill_by_chance(stand, dying, _TAKEN_IN, lambda: is_left_unsaid(stand))
        assert names(await stand.broken(), "left in the outbox")


async def is_left_unsaid(stand: Stand) -> bool:
    return await stand.count(UNSAID) > 0


async def test_without_names_for_launches_agents_killed_by_chance_launch_twice(
    stand: Stand,
) -> None:
    dying = stand.role("agents", without=("tokens",), stands=("launch.after", STANDS_S))
    async with playing(dying, stand.role("coordinator")):
        await kill_by_chance(stand, dying, _VOTED_ON, lambda: is_launched_twice(stand))


async def is_launched_twice(stand: Stand) -> bool:
    return names(await stand.broken(), ": launch ")


async def kill_by_chance(
    stand: Stand, dying: Program, work: str, is_struck: Callable[[], Awaitable[bool]]
) -> None:
    """Kills it while it works, until chance has found the moment."""
    async with asyncio.timeout(SETTLE_S):
        while not await is_struck():
            done = await stand.count(work)
            await stand.propose(2)
            await stand.until(work, done + 1)
            await asyncio.sleep(stand.chance.uniform(0.0, 1.0))
            dying.kill()


@pytest.mark.parametrize("kept", [True, False])
async def test_a_machine_that_is_killed_forgets_what_is_not_in_postgres(
    stand_alone: tuple[Stand, PostgresServer],
    kept: bool,  # noqa: FBT001
) -> None:
    """Tables that PostgreSQL keeps out of its log are empty after a crash."""
    stand, postgres = stand_alone
    if not kept:
        await keep_nothing(stand.database)
    async with playing(stand.role("coordinator"), stand.role("agents")):
        await stand.propose(2, soak_s=1.0)
        await stand.staged(1)
    await asyncio.to_thread(stand.nats.kill)
    await asyncio.to_thread(postgres.stop_immediately)
    await asyncio.to_thread(postgres.start)
    await asyncio.to_thread(stand.nats.start)
    async with playing(stand.role("coordinator"), stand.role("agents")):
        if kept:
            await stand.all_completed()
            return
        await stand.propose(1)
        await stand.until("SELECT count(*) FROM sagas WHERE state = 'completed'", 1)
        broken = await stand.broken()
    assert names(broken, "proposed without exactly one end: 2 ")


async def keep_nothing(database: Database) -> None:
    async with database.connection() as connection:
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
        for table in tables:
            await connection.execute(f'ALTER TABLE "{table["tablename"]}" SET UNLOGGED')
