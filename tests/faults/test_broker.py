"""A broker that lost what it had acknowledged, that is full, or whose streams are gone."""

from __future__ import annotations

import asyncio
import shutil
import time

import psutil
import pytest

from optiinfra.events import topology
from optiinfra.schemas.errors import Conflict
from optiinfra.storage.embedded.nats import NatsServer
from tests.faults.stand import Stand, playing

HEALS_S = 15.0


async def test_a_broker_restored_from_an_older_copy_costs_duplicates_only(
    stand: Stand, server: NatsServer
) -> None:
    store, copy = server.home / "store", server.home / "older"
    async with playing(stand.role("coordinator"), stand.role("agents")):
        await stand.propose(4, soak_s=1.0)
        await stand.staged(2)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(shutil.copytree, store, copy)
        await asyncio.to_thread(server.start)
        await stand.propose(4, soak_s=1.0)
        await stand.staged(6)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(shutil.rmtree, store)
        await asyncio.to_thread(shutil.move, copy, store)
        await asyncio.to_thread(server.start)
        await stand.all_completed()


async def test_a_consumer_deleted_under_load_is_made_again(stand: Stand) -> None:
    async with playing(stand.role("coordinator"), stand.role("agents")):
        await stand.propose(6, soak_s=0.5)
        for name in ("coordinator", "cost", "performance"):
            await stand.staged(1)
            await stand.bus.js.delete_consumer("CHANGES", name)
        await stand.all_completed()


async def test_a_stream_deleted_under_load_ends_the_roles_until_it_is_back(stand: Stand) -> None:
    roles = (stand.role("coordinator"), stand.role("agents"))
    async with playing(*roles):
        await stand.propose(4, soak_s=2.0)
        await stand.staged(2)
        gone = time.monotonic()
        await stand.bus.js.delete_stream("CHANGES")
        for role in roles:
            await role.ended()
        assert time.monotonic() - gone < HEALS_S
        await topology.apply(stand.bus)
        await stand.all_completed()


async def test_waiting_for_a_broker_that_is_away_costs_nothing(
    stand: Stand, server: NatsServer
) -> None:
    roles = (stand.role("coordinator"), stand.role("agents"))
    async with playing(*roles):
        await stand.propose(2)
        await stand.staged(1)
        await asyncio.to_thread(server.kill)
        watched = [psutil.Process(role.process.pid) for role in roles if role.process]
        await asyncio.sleep(1.0)  # for the first moment of trouble to pass
        before = [sum(one.cpu_times()[:2]) for one in watched]
        await asyncio.sleep(4.0)  # the time over which it is measured
        after = [sum(one.cpu_times()[:2]) for one in watched]
        await asyncio.to_thread(server.start)
        assert all(late - early < 0.3 * 4.0 for early, late in zip(before, after, strict=True))
        await stand.all_completed()
    assert all(role.exits[:-1] == [] for role in roles)


async def test_a_full_stream_holds_everything_back_and_lets_it_go(stand: Stand) -> None:
    used = (await stand.bus.js.stream_info("CHANGES")).state.bytes
    full = topology.TopologyLimits(changes_bytes=used + 60_000)
    await topology.apply(stand.bus, limits=full, allow_update=True)
    roles = (stand.role("agents"), stand.role("coordinator", drifted=True))
    async with playing(*roles):
        made = asyncio.create_task(stand.propose(12, soak_s=0.3))
        await stand.until(
            "SELECT count(*) FROM outbox WHERE sent_seq IS NULL"
            " AND created_at < clock_timestamp() - interval '3 seconds'",
            1,
        )
        await topology.apply(stand.bus, allow_update=True)
        await made
        await stand.all_completed()


async def test_a_start_on_drifted_streams_is_refused(stand: Stand) -> None:
    found = (await stand.bus.js.stream_info("CHANGES")).config
    await stand.bus.js.update_stream(found.evolve(max_bytes=1 << 20))
    refused = stand.role("coordinator", restarts=False)
    async with playing(refused):
        await refused.ended()
    assert refused.exits == [6]
    assert "CHANGES.max_bytes" in refused.log.read_text()
    with pytest.raises(Conflict, match="CHANGES"):
        await topology.require(stand.bus)
