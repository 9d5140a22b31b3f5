"""Consumers on a real broker: what is handled, retried, buried, and when."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
from nats.js.api import ConsumerConfig

from optiinfra.events.bus import Bus
from optiinfra.events.consume import READ_AT_ONCE, listen
from optiinfra.events.envelope import Event
from optiinfra.events.facts import AgentHeartbeat, ChangeResumed
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import Conflict, Invariant, Rejected, Unavailable
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import MemoryInbox, Stand, now, running, stand, until

Make = Callable[[], NatsServer]


def _by(event: Event) -> str:
    assert isinstance(event.fact, ChangeResumed)
    return event.fact.by


async def test_a_handler_slower_than_ack_wait_runs_once(nats_server: Make) -> None:
    runs: Counter[str] = Counter()

    async def slow(event: Event) -> None:
        runs[event.id] += 1
        await asyncio.sleep(3.2)

    async with stand(nats_server().url) as s:
        consumer = s.consumer("slow", handle=slow)
        async with running(consumer):
            await s.say(2)
            await until(lambda: consumer.stats.acked == 2)
        assert set(runs.values()) == {1}
        info = await s.bus.js.consumer_info("CHANGES", "slow")
        assert (info.num_ack_pending, info.num_redelivered) == (0, 0)


async def test_a_word_about_a_consumer_that_has_delivered_nothing_is_not_taken_for_all_heard(
    nats_server: Make,
) -> None:
    """The end of a request that found nothing is."""

    async def never(event: Event) -> None:
        raise AssertionError(event.id)

    async with stand(nats_server().url) as s:
        consumer = s.consumer("new", handle=never)
        async with running(consumer):
            await until(lambda: consumer.stats.lag is not None)
            assert consumer.heard_until() == datetime.fromtimestamp(0, UTC)
            await until(lambda: consumer.heard_until() is None)


async def test_poison_of_each_kind_is_buried_with_its_cause(
    nats_server: Make, caplog: pytest.LogCaptureFixture
) -> None:
    runs: Counter[str] = Counter()

    async def handle(event: Event) -> None:
        kind = _by(event)
        runs[kind] += 1
        if kind == "raising":
            raise RuntimeError("always")
        if kind == "permanent":
            raise Rejected("never")
        if kind == "bug":
            raise Invariant("a promise is broken")
        if kind == "flaky" and runs[kind] < 3:
            raise ValueError("not yet")

    async with stand(nats_server().url) as s:
        consumer = s.consumer("poisoned", handle=handle, attempts=3)
        async with running(consumer):
            for kind in ("raising", "permanent", "bug", "flaky", "good"):
                await s.say(1, by=kind)
            event = s.facts(1)[0]
            headers = {"ce-id": event.id, "ce-type": event.type, "ce-source": "x",
                       "ce-tenant": "acme", "ce-time": event.time.isoformat()}  # fmt: skip
            await s.bus.js.publish(event.subject, b"{not json", headers=headers)
            await s.bus.js.publish(event.subject, b'{"kind":"change.opened"}', headers=headers)
            await s.bus.js.publish(event.subject, b"\xff\xfe")
            await until(lambda: consumer.stats.dead_lettered == 6 and consumer.stats.acked == 2)
        letters = await s.dead_letters()

    assert runs == {"raising": 3, "permanent": 1, "bug": 1, "flaky": 3, "good": 1}
    causes = Counter(letter.cause for letter in letters)
    assert causes == {"RuntimeError": 1, "Rejected": 4, "Invariant": 1}
    raising = next(letter for letter in letters if letter.cause == "RuntimeError")
    assert (raising.error, raising.attempts, raising.stream) == ("always", 3, "CHANGES")
    assert any(letter.body.startswith("base64:") for letter in letters)
    assert any(letter.body == "{not json" for letter in letters)
    assert "a promise is broken" in caplog.text


async def test_infrastructure_that_is_away_buries_nothing_and_counts_no_attempt(
    nats_server: Make,
) -> None:
    tries = 0

    async def handle(_event: Event) -> None:
        nonlocal tries
        tries += 1
        if tries <= 10:
            raise (Unavailable("no database", 0.0), ConnectionError(), TimeoutError())[tries % 3]

    async with stand(nats_server().url) as s:
        consumer = s.consumer("patient", handle=handle, attempts=2, backoff_base_s=0.005)
        async with running(consumer):
            await s.say(1)
            await until(lambda: consumer.stats.acked == 1)
        assert await s.dead_letters() == []
        info = await s.bus.js.consumer_info("CHANGES", "patient")
        assert (tries, info.num_redelivered) == (11, 0)


async def test_a_conflict_is_tried_again_at_once(nats_server: Make) -> None:
    tries = 0

    async def handle(_event: Event) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise Conflict("moved on")

    async with stand(nats_server().url) as s:
        consumer = s.consumer("fresh", handle=handle, attempts=2, backoff_base_s=30.0)
        async with running(consumer):
            await s.say(1)
            await until(lambda: consumer.stats.acked == 1, 5.0)
        assert consumer.stats.dead_lettered == 0


async def test_a_batch_answers_for_each_event_and_one_bad_event_harms_no_other(
    nats_server: Make,
) -> None:
    handled: Counter[str] = Counter()
    sizes: list[int] = []

    async def handle(events: Sequence[Event]) -> Sequence[BaseException | None]:
        sizes.append(len(events))
        if any(_by(event) == "raising" for event in events):
            raise RuntimeError("the whole batch")
        handled.update(event.id for event in events)
        return [Rejected("bad") if _by(event) == "bad" else None for event in events]

    async with stand(nats_server().url) as s:
        good = await s.say(200)
        await s.say(1, by="bad")
        await s.say(1, by="raising")
        consumer = s.consumer("together", handle_batch=handle, attempts=2)
        async with running(consumer):
            await until(lambda: consumer.stats.acked == 200 and consumer.stats.dead_lettered == 2)
        letters = await s.dead_letters()
    assert all(handled[event.id] == 1 for event in good)
    assert 1 < max(sizes) <= 64
    assert {letter.cause for letter in letters} == {"Rejected", "RuntimeError"}


async def test_a_batch_holds_what_is_kept_of_each_event(nats_server: Make) -> None:
    handled: list[str] = []

    def keep(event: Event) -> str:
        if _by(event) == "bad":
            raise Rejected("cannot be kept")
        return event.id

    async def handle(kept: Sequence[str]) -> Sequence[BaseException | None]:
        handled.extend(kept)
        return [None] * len(kept)

    async with stand(nats_server().url) as s:
        good = await s.say(10)
        await s.say(1, by="bad")
        consumer = s.consumer("keeping", handle_batch=handle, keep=keep)
        async with running(consumer):
            await until(lambda: consumer.stats.acked == 10 and consumer.stats.dead_lettered == 1)
        (letter,) = await s.dead_letters()
    assert sorted(handled) == sorted(event.id for event in good)
    assert letter.error == "cannot be kept"


async def test_others_run_while_a_large_batch_is_read(nats_server: Make) -> None:
    turns: list[int] = [0]
    seen: list[int] = []

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            turns[0] += 1

    def keep(event: Event) -> None:
        seen.append(turns[0])

    async def handle(kept: Sequence[None]) -> Sequence[BaseException | None]:
        return [None] * len(kept)

    async with stand(nats_server().url) as s:
        await s.say(2 * READ_AT_ONCE + 50)
        consumer = s.consumer("large", handle_batch=handle, keep=keep, batch=500, linger_s=0.5)
        async with running(consumer):
            task = asyncio.create_task(other())
            await until(lambda: consumer.stats.acked == len(seen) == 2 * READ_AT_ONCE + 50)
            task.cancel()
    assert max(Counter(seen).values()) <= READ_AT_ONCE


async def test_batches_are_handled_at_once_and_one_more_is_in_hand(nats_server: Make) -> None:
    handled: Counter[str] = Counter()
    at_once, in_hand, go_on = [0], [0], asyncio.Event()

    async def handle(events: Sequence[Event]) -> Sequence[BaseException | None]:
        at_once.append(at_once[-1] + 1)
        await go_on.wait()
        in_hand.append(consumer.stats.received - handled.total())
        handled.update(event.id for event in events)
        at_once.append(at_once[-1] - 1)
        return [None] * len(events)

    async with stand(nats_server().url) as s:
        said = await s.say(200)
        consumer = s.consumer("two", handle_batch=handle, batch=20, batches=2)
        async with running(consumer):
            await until(lambda: at_once[-1] == 2 and consumer.stats.received == 60)
            go_on.set()
            await until(lambda: consumer.stats.acked == 200)
    assert all(handled[event.id] == 1 for event in said)
    assert (max(at_once), max(in_hand)) == (2, 60)


async def test_an_event_that_the_inbox_knows_is_acknowledged_and_not_handled(
    nats_server: Make,
) -> None:
    handled: list[str] = []

    async def handle(event: Event) -> None:
        handled.append(event.id)

    async with stand(nats_server().url) as s:
        known, fresh = await s.say(2)
        inbox = MemoryInbox({("exact", known.id)}, failures=2)
        consumer = s.consumer("exact", handle=handle, inbox=inbox)
        async with running(consumer):
            await until(lambda: consumer.stats.acked == 2)
    assert handled == [fresh.id]
    assert ("exact", fresh.id) in inbox.ids


async def test_cancelling_finishes_what_runs_and_gives_back_the_rest(nats_server: Make) -> None:
    started = asyncio.Event()
    done: list[str] = []

    async def handle(event: Event) -> None:
        started.set()
        await asyncio.sleep(0.3)
        done.append(event.id)

    async with stand(nats_server().url) as s:
        await s.say(20)
        first = s.consumer("leaving", handle=handle, concurrency=1, ack_wait_s=60, heartbeat_s=20)
        async with running(first):
            await asyncio.wait_for(started.wait(), 5)
        assert len(done) == 1
        second = s.consumer("leaving", handle=handle, ack_wait_s=60, heartbeat_s=20)
        async with running(second):
            await until(lambda: len(done) == 20, 10.0)
        assert len(set(done)) == 20


async def test_heartbeats_are_heard_without_a_stream(nats_server: Make) -> None:
    beat = AgentHeartbeat(
        tenant="acme", agent="cost", instance="i", version="1", capabilities=(), at=now()
    )

    async def hear(bus: Bus, heard: asyncio.Future[Event]) -> None:
        async for event in listen(bus, "agent.heartbeat"):
            heard.set_result(event)
            return

    async def speak(s: Stand, heard: asyncio.Future[Event]) -> None:
        while not heard.done():
            await s.bus.client.publish("agent.heartbeat.acme.cost", b"nonsense")
            assert await s.publisher.publish(s.publisher.event(beat, tenant="acme")) == 0
            await asyncio.sleep(0.01)

    async with stand(nats_server().url) as s:
        heard: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(hear(s.bus, heard))
            group.create_task(speak(s, heard))
        assert heard.result().fact == beat


async def test_messages_that_nobody_ever_answers_are_buried(nats_server: Make) -> None:
    async def handle(_event: Event) -> None:
        raise AssertionError("must not be handled")

    async with stand(nats_server().url) as s:
        await s.say(1)
        consumer = s.consumer("crashing", handle=handle, max_deliver=2)
        await s.bus.js.add_consumer(
            "CHANGES", ConsumerConfig(durable_name="crashing", ack_wait=0.1)
        )
        other = await s.bus.js.pull_subscribe_bind(durable="crashing", stream="CHANGES")
        for _ in range(2):
            await (await other.fetch(1, timeout=5))[0].nak()
        async with running(consumer):
            await until(lambda: consumer.stats.dead_lettered == 1)
        letters = await s.dead_letters()
        assert "3 times" in letters[0].error
        assert letters[0].stream == Stream.CHANGES
