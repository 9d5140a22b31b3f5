"""One client's way through the stream: a cursor, no queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from optiinfra.portal_api.live import frames
from optiinfra.portal_api.live.frames import Sent, Together
from optiinfra.portal_api.live.hub import Hub

PING_S = 20.0


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
            await self._hub.changed.wait()
        yield Together.of(Sent(frames.hello(state)))
        cursor = self._prev = state.last if self._after is None else self._after
        if cursor > state.last:
            yield Together.of(Sent(frames.gap(state.last + 1, cursor)))
            cursor = self._prev = state.last
        async with aclosing(self._from(cursor, state.epoch)) as rest:
            async for together in rest:
                yield together

    async def _from(self, cursor: int, epoch: str) -> AsyncGenerator[Together, None]:
        clock = asyncio.get_running_loop().time
        spoke_at = clock()
        while True:
            self._hub.require(epoch)
            changed = self._hub.changed
            if cursor < self._hub.floor:
                async with aclosing(self._catch_up(cursor)) as older:
                    async for reached, sent in older:
                        cursor, spoke_at = reached, clock()
                        yield Together.of(sent)
            elif (step := self._hub.step(self._tenant, self._prev, cursor)) is not None:
                cursor, self._prev = step.cursor, step.prev
                if step.together is not None:
                    spoke_at = clock()
                    yield step.together
            elif clock() - spoke_at >= self._ping_s:
                spoke_at = clock()
                yield Together.of(Sent(frames.ping(self._hub.head)))
            else:
                await changed.wait()

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
                    if frame.tenant == self._tenant:
                        yield cursor, Sent(frame.text(self._prev), cursor)
                        self._prev = cursor
            yield cursor, Sent(frames.ping(self._hub.head))
