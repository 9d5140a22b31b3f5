"""What was read a moment ago, for everybody who asks in that moment; read by one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

LASTS_S = 5.0
"""Replicas are scraped no more often than that."""

Read = TypeVar("Read")


class Lately:
    """Answers by key, for `lasts_s` from when reading began; what failed is not remembered."""

    def __init__(
        self, *, lasts_s: float = LASTS_S, elapsed: Callable[[], float] = time.monotonic
    ) -> None:
        self._lasts_s = lasts_s
        self._elapsed = elapsed
        self._known: dict[Hashable, tuple[float, asyncio.Future[Any]]] = {}

    async def get(self, key: Hashable, read: Callable[[], Awaitable[Read]]) -> Read:
        """What `read` gives, or gave of late. Raises what `read` raises."""
        now = self._elapsed()
        self._forget_before(now - self._lasts_s)
        if key not in self._known:
            reading = asyncio.ensure_future(read())
            self._known[key] = now, reading
            reading.add_done_callback(lambda done: self._forget_failed(key, done))
        answer: Read = await asyncio.shield(self._known[key][1])
        return answer

    def _forget_before(self, oldest: float) -> None:
        """They are in the order in which they were begun."""
        while self._known:
            key, (began, reading) = next(iter(self._known.items()))
            if began > oldest or not reading.done():
                return
            del self._known[key]

    def _forget_failed(self, key: Hashable, done: asyncio.Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._known.pop(key, None)
