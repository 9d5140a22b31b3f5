"""Mechanisms of consumers switched off, to see that what they promise falls without them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.delivery import Delivery
from optiinfra.events.envelope import Event, encode
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import OptiInfraError, Unavailable
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import Stand, new_id, now, running, stand, until
from tests.faults.proxy import proxied

Make = Callable[[], NatsServer]
ACK_WAIT_S = 1.0


class WithoutHealing(Consumer):
    """A consumer that is gone stays gone."""

    async def _heal(self, heard_at_s: float, delay_s: float) -> None:
        await asyncio.sleep(delay_s)


class Hasty(Consumer):
    """Acknowledges what it has not done yet."""

    async def _process(self, batch: list[Delivery]) -> None:
        for delivery in batch:
            await delivery.message.ack()
        await super()._process(batch)


class Careless(Publisher):
    """Says things and waits for no acknowledgement."""

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        for event in events:
            subject, headers, body = encode(event)
            await self._bus.client.publish(subject, body, headers=headers)
        return [1] * len(events)


def consumer(
    s: Stand, made: type[Consumer], handle: Callable[[Event], object], *, attempts: int = 3
) -> Consumer:
    spec = ConsumerSpec(
        name="sabotaged",
        stream=Stream.CHANGES,
        prefixes=("change.resumed",),
        ack_wait_s=ACK_WAIT_S,
        heartbeat_s=ACK_WAIT_S / 3,
        backoff_base_s=0.005,
        backoff_cap_s=0.02,
        attempts=attempts,
        max_deliver=10_000,
    )
    return made(
        s.bus,
        spec,
        handle=handle,  # type: ignore[arg-type]
        handle_batch=None,
        publisher=s.publisher,
        inbox=None,
        clock=now,
        jitter=lambda: 1.0,
    )


async def test_without_healing_a_deleted_consumer_hears_no_more(nats_server: Make) -> None:
    handled: Counter[str] = Counter()

    async def handle(event: Event) -> None:
        handled[event.id] += 1

    async with stand(nats_server().url) as s:
        made = consumer(s, WithoutHealing, handle)
        async with running(made):
            await s.say(5)
            await until(lambda: len(handled) == 5)
            await s.bus.js.delete_consumer("CHANGES", "sabotaged")
            await s.say(5)
            with pytest.raises(TimeoutError):
                await until(lambda: len(handled) == 10, 5.0)


async def test_without_holds_a_database_that_is_away_costs_dead_letters(nats_server: Make) -> None:
    """The infrastructure's errors taken for the message's own: what `verdicts` tells apart."""
    tries = 0

    async def handle(_event: Event) -> None:
        nonlocal tries
        tries += 1
        try:
            raise Unavailable("no database", 0.0)
        except Unavailable as away:
            raise RuntimeError("taken for the message's fault") from away

    async with stand(nats_server().url) as s:
        made = consumer(s, Consumer, handle)
        async with running(made):
            await s.say(1)
            await until(lambda: made.stats.dead_lettered == 1)
        assert tries == 3
        assert len(await s.dead_letters()) == 1


@pytest.mark.parametrize(("made", "again"), [(Consumer, True), (Hasty, False)])
async def test_what_is_acknowledged_before_it_is_done_dies_with_its_consumer(
    nats_server: Make,
    made: type[Consumer],
    again: bool,  # noqa: FBT001
) -> None:
    begun = asyncio.Event()
    handled: Counter[str] = Counter()

    async def hangs(_event: Event) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def handle(event: Event) -> None:
        handled[event.id] += 1

    server = nats_server()
    async with stand(server.url) as first:
        dying = asyncio.create_task(consumer(first, made, hangs).run())
        [said] = await first.say(1)
        await begun.wait()
        await first.bus.client.flush()
        dying.cancel()
        await asyncio.wait({dying})
    async with stand(server.url) as second, running(consumer(second, made, handle)):
        if again:
            await until(lambda: handled[said.id] == 1)
            return
        info = await second.bus.js.consumer_info("CHANGES", "sabotaged")
        assert (info.num_pending, info.num_ack_pending) == (0, 0)
        with pytest.raises(TimeoutError):
            await until(lambda: bool(handled), 2 * ACK_WAIT_S)


async def test_without_a_limit_of_attempts_poison_is_never_buried(nats_server: Make) -> None:
    tries = 0

    async def handle(_event: Event) -> None:
        nonlocal tries
        tries += 1
        raise ValueError("poison")

    async with stand(nats_server().url) as s:
        made = consumer(s, Consumer, handle, attempts=1_000_000)
        async with running(made):
            await s.say(1)
            await until(lambda: tries > 50)
        assert made.stats.dead_lettered == 0
        assert await s.dead_letters() == []


async def test_without_pings_a_peer_that_stopped_answering_is_never_noticed(
    nats_server: Make,
    at_length: bool,  # noqa: FBT001
) -> None:
    if not at_length:
        pytest.skip("it takes half a minute to see nothing: make faults")
    async with proxied(nats_server().url) as hole:
        bus = await Bus.connect(hole.url, name="lonely")
        assert bus.client._ping_interval_task is not None
        bus.client._ping_interval_task.cancel()
        hole.open.clear()
        with pytest.raises(TimeoutError):
            await until(lambda: not bus.is_connected, 35.0)
        hole.open.set()
        await bus.close()


@pytest.mark.parametrize(("made", "whole"), [(Publisher, True), (Careless, False)])
async def test_without_acknowledgements_what_a_broker_took_with_it_is_lost(
    nats_server: Make,
    made: type[Publisher],
    whole: bool,  # noqa: FBT001
) -> None:
    """The broker stands still while it is spoken to, and then dies."""
    server = nats_server()
    async with stand(server.url) as s:
        assert server.pid is not None
        publisher = made(s.bus, "test", now, new_id)
        os.kill(server.pid, signal.SIGSTOP)
        # On a busy machine its threads run on for a while: until the last one stands still.
        await asyncio.to_thread(os.waitid, os.P_PID, server.pid, os.WSTOPPED)
        said = asyncio.create_task(publisher.publish_many(s.facts(5)))
        await asyncio.wait({said}, timeout=1.0)
        await until(lambda: s.bus.client.pending_data_size == 0)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        assert all(isinstance(one, int) for one in await said)
        assert await s.bus.connected(10.0)
        assert (await s.bus.js.stream_info("CHANGES")).state.messages == (5 if whole else 0)
