"""Metrics under fire: collector with its store, and broker are killed, and every sum is right."""

from __future__ import annotations

import asyncio
import random

from optiinfra.events.bus import Bus
from optiinfra.events.subjects import Stream
from optiinfra.storage.embedded.nats import NatsServer
from tests.faults.pipeline import (
    SERIES,
    Collector,
    Injected,
    position_of,
    publishing,
    require_sums,
    say,
    until_drained,
    until_more_is_acknowledged,
)

FLOOD_GROWTH_MIB = 250.0


async def test_sums_are_exact_when_collector_store_and_broker_are_killed(
    collector: tuple[Collector, NatsServer],
    seed: int,
    at_length: bool,  # noqa: FBT001 - a fixture
) -> None:
    """The store is in the collector's process; between the kills batches fall otherwise."""
    role, server = collector
    chance, injected = random.Random(seed), Injected()
    async with publishing(server) as (bus, publisher):
        await say(publisher, injected, 2_000)
        await role.start()
        for turn in range(12 if at_length else 4):
            saying = asyncio.create_task(say(publisher, injected, 1_000))
            await until_more_is_acknowledged(bus)
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            if turn % 2:
                server.kill()
                server.start()
            else:
                await role.kill()
                await role.start()
            await saying
        await until_drained(bus)
        await role.kill()
        await require_sums(role.folder, injected)


async def test_samples_that_come_again_in_other_batches_count_once(
    collector: tuple[Collector, NatsServer],
) -> None:
    """The consumer's memory is lost, so that everything comes again, batched as it falls."""
    role, server = collector
    injected = Injected()
    async with publishing(server) as (bus, publisher):
        await say(publisher, injected, 1_300)
        await role.start()
        await until_drained(bus)
        await role.kill()
        await bus.client.jetstream().delete_consumer(Stream.METRICS.value, "collector")
        await say(publisher, injected, 400)
        await role.start()
        await until_drained(bus)
        await role.kill()
        rows = await require_sums(role.folder, injected)
    assert rows > len(SERIES) * injected.count, "nothing came again: the test tests nothing"


async def is_behind(bus: Bus) -> bool:
    at = await position_of(bus)
    return at.floor < at.last


async def test_a_flood_takes_no_more_memory_than_its_batches(
    collector: tuple[Collector, NatsServer],
    at_length: bool,  # noqa: FBT001 - a fixture
) -> None:
    role, server = collector
    injected, seen = Injected(), []
    async with publishing(server) as (bus, publisher):
        await role.start()
        await say(publisher, injected, 1_000)
        await until_drained(bus)
        quiet = role.mib()
        saying = asyncio.create_task(say(publisher, injected, 100_000 if at_length else 12_000))
        while not saying.done() or await is_behind(bus):
            seen.append(role.mib())
            await asyncio.sleep(0.1)
        await saying
        await role.kill()
        assert max(seen) - quiet < FLOOD_GROWTH_MIB
        await require_sums(role.folder, injected)
