"""What was read a moment ago is read once, by one of those who ask; failures are not kept."""

from __future__ import annotations

import asyncio

import pytest

from optiinfra.portal_api.lately import Lately
from optiinfra.schemas.errors import Unavailable


class Store:
    """Answers with how often it was read, once it may."""

    def __init__(self) -> None:
        self.reads = 0
        self.now = 100.0
        self.may = asyncio.Event()
        self.may.set()
        self.down = False
        self.lately = Lately(lasts_s=5.0, elapsed=lambda: self.now)

    async def read(self) -> int:
        self.reads += 1
        await self.may.wait()
        if self.down:
            raise Unavailable("the store is away")
        return self.reads

    async def get(self, key: str = "a") -> int:
        return await self.lately.get(key, self.read)


async def test_an_answer_lasts_from_when_it_was_begun() -> None:
    store = Store()
    assert await store.get() == 1
    store.now += 4.9
    assert await store.get() == 1
    assert await store.get("b") == 2
    store.now += 0.1
    assert await store.get() == 3
    assert await store.get("b") == 2


async def test_those_who_ask_at_once_share_one_reading_also_when_the_first_leaves() -> None:
    store = Store()
    store.may.clear()
    first, second = asyncio.create_task(store.get()), asyncio.create_task(store.get())
    await asyncio.sleep(0)
    store.now += 60.0
    third = asyncio.create_task(store.get())
    await asyncio.sleep(0)
    first.cancel()
    store.may.set()
    assert (await second, await third) == (1, 1)
    assert first.cancelled() or await asyncio.wait({first})
    assert await store.get() == 2


async def test_what_failed_is_read_again() -> None:
    store = Store()
    store.down = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            await store.get()
    store.down = False
    assert await store.get() == 3
