"""One client's way through the stream: a cursor, no queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from optiinfra.portal_api.live import frames
from optiinfra.portal_api.live.frames import Frame
from optiinfra.portal_api.live.hub import Hub

PING_S = 20.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame as text; `sequence` is that of an event, None for all other frames."""

    text: str
    sequence: int | None = None


Together = Sequence[Sent]
"""What is to be sent at once."""


class Reading:
    """Gives one tenant's frames after `after` (None: from now on), then waits for more."""

    def __init__(self, hub: Hub, tenant: str, after: int | None, *, ping_s: float = PING_S) -> None:
        self._hub = hub
        self._tenant = tenant
        self._after = after
        self._ping_s = ping_s
        self._prev = 0

    async def frames(self) -> AsyncGenerator[Together, None]:
        """For ever. Raises `Restarting` when the client has to connect again, `Unavailable`
        when the broker cannot say where the stream stands.
        """
        state = await self._hub.state()
        while self._hub.epoch is None:
            await self._changed(self._hub.changed)
        yield (Sent(frames.hello(state)),)
        cursor = self._prev = state.last if self._after is None else self._after
        if cursor > state.last:
            yield (Sent(frames.gap(state.last + 1, cursor)),)
            cursor = self._prev = state.last
        async with aclosing(self._from(cursor, state.epoch)) as rest:
            async for together in rest:
                yield together

    async def _from(self, cursor: int, epoch: str) -> AsyncGenerator[Together, None]:
        while True:
            self._hub.require(epoch)
            changed = self._hub.changed
            if cursor < self._hub.floor:
                async with aclosing(self._catch_up(cursor)) as older:
                    async for reached, sent in older:
                        cursor = reached
                        yield (sent,)
            elif chunk := self._hub.after(cursor):
                cursor = chunk[-1].sequence
                if mine := self._mine(chunk):
                    yield mine
            elif not await self._changed(changed):
                yield (Sent(frames.ping(self._hub.head)),)

    async def _catch_up(self, cursor: int) -> AsyncGenerator[tuple[int, Sent], None]:
        """From the broker until the ring is met; each frame with where it leaves the cursor."""
        async with self._hub.catch_ups:
            oldest = (await self._hub.state()).oldest
            if cursor + 1 < oldest:
                yield oldest - 1, Sent(frames.gap(cursor + 1, oldest - 1))
                cursor = self._prev = oldest - 1
            async with aclosing(self._hub.replay(cursor)) as older:
                async for frame in older:
                    cursor = frame.sequence
                    for sent in self._mine((frame,)):
                        yield cursor, sent
            yield cursor, Sent(frames.ping(self._hub.head))

    def _mine(self, batch: Sequence[Frame]) -> list[Sent]:
        mine = []
        for frame in batch:
            if frame.tenant == self._tenant:
                mine.append(Sent(frame.text(self._prev), frame.sequence))
                self._prev = frame.sequence
        return mine

    async def _changed(self, changed: asyncio.Event) -> bool:
        """Whether something came within the time after which a sign of life is due."""
        try:
            async with asyncio.timeout(self._ping_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True
