"""The live stream's rhythm: the first words at once, what follows within moments in one message."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime

import pytest

from optiinfra.events.feed import Delivered, StreamState
from optiinfra.portal_api.live import hub as live_hub
from optiinfra.portal_api.live.hub import Hub
from optiinfra.portal_api.live.reading import Reading

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Feed:
    """A stream on which only what is put into `said` is said."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Delivered] = asyncio.Queue()
        self.count = 0

    def say(self) -> None:
        self.count += 1
        headers = {"ce-id": f"e{self.count}"}
        one = Delivered(self.count, "oi.v1.acme.switch", headers, b"{}", NOW)
        self.said.put_nowait(one)

    async def state(self) -> StreamState:
        return StreamState(epoch="first", first=1, last=0)

    async def follow(self, after: int) -> AsyncGenerator[Delivered, None]:
        while True:
            yield await self.said.get()


@asynccontextmanager
async def followed(feed: Feed) -> AsyncIterator[Hub]:
    hub = Hub(feed)
    running = asyncio.create_task(hub.run())
    yield hub
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def taken_in(hub: Hub, feed: Feed) -> None:
    async with asyncio.timeout(5.0):
        while hub.head < feed.count:
            await hub.changed.wait()


async def test_the_first_frame_comes_at_once_and_those_close_behind_it_come_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_hub, "TOGETHER_S", 1.0)
    feed = Feed()
    async with followed(feed) as hub, aclosing(Reading(hub, "acme", None).frames()) as frames:
        assert '"hello"' in (await anext(frames)).text
        hub._woken_at = -math.inf
        feed.say()
        assert [sent.sequence for sent in (await anext(frames)).sent] == [1]
        rest = asyncio.ensure_future(anext(frames))
        for _ in range(3):
            feed.say()
            await asyncio.sleep(0.01)
        assert [sent.sequence for sent in (await rest).sent] == [2, 3, 4]


async def test_who_stands_at_the_same_place_is_sent_the_same_and_nobody_else() -> None:
    """A text is made once for all of a tenant's clients; one that came later has another `prev`."""
    feed = Feed()
    async with followed(feed) as hub:
        for _ in range(2):
            feed.say()
        await taken_in(hub, feed)
        first, second = (hub.step("acme", 0, 0) for _ in range(2))
        later, foreign = hub.step("acme", 1, 1), hub.step("other", 0, 0)
        assert first is not None
        assert first is second
        assert first.together is not None
        assert [json.loads(one)["prev"] for one in first.together.text.split("\n")] == [0, 1]
        assert later is not None
        assert later.together is not None
        assert json.loads(later.together.text)["seq"] == 2
        assert foreign is not None
        assert (foreign.cursor, foreign.prev, foreign.together) == (2, 0, None)
        feed.say()
        await taken_in(hub, feed)
        grown = hub.step("acme", 0, 0)
        assert grown is not None
        assert grown.cursor == 3
        assert hub.step("acme", 3, 3) is None


async def test_what_is_said_at_many_places_is_not_kept_for_all_of_them() -> None:
    feed = Feed()
    async with followed(feed) as hub:
        for _ in range(live_hub.PLACES + 9):
            feed.say()
        await taken_in(hub, feed)
        for place in range(live_hub.PLACES + 9):
            assert hub.step("acme", place, place) is not None
        assert len(hub._steps) <= live_hub.PLACES


async def test_where_nothing_is_said_a_sign_of_life_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_hub, "BEAT_S", 0.01)
    async with followed(Feed()) as hub:
        reading = Reading(hub, "acme", None, ping_s=0.05)
        async with aclosing(reading.frames()) as frames, asyncio.timeout(5.0):
            kinds = [json.loads((await anext(frames)).text)["kind"] for _ in range(3)]
    assert kinds == ["hello", "ping", "ping"]
