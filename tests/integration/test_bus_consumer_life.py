"""Consumers on a real broker: what they outlive, and what ends them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from optiinfra.events.consume import Consumer
from optiinfra.events.envelope import Event
from optiinfra.schemas.errors import Conflict, Unavailable
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import Stand, running, stand, until

Make = Callable[[], NatsServer]


@asynccontextmanager
async def hearing(
    nats_server: Make,
) -> AsyncIterator[tuple[Stand, Consumer, asyncio.Task[None]]]:
    """A consumer that runs and has handled a message; the test waits for its end."""

    async def handle(_event: Event) -> None:
        return

    async with stand(nats_server().url) as s:
        consumer = s.consumer("hearing", handle=handle)
        async with running(consumer) as task:
            await s.say(1)
            await until(lambda: consumer.stats.acked == 1)
            yield s, consumer, task


async def test_a_deleted_durable_heals_and_goes_on_where_all_instances_were(
    nats_server: Make,
) -> None:
    handled: Counter[str] = Counter()

    async def handle(event: Event) -> None:
        handled[event.id] += 1

    async with stand(nats_server().url) as s:
        consumer = s.consumer("healing", handle=handle)
        async with running(consumer):
            before = await s.say(50)
            await until(lambda: len(handled) == 50)
            await s.bus.js.delete_consumer("CHANGES", "healing")
            after = await s.say(50)
            await until(lambda: len(handled) == 100, 10.0)
        assert set(handled) == {event.id for event in before + after}
        assert set(handled.values()) == {1}


async def test_a_deleted_stream_ends_the_consumer_within_15_s_without_spinning(
    nats_server: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "optiinfra.events")
    async with hearing(nats_server) as (s, _, task):
        sent_before = s.bus.client.stats["out_msgs"]
        await s.bus.js.delete_stream("CHANGES")
        with pytest.raises(Unavailable, match="stream"):
            await asyncio.wait_for(asyncio.shield(task), 15)
        assert s.bus.client.stats["out_msgs"] - sent_before < 100


async def test_a_stream_that_is_gone_without_a_word_ends_the_consumer_within_15_s(
    nats_server: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's word that the consumer is gone may be lost with it: then silence tells."""

    async with hearing(nats_server) as (s, consumer, task):
        monkeypatch.setattr(consumer._pull, "_read_status", lambda _message: None)
        await s.bus.js.delete_stream("CHANGES")
        with pytest.raises(Unavailable, match="stream"):
            await asyncio.wait_for(asyncio.shield(task), 15)


async def test_a_closed_connection_ends_the_consumer(nats_server: Make) -> None:
    async with hearing(nats_server) as (s, _, task):
        await s.bus.client.close()
        with pytest.raises(Unavailable, match="closed"):
            await asyncio.wait_for(asyncio.shield(task), 15)


async def test_a_durable_of_another_kind_is_refused_and_an_older_one_brought_up_to_date(
    nats_server: Make,
) -> None:
    async def handle(_event: Event) -> None:
        return

    async with stand(nats_server().url) as s:
        await s.bus.js.add_consumer(
            "CHANGES", ConsumerConfig(durable_name="odd", ack_policy=AckPolicy.NONE)
        )
        with pytest.raises(Conflict, match="ack_policy"):
            await s.consumer("odd", handle=handle).run()
        old = s.consumer("aged", handle=handle, ack_wait_s=7.0)
        async with running(old):
            await s.say(1)
            await until(lambda: old.stats.acked == 1)
        new = s.consumer("aged", handle=handle, prefixes=("change.resumed", "change.paused"))
        async with running(new):
            await s.say(1)
            await until(lambda: new.stats.acked == 1)
        found = (await s.bus.js.consumer_info("CHANGES", "aged")).config
        assert found.ack_wait == 1.0
        assert set(found.filter_subjects or ()) == {"change.resumed.*.*", "change.paused.*.*"}
