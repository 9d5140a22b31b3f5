"""The live stream's rhythm: the first words at once, what follows within moments in one message."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
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


async def test_the_first_frame_comes_at_once_and_those_close_behind_it_come_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_hub, "TOGETHER_S", 1.0)
    feed = Feed()
    hub = Hub(feed)
    running = asyncio.create_task(hub.run())
    async with aclosing(Reading(hub, "acme", None).frames()) as frames:
        (hello,) = await anext(frames)
        assert '"hello"' in hello.text
        hub._woken_at = -math.inf
        feed.say()
        assert [sent.sequence for sent in await anext(frames)] == [1]
        rest = asyncio.ensure_future(anext(frames))
        for _ in range(3):
            feed.say()
            await asyncio.sleep(0.01)
        assert [sent.sequence for sent in await rest] == [2, 3, 4]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
