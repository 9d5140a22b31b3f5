"""The way of metrics to their store without what makes sums exact, to see them wrong."""

from __future__ import annotations

import pytest

from optiinfra.events.subjects import Stream
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.metric_rows import Resolution
from tests.faults.pipeline import (
    SERIES,
    Collector,
    Injected,
    publishing,
    say,
    told_by,
    until_drained,
    until_taken,
)

SAID = 300
SLOW_S = 60.0
"""Nothing is stored before it is killed."""


@pytest.mark.parametrize("without", ["", "acknowledgements"])
async def test_what_is_acknowledged_before_it_is_stored_is_missing_in_the_sums(
    collector: tuple[Collector, NatsServer], without: str
) -> None:
    """Killed with a batch in hand that is not stored yet."""
    role, server = collector
    injected = Injected()
    async with publishing(server) as (bus, publisher):
        await say(publisher, injected, SAID)
        await role.start(without, SLOW_S)
        await until_taken(bus)
        if without:
            await until_drained(bus)
        await role.kill()
        await role.start()
        await until_drained(bus)
    await role.kill()
    told = await told_by(role.folder)
    known = {told.before[f"{metric} {Resolution.RAW}"][0] for metric in SERIES}
    assert known == {0 if without else injected.count}


@pytest.mark.parametrize("without", ["", "folding"])
async def test_rollups_that_are_counted_on_the_way_in_count_what_comes_again_twice(
    collector: tuple[Collector, NatsServer], without: str
) -> None:
    """The consumer's memory is lost, so that everything comes again, batched as it falls."""
    role, server = collector
    injected = Injected()
    async with publishing(server) as (bus, publisher):
        await say(publisher, injected, SAID)
        await role.start(without)
        await until_drained(bus)
        await role.kill()
        await bus.js.delete_consumer(Stream.METRICS.value, "collector")
        await say(publisher, injected, 100)
        await role.start(without)
        await until_drained(bus)
    await role.kill()
    told = await told_by(role.folder)
    for found in (told.before, told.after):
        assert found[f"tokens_total {Resolution.RAW}"][0] == injected.count
        counted = injected.count + (SAID if without else 0)
        assert found[f"tokens_total {Resolution.HOURLY}"][0] == counted
        assert found[f"tokens_total {Resolution.DAILY}"][0] == counted
