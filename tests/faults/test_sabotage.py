"""Each mechanism switched off, to see that its promise falls without it."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from optiinfra.storage.embedded.nats import NatsServer
from tests.faults.stand import Stand, playing

IMPATIENCE_S = 14.0


async def test_without_names_for_launches_a_second_try_is_a_second_machine(stand: Stand) -> None:
    crashes = [("launch.after", 1), ("launch.after", 1)]
    agents = stand.role("agents", crashes, without=("tokens",))
    async with playing(stand.role("coordinator"), agents):
        await stand.propose(2)
        with pytest.raises(AssertionError, match=r"launch \d times"):
            await stand.settled(40)


async def test_without_the_relay_a_death_before_publishing_is_for_good(stand: Stand) -> None:
    dying = stand.role("coordinator", [("committed", 1)], without=("relay",))
    async with playing(dying, stand.role("agents")):
        await stand.propose(1)
        with pytest.raises(AssertionError, match="not settled"):
            await stand.settled(IMPATIENCE_S)


async def test_without_the_reconciler_a_lost_tail_is_lost(stand: Stand, server: NatsServer) -> None:
    store, copy = server.home / "store", server.home / "older"
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(shutil.copytree, store, copy)
    await asyncio.to_thread(server.start)
    agents = stand.role("agents", restarts=False)
    async with playing(stand.role("coordinator", without=("reconciler",))):
        await stand.propose(1)
        await stand.until("SELECT count(*) FROM outbox WHERE sent_seq IS NOT NULL", 2)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(shutil.rmtree, store)
        await asyncio.to_thread(shutil.move, copy, store)
        await asyncio.to_thread(server.start)
        async with playing(agents):
            with pytest.raises(AssertionError, match="not settled"):
                await stand.settled(8.0)


async def test_without_the_sweep_timers_that_the_broker_lost_never_fire(stand: Stand) -> None:
    roles = (stand.role("coordinator", without=("sweep",)), stand.role("agents"))
    async with playing(*roles):
        await stand.propose(1, soak_s=2.0)
        await stand.staged(1)
        await stand.until("SELECT count(*) FROM timers WHERE name = 'soak'", 1)
        await asyncio.sleep(0.5)  # until the schedule has reached the broker
        await stand.bus.js.purge_stream("TIMERS")
        with pytest.raises(AssertionError, match="not settled"):
            await stand.settled(10.0)
