"""The broker, and PostgreSQL, on a small file system that fills up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from optiinfra.events.publish import Publisher
from optiinfra.runtime.stores import new_id, now
from optiinfra.storage.embedded.postgres import PostgresServer
from tests.faults.disk import filled, log_filled, noted, told
from tests.faults.processes import Supervised
from tests.faults.stand import Stand, playing

_MOST = 10_000


async def test_a_full_disk_is_said_and_costs_nothing_that_was_acknowledged(
    stand_on_broker: Stand, disk: Path
) -> None:
    stand = stand_on_broker
    roles = (stand.role("coordinator", drifted=True), stand.role("agents"))
    async with playing(*roles):
        await stand.propose(4, soak_s=1.0)
        await stand.staged(2)
        ballast = filled(disk)
        publisher = Publisher(stand.bus, "cost", now, new_id, give_up_after_s=3.0)
        assert await told(publisher, _MOST) < _MOST
        ballast.unlink()
        await asyncio.to_thread(stand.nats.kill)
        await asyncio.to_thread(stand.nats.start)
        await stand.propose(4)
        await stand.all_completed()


@pytest.mark.parametrize("ends", [False, True])
async def test_a_full_disk_under_postgres_is_said_and_costs_nothing_that_was_acknowledged(
    stand_on_postgres: Stand,
    postgres_on_disk: PostgresServer,
    disk: Path,
    ends: bool,  # noqa: FBT001
) -> None:
    """Where tables cannot grow PostgreSQL says so; where its own log cannot, it ends, and is
    started again when there is room."""
    stand = stand_on_postgres
    coordinator = stand.role("coordinator")
    async with playing(coordinator, stand.role("agents")):
        await stand.propose(4, soak_s=1.0)
        await stand.staged(2)
        ballast = filled(disk)
        assert await noted(stand.database, _MOST) < _MOST
        if ends:
            await log_filled(postgres_on_disk)
        await stand.propose(4)
        await until_held(coordinator)
        ballast.unlink()
        if ends:
            await asyncio.to_thread(postgres_on_disk.start)
        await stand.all_completed()
    assert coordinator.exits[:-1] == []
    assert await stand.dead_letters() == 0


async def until_held(coordinator: Supervised) -> None:
    """Until it has said that it waits for PostgreSQL with a message in hand."""
    async with asyncio.timeout(30):
        while "s: PostgreSQL cannot be reached" not in coordinator.log.read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
