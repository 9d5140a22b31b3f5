"""A broker that is killed, restarted, or lost its streams: what the bus promises then."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import Event
from optiinfra.events.facts import TimerFired, TimerName, TimerSet
from optiinfra.events.publish import Publisher, fired_by
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import Conflict, Unavailable
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import MemoryInbox, Stand, new_id, now, running, stand, until

Make = Callable[[], NatsServer]


async def test_a_broker_killed_in_mid_stream_loses_and_doubles_nothing(nats_server: Make) -> None:
    server = nats_server()
    effects: Counter[str] = Counter()
    said: list[str] = []

    async def handle(event: Event) -> None:
        effects[event.id] += 1

    async def speak(s: Stand, stop: asyncio.Event) -> None:
        while not stop.is_set():
            said.extend(event.id for event in await s.say(20))

    async with stand(server.url) as s:
        consumer = s.consumer("survivor", handle=handle, inbox=MemoryInbox())
        stop = asyncio.Event()
        async with running(consumer), asyncio.TaskGroup() as group:
            group.create_task(speak(s, stop))
            for _ in range(3):
                reached = len(effects)
                await until(lambda reached=reached: len(effects) > reached + 50)  # type: ignore[misc]
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                back, reached = time.monotonic(), len(effects)
                await until(lambda reached=reached: len(effects) > reached)  # type: ignore[misc]
                assert time.monotonic() - back < 2.0
            stop.set()
            await until(lambda: set(said) <= set(effects))
        assert set(effects.values()) == {1}
        assert await s.dead_letters() == []


async def test_publishing_waits_for_a_broker_that_is_away(nats_server: Make) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        await asyncio.to_thread(server.kill)
        saying = asyncio.create_task(s.publisher.publish(s.facts(1)[0]))
        await asyncio.to_thread(server.start)
        assert await asyncio.wait_for(saying, 5) == 1


async def test_publishing_gives_up_in_time_when_no_broker_comes(nats_server: Make) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        hasty = Publisher(s.bus, "test", now, new_id, try_timeout_s=0.2, give_up_after_s=0.5)
        await asyncio.to_thread(server.kill)
        began = time.monotonic()
        with pytest.raises(Unavailable, match=r"change\.resumed"):
            await hasty.publish(s.facts(1)[0])
        results = await hasty.publish_many(s.facts(3))
        assert all(isinstance(result, Unavailable) for result in results)
        assert time.monotonic() - began < 3.0


async def test_a_missing_stream_and_a_full_one_are_told_apart(nats_server: Make) -> None:
    small = topology.TopologyLimits(changes_bytes=4096)
    async with stand(nats_server().url, limits=small) as s:
        hasty = Publisher(s.bus, "test", now, new_id, give_up_after_s=0.5)
        results = await hasty.publish_many(s.facts(60))
        refused = [result for result in results if isinstance(result, Unavailable)]
        assert 0 < len(refused) < 60
        assert "free disk space" in str(refused[0])
        await s.bus.js.delete_stream("CHANGES")
        with pytest.raises(Unavailable, match="topology apply"):
            await hasty.publish(s.facts(1)[0])


async def test_the_same_event_is_kept_once(nats_server: Make) -> None:
    async with stand(nats_server().url) as s:
        event = s.facts(1)[0]
        assert {await s.publisher.publish(event) for _ in range(3)} == {1}
        assert await topology.last_sequence(s.bus, Stream.CHANGES) == 1


async def test_timers_fire_within_a_second_of_their_time_and_survive_a_kill(
    nats_server: Make,
) -> None:
    server = nats_server()
    fired: dict[str, float] = {}
    effects: Counter[str] = Counter()

    async def handle(event: Event) -> None:
        assert isinstance(event.fact, TimerFired)
        effects[event.fact.key] += 1
        fired[event.fact.key] = (now() - event.time).total_seconds()

    async with stand(server.url) as s:
        change = new_id()
        for key, delay_s in (("past", -5.0), ("soon", 0.3), ("later", 2.5)):
            fact = TimerSet(
                change=change,
                name=TimerName.SOAK,
                key=key,
                fire_at=now() + timedelta(seconds=delay_s),
            )
            timer = s.publisher.event(fact, tenant="acme")
            for _ in range(2):
                await s.publisher.schedule(timer, fact.fire_at, fired_by(timer))
        consumer = s.consumer(
            "timers",
            handle=handle,
            inbox=MemoryInbox(),
            stream=Stream.TIMERS,
            prefixes=("timer.fired",),
        )
        async with running(consumer):
            await until(lambda: "soon" in fired)
            assert "later" not in fired
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await until(lambda: len(fired) == 3)
        assert set(effects.values()) == {1}
        assert 0 <= fired["soon"] < 1
        assert 0 <= fired["later"] < 1


async def test_connecting_names_the_broker_without_its_password(nats_server: Make) -> None:
    url = nats_server().url
    wrong = "nats://someone:secret@" + url.split("@")[1]
    with pytest.raises(Unavailable, match="refused the credentials") as refused:
        await Bus.connect(wrong, name="test")
    assert "secret" not in str(refused.value)
    with pytest.raises(Unavailable, match=r"nats://127\.0\.0\.1:1 ") as absent:
        await Bus.connect("nats://someone:secret@127.0.0.1:1", name="test", timeout_s=0.3)
    assert "secret" not in str(absent.value)


async def test_drift_is_named_refused_and_corrected_on_demand(nats_server: Make) -> None:
    async with stand(nats_server().url) as s:
        assert await topology.diff(s.bus, replicas=1) == []
        assert await topology.apply(s.bus) == []
        await topology.require(s.bus)
        found = (await s.bus.js.stream_info("CHANGES")).config
        await s.bus.js.update_stream(found.evolve(max_bytes=1 << 20, duplicate_window=60))
        await s.bus.js.delete_stream("DLQ")

        with pytest.raises(Conflict, match=r"CHANGES\.max_bytes") as drift:
            await topology.require(s.bus)
        assert "CHANGES.duplicate_window" in str(drift.value)
        assert "DLQ is missing" in str(drift.value)
        with pytest.raises(Conflict, match="--update"):
            await topology.apply(s.bus)
        done = await topology.apply(s.bus, allow_update=True)
        assert {(str(one.stream), one.field) for one in done} == {
            ("CHANGES", "max_bytes"),
            ("CHANGES", "duplicate_window"),
            ("DLQ", topology.MISSING),
        }
        await topology.require(s.bus)


async def test_subjects_that_a_newer_release_brings_are_added_without_asking(
    nats_server: Make,
) -> None:
    async with stand(nats_server().url) as s:
        found = (await s.bus.js.stream_info("CHANGES")).config
        older = [one for one in found.subjects or [] if not one.startswith("policy.changed")]
        await s.bus.js.update_stream(found.evolve(subjects=older))
        with pytest.raises(Conflict, match=r"CHANGES lacks policy\.changed"):
            await topology.require(s.bus)
        (done,) = await topology.apply(s.bus)
        assert done.is_addition
        await topology.require(s.bus)
        await s.bus.js.update_stream(found.evolve(subjects=[*older, "more.*.*"]))
        with pytest.raises(Conflict, match="--update"):
            await topology.apply(s.bus)


async def test_what_cannot_be_changed_in_place_is_said_so(nats_server: Make) -> None:
    async with stand(nats_server().url) as s:
        found = (await s.bus.js.stream_info("METRICS")).config
        await s.bus.js.delete_stream("METRICS")
        await s.bus.js.add_stream(
            found.evolve(storage="memory", persist_mode=None, max_bytes=1 << 20)
        )
        with pytest.raises(Conflict, match=r"METRICS\.storage"):
            await topology.apply(s.bus, allow_update=True)


async def test_a_broker_without_room_says_so(nats_server: Make) -> None:
    bus = await Bus.connect(nats_server().url, name="test")
    try:
        with pytest.raises(Unavailable, match="resources"):
            await topology.apply(bus, limits=topology.TopologyLimits(changes_bytes=1 << 60))
        with pytest.raises(Unavailable, match="no stream"):
            await topology.last_sequence(bus, Stream.DLQ)
    finally:
        await bus.close()
