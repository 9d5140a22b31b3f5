"""The subscriber's kit and replays on a real broker, over restarts."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from itertools import pairwise

import pytest

from optiinfra.events.envelope import Event, encode
from optiinfra.events.facts import ChangePaused, ChangeResumed
from optiinfra.events.replay import replay
from optiinfra.events.subjects import Stream
from optiinfra.events.subscribe import Received, subscribe
from optiinfra.schemas.errors import Conflict, Rejected
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import Stand, new_id, now, stand

Make = Callable[[], NatsServer]
RESUMED = ("change.resumed",)


async def _take(
    source: AsyncGenerator[Received, None], count: int, *, ack: bool = True
) -> list[Received]:
    received: list[Received] = []
    async with asyncio.timeout(15):
        while len(received) < count:
            one = await anext(source)
            if ack:
                await one.ack()
            received.append(one)
    return received


def _ids(received: list[Received]) -> list[str]:
    return [one.event.id for one in received]


async def _restart(server: NatsServer) -> None:
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


async def _say_all(s: Stand, count: int) -> list[Event]:
    """One after another, so that the order is known."""
    events = s.facts(count)
    for event in events:
        await s.publisher.publish(event)
    return events


async def test_an_ordered_subscription_outlasts_restarts_without_gap_or_duplicate(
    nats_server: Make,
) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        said = await _say_all(s, 30)
        async with aclosing(subscribe(server.url, subjects=RESUMED, since_sequence=0)) as source:
            received = await _take(source, 30)
            for _ in range(2):
                await _restart(server)
                said += await _say_all(s, 30)
                received += await _take(source, 30)
        assert _ids(received) == [event.id for event in said]
        sequences = [one.sequence for one in received]
        assert all(earlier < later for earlier, later in pairwise(sequences))

        later = subscribe(server.url, subjects=RESUMED, since_sequence=sequences[59])
        async with aclosing(later) as source:
            assert _ids(await _take(source, 30)) == _ids(received[60:])


async def test_a_subscription_can_begin_at_a_time_or_now_and_for_one_tenant(
    nats_server: Make,
) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        await _say_all(s, 5)
        middle = now()
        wanted = await _say_all(s, 5)
        source = subscribe(server.url, subjects=("change.*",), since_time=middle, tenant="acme")
        async with aclosing(source):
            assert _ids(await _take(source, 5)) == [event.id for event in wanted]

        source = subscribe(server.url, subjects=("change.paused",), tenant="other")
        async with aclosing(source):
            first = asyncio.ensure_future(anext(source))
            paused = ChangePaused(change=new_id(), by="x", reason="")
            while not first.done():
                await s.publisher.publish(s.publisher.event(paused, tenant="acme"))
                event = s.publisher.event(paused, tenant="other")
                await s.publisher.publish(event)
                await asyncio.wait({first}, timeout=0.05)
            assert first.result().event.tenant == "other"


async def test_a_durable_subscription_goes_on_where_it_was_acknowledged(nats_server: Make) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        said = await _say_all(s, 20)
        async with aclosing(subscribe(server.url, subjects=RESUMED, durable="bills")) as source:
            received = await _take(source, 10)
            await _restart(server)
            received += await _take(source, 5)
            await _take(source, 1, ack=False)
        async with aclosing(subscribe(server.url, subjects=RESUMED, durable="bills")) as source:
            received += await _take(source, 5)
        assert sorted(_ids(received)) == sorted(event.id for event in said)


async def test_a_durable_that_was_deleted_heals_under_its_subscriber(nats_server: Make) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        said = await _say_all(s, 3)
        async with aclosing(subscribe(server.url, subjects=RESUMED, durable="bills")) as source:
            received = await _take(source, 3)
            await s.bus.js.delete_consumer("CHANGES", "bills")
            said += await _say_all(s, 3)
            received += await _take(source, 3)
        assert _ids(received) == [event.id for event in said]


async def test_a_broker_that_lost_its_tail_gives_no_gap_though_sequences_are_used_again(
    nats_server: Make,
) -> None:
    server = nats_server()
    store, copy = server.home / "store", server.home / "copy"
    async with stand(server.url) as s:
        said = await _say_all(s, 10)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(shutil.copytree, store, copy)
        await asyncio.to_thread(server.start)
        async with aclosing(subscribe(server.url, subjects=RESUMED, since_sequence=0)) as source:
            received = await _take(source, 10)
            lost = await _say_all(s, 5)
            received += await _take(source, 5)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(shutil.rmtree, store)
            await asyncio.to_thread(copy.rename, store)
            await asyncio.to_thread(server.start)
            fresh = await _say_all(s, 3)
            for event in lost:
                await s.publisher.publish(event)
            fresh += await _say_all(s, 3)
            received += await _take(source, 6)
        assert _ids(received) == [event.id for event in said + lost + fresh]


async def test_a_stream_that_was_made_anew_ends_the_subscription_clearly(
    nats_server: Make,
) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        await _say_all(s, 3)
        config = (await s.bus.js.stream_info("CHANGES")).config
        async with aclosing(subscribe(server.url, subjects=RESUMED, since_sequence=0)) as source:
            await _take(source, 3)
            await s.bus.js.delete_stream("CHANGES")
            await s.bus.js.add_stream(config)
            with pytest.raises(Conflict, match="made anew"):
                await _take(source, 1)


async def test_a_position_that_is_no_longer_kept_is_refused(nats_server: Make) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        await _say_all(s, 9)
        await s.bus.js.purge_stream("CHANGES", seq=6)
        async with aclosing(subscribe(server.url, subjects=RESUMED, since_sequence=2)) as source:
            with pytest.raises(Conflict, match="no longer keeps"):
                await _take(source, 1)
        async with aclosing(subscribe(server.url, subjects=RESUMED, since_sequence=0)) as source:
            assert [one.sequence for one in await _take(source, 4)] == [6, 7, 8, 9]


async def test_wrong_requests_are_refused_at_the_start(nats_server: Make) -> None:
    url = nats_server().url
    with pytest.raises(Rejected, match="no subject"):
        await anext(subscribe(url, subjects=("weather.*",)))
    with pytest.raises(Rejected, match="not both"):
        await anext(subscribe(url, since_sequence=1, since_time=now()))


async def test_a_replay_gives_the_range_in_order_and_ends(nats_server: Make) -> None:
    async with stand(nats_server().url) as s:
        assert [one async for one in replay(s.bus)] == []
        said = await _say_all(s, 10)
        middle = now()
        said += await _say_all(s, 10)
        ids = [event.id for event in said]

        whole = [(sequence, event.id) async for sequence, event in replay(s.bus)]
        assert whole == list(enumerate(ids, start=1))
        some = [event.id async for _, event in replay(s.bus, after=5, until=12)]
        assert some == ids[5:12]
        late = [event.id async for _, event in replay(s.bus, since=middle, stream=Stream.CHANGES)]
        assert late == ids[10:]
        assert [one async for one in replay(s.bus, since=now())] == []
        change = said[7].correlation
        assert [event.id async for _, event in replay(s.bus, change=change)] == [ids[7]]


async def _say_raw(s: Stand, body: bytes, kind: str) -> None:
    """A message as another release might say it, on a subject that is kept."""
    event = s.facts(1)[0]
    _, headers, _ = encode(event)
    headers = {**headers, "ce-type": f"optiinfra.{kind}.v1"}
    await s.bus.js.publish(event.subject, body, headers=headers)


@pytest.mark.parametrize("durable", [None, "bills"])
async def test_what_a_newer_release_says_is_read_as_far_as_it_is_known(
    nats_server: Make, durable: str | None
) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        first = await _say_all(s, 1)
        await _say_raw(s, b'{"kind": "change.repainted", "change": "x"}', "change.repainted")
        grown = {"kind": "change.resumed", "change": "c" * 32, "by": "a", "added_later": [1]}
        event = s.publisher.event(ChangeResumed(change="c" * 32, by="a"), tenant="acme")
        _, headers, _ = encode(event)
        await s.bus.js.publish(event.subject, json.dumps(grown).encode(), headers=headers)
        last = await _say_all(s, 1)
        source = subscribe(server.url, subjects=RESUMED, since_sequence=0, durable=durable)
        async with aclosing(source):
            received = await _take(source, 3)
        assert _ids(received) == [one.id for one in (*first, event, *last)]
        assert received[1].event == event


async def test_an_event_that_the_broker_holds_twice_is_known_by_its_id(nats_server: Make) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        config = (await s.bus.js.stream_info("CHANGES")).config
        await s.bus.js.update_stream(config.evolve(duplicate_window=0.1))
        [said] = await _say_all(s, 1)
        async with asyncio.timeout(10):
            while await s.publisher.publish(said) == 1:  # noqa: ASYNC110 - the window's end
                await asyncio.sleep(0.05)
        [last] = await _say_all(s, 1)
        async with aclosing(subscribe(server.url, subjects=RESUMED, since_sequence=0)) as source:
            assert _ids(await _take(source, 2)) == [said.id, last.id]
        async with aclosing(subscribe(server.url, subjects=RESUMED, durable="bills")) as source:
            assert _ids(await _take(source, 3)) == [said.id, said.id, last.id]


async def test_what_was_not_acknowledged_comes_again(nats_server: Make) -> None:
    server = nats_server()
    async with stand(server.url) as s:
        [said] = await _say_all(s, 1)
        for _ in range(2):
            async with aclosing(subscribe(server.url, subjects=RESUMED, durable="bills")) as source:
                assert _ids(await _take(source, 1, ack=False)) == [said.id]
        async with aclosing(subscribe(server.url, subjects=RESUMED, durable="bills")) as source:
            assert _ids(await _take(source, 1)) == [said.id]
        info = await s.bus.js.consumer_info("CHANGES", "bills")
        assert (info.num_pending, info.num_ack_pending) == (0, 0)
        assert info.config.ack_wait == 30, "what a subscriber that died had in hand waits so long"
        assert info.config.max_deliver == -1
