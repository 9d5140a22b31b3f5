"""A flood of metrics without what keeps it in its bed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import fields, replace

import pytest

from optiinfra.coordinator.process import Coordinator
from optiinfra.events.consume import Consumer, ConsumerSpec, HandleBatch
from optiinfra.events.durable import DurableSpec
from optiinfra.events.envelope import Event
from optiinfra.events.facts import MetricsMeasured
from optiinfra.events.subjects import BY_PREFIX, Stream
from optiinfra.storage.embedded.nats import NatsServer
from tests.coordinator_stand import Stand, opened
from tests.factories import recommendation
from tests.faults.flood import BATCH, HANDLER_S, TAKEN_PER_S
from tests.faults.processes import supervised
from tests.faults.stand import Stand as FaultStand
from tests.faults.test_flood import GROWS_MIB, resident_mib, until_listening
from tests.telemetry import steady

METRICS = "metrics.performance"
BATCHES_BEHIND = 5


class Shared(ConsumerSpec):
    """Hears metrics besides, from the same stream."""

    def durable(self) -> DurableSpec:
        own = super().durable()
        return replace(own, filters=(*own.filters, BY_PREFIX[METRICS].pattern))


class OneForAll(Coordinator):
    """Takes metrics to the slow store, too, with the consumer of its changes."""

    def _made_consumers(self) -> list[Consumer]:
        changes, timers = super()._made_consumers()
        assert changes._handle_batch is not None
        spec = {one.name: getattr(changes.spec, one.name) for one in fields(changes.spec)}
        ports = self._ports
        shared = Consumer(
            ports.bus, Shared(**spec), handle=None,
            handle_batch=storing_first(changes._handle_batch), publisher=ports.publisher,
            inbox=None, clock=ports.clock, jitter=ports.jitter,
        )  # fmt: skip
        return [shared, timers]


def storing_first(handle: HandleBatch) -> HandleBatch:
    async def both(events: Sequence[Event]) -> Sequence[BaseException | None]:
        changes = [event for event in events if not isinstance(event.fact, MetricsMeasured)]
        if len(changes) < len(events):
            await asyncio.sleep(HANDLER_S)  # the slow store
        failures = dict(zip((e.id for e in changes), await handle(changes), strict=True))
        return [failures.get(event.id) for event in events]

    return both


@pytest.fixture
async def changing(nats_server: Callable[[], NatsServer], database: str) -> AsyncIterator[Stand]:
    async with opened(nats_server().url, database) as made:
        yield made


@pytest.mark.parametrize("shared", [False, True])
async def test_a_change_that_shares_stream_and_consumer_with_metrics_waits_behind_them(
    changing: Stand,
    shared: bool,  # noqa: FBT001
) -> None:
    if shared:
        await changing.bus.js.delete_stream(Stream.METRICS.value)
        own = (await changing.bus.js.stream_info(Stream.CHANGES.value)).config
        together = [*(own.subjects or ()), "metrics.>"]
        await changing.bus.js.update_stream(own.evolve(subjects=together))
    await changing.coordinator(kind=OneForAll if shared else Coordinator)
    await changing.cast()
    await complete(changing, "before the flood")
    samples = tuple(steady("chat-1", scrapes=2))
    fact = MetricsMeasured(tenant="acme", deployment="chat", family="performance", samples=samples)
    publisher = changing.publisher
    said = [publisher.event(fact, tenant="acme") for _ in range(BATCHES_BEHIND * BATCH)]
    assert all(isinstance(one, int) for one in await publisher.publish_many(said))
    waited_s = await complete(changing, "behind it")
    assert (waited_s > HANDLER_S * (BATCHES_BEHIND - 2)) == shared, waited_s


async def complete(changing: Stand, name: str) -> float:
    """How long one change takes, s."""
    begun = time.monotonic()
    one = recommendation(name)
    await changing.propose(one)
    await changing.until("SELECT state = 'completed' FROM sagas WHERE change_id = $1", one.id)
    return time.monotonic() - begun


@pytest.mark.parametrize("how", [(), ("greedily",)])
async def test_without_a_limit_of_what_is_in_hand_a_flood_fills_the_memory(
    stand: FaultStand, how: tuple[str, ...]
) -> None:
    taker = stand.module("tests.faults.flood", "take", stand.nats.url, *how)
    teller = stand.module("tests.faults.flood", "say", stand.nats.url, str(30 * TAKEN_PER_S))
    async with supervised([taker]):
        await until_listening(stand)
        before = resident_mib(taker)
        async with supervised([teller]):
            await until_said(stand, 6_000)
        assert (resident_mib(taker) - before > GROWS_MIB) == bool(how)


async def until_said(stand: FaultStand, least: int) -> None:
    async with asyncio.timeout(60):
        while True:
            if (await stand.bus.js.stream_info(Stream.METRICS.value)).state.messages >= least:
                return
            await asyncio.sleep(0.1)
