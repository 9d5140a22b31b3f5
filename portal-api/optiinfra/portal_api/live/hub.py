"""One ordered feed a process, kept in a ring that every client reads with a cursor of its own."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import structlog

from optiinfra.events.feed import Delivered, StreamState
from optiinfra.portal_api.live.frames import Frame, Sent, Together, frame_of
from optiinfra.schemas.errors import Conflict, Unavailable

RING_SIZE = 4096
CHUNK = 256
TOGETHER_S = 0.04
"""Clients are woken no more often than that: what is said in between reaches them at once, and
costs one message to each instead of many. The first words after a rest do not wait."""
BEAT_S = 5.0
"""Where nothing is said, clients are woken that often, so that they can give a sign of life."""
PLACES = 64
"""So many of the places at which clients stand are remembered with what is said there next."""
RETRY_S = 0.5
CATCH_UPS = 16
"""How many clients may read the broker for themselves at a time."""

log = structlog.get_logger()


class Follows(Protocol):
    """The feed, as the hub needs it."""

    async def state(self) -> StreamState: ...

    def follow(self, after: int) -> AsyncGenerator[Delivered, None]: ...


class Restarting(Exception):
    """The stream or this process begins anew: the client is to connect again."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a client hears next, if anything, and where that leaves it."""

    cursor: int
    prev: int
    together: Together | None


class Hub:
    """Fills the ring; `changed` is replaced when it wakes, so that a waiter never misses a frame.

    Everything after `floor` up to `head` is in the ring.
    """

    def __init__(self, feed: Follows, *, ring_size: int = RING_SIZE) -> None:
        self._feed = feed
        self._ring: deque[Frame] = deque()
        self._ring_size = ring_size
        self._steps: dict[tuple[str, int, int], Step | None] = {}
        self._stopped = False
        self._target = 0
        self._woken_at = -math.inf
        self._waking: asyncio.TimerHandle | None = None
        self.floor = 0
        self.head = 0
        self.epoch: str | None = None
        self.changed = asyncio.Event()
        self.catch_ups = asyncio.Semaphore(CATCH_UPS)

    @property
    def is_current(self) -> bool:
        """Whether the ring has reached what the stream held when it was opened."""
        return self.epoch is not None and self.head >= self._target

    async def run(self) -> None:
        """Follows the stream until it is cancelled; waits for a broker that is away."""
        beating = asyncio.create_task(self._beat())
        try:
            await self._follow_on()
        finally:
            beating.cancel()
            await asyncio.wait({beating})

    async def _follow_on(self) -> None:
        while not self._stopped:
            try:
                await self._follow(await self._feed.state())
            except Unavailable as away:
                log.warning("live stream has no broker", reason=str(away))
                await asyncio.sleep(RETRY_S)
            except Conflict as replaced:
                log.warning("live stream begins anew", reason=str(replaced))
                self._begin(None, 0)

    async def _follow(self, state: StreamState) -> None:
        start = max(state.oldest - 1, state.last - self._ring_size, 0)
        if self.epoch != state.epoch or not self.floor <= self.head <= state.last:
            self._begin(state.epoch, start)
        self._target = state.last
        async with aclosing(self._feed.follow(self.head)) as messages:
            async for message in messages:
                self._push(message)

    def _begin(self, epoch: str | None, start: int) -> None:
        self._ring.clear()
        self._steps.clear()
        self.epoch, self.floor, self.head = epoch, start, start
        self._wake()

    def _push(self, message: Delivered) -> None:
        frame = frame_of(message)
        if frame is not None:
            self._ring.append(frame)
        self.head = message.sequence
        self._steps.clear()
        if len(self._ring) > self._ring_size:
            self.floor = self._ring.popleft().sequence
        self._wake_soon()

    def _wake_soon(self) -> None:
        if self._waking is not None:
            return
        loop = asyncio.get_running_loop()
        due = self._woken_at + TOGETHER_S
        if loop.time() >= due:
            self._wake()
        else:
            self._waking = loop.call_at(due, self._wake)

    def _wake(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
            self._waking = None
        self._woken_at = asyncio.get_running_loop().time()
        waiting, self.changed = self.changed, asyncio.Event()
        waiting.set()

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(BEAT_S)
            if clock() - self._woken_at >= BEAT_S:
                self._wake()

    def stop(self) -> None:
        """Sends the clients away; the process is about to end."""
        self._stopped = True
        self._wake()

    def require(self, epoch: str | None) -> None:
        """Raises `Restarting` when a client of `epoch` has nothing to read here any more."""
        if self._stopped or epoch != self.epoch:
            raise Restarting

    def step(self, tenant: str, prev: int, cursor: int) -> Step | None:
        """Up to `CHUNK` frames after `cursor`, which must not lie below `floor`, for a client of
        `tenant` whose last frame was `prev`; None when there are none. It is made once for all
        who stand there.
        """
        place = tenant, prev, cursor
        if place not in self._steps:
            if len(self._steps) >= PLACES:
                self._steps.clear()
            self._steps[place] = self._step(*place)
        return self._steps[place]

    def _step(self, tenant: str, prev: int, cursor: int) -> Step | None:
        frames = self.after(cursor)
        if not frames:
            return None
        sent = []
        for frame in frames:
            if frame.tenant == tenant:
                sent.append(Sent(frame.text(prev), frame.sequence))
                prev = frame.sequence
        return Step(frames[-1].sequence, prev, Together.of(*sent) if sent else None)

    def after(self, cursor: int, limit: int = CHUNK) -> list[Frame]:
        """Up to `limit` frames after `cursor`, which must not lie below `floor`."""
        begin = bisect_right(self._ring, cursor, key=lambda frame: frame.sequence)
        return [self._ring[i] for i in range(begin, min(begin + limit, len(self._ring)))]

    async def state(self) -> StreamState:
        """Where the stream itself stands. Raises `Unavailable` without broker."""
        return await self._feed.state()

    async def replay(self, cursor: int) -> AsyncGenerator[Frame, None]:
        """What the ring does not hold any more, from the broker, until the ring is reached."""
        async with aclosing(self._feed.follow(cursor)) as messages:
            async for message in messages:
                frame = frame_of(message)
                if frame is not None:
                    yield frame
                if message.sequence >= self.floor:
                    return
