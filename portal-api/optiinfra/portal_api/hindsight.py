"""The recorded log read again: by the coordinator's own logic, which this room is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.hindsight import Standing, WhatIf
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.replays import Chain

BUSY_S = 10.0
"""Who has waited so long for another's reading is told to come again."""

MOST_WAITS = 10_000
"""So many timers of its own may fire in a run: each change that waits looks again and again."""


class Hindsight(Protocol):
    """What is needed of whoever can fold and decide; it computes, and asks nobody."""

    def standings(self, events: Iterable[Mapping[str, Any]]) -> Iterator[Standing | None]: ...
    def what_if(self, links: Sequence[Link], rules: Rules, most_waits: int) -> WhatIf: ...


class Reading:
    """One reading at a time, in a thread, so that nobody else has to wait for it."""

    def __init__(self, hindsight: Hindsight | None) -> None:
        self._hindsight = hindsight
        self._free = asyncio.Lock()

    async def standings(self, chains: Sequence[Chain]) -> list[list[Standing | None]]:
        """How each change stood after each of its events. Raises `Unavailable`."""
        hindsight = self._given()

        def fold() -> list[list[Standing | None]]:
            return [list(hindsight.standings(chain.events)) for chain in chains]

        async with self._turn():
            return await asyncio.to_thread(fold)

    async def what_if(self, links: Sequence[Link], rules: Rules) -> WhatIf:
        """Raises `Unavailable`, and `Rejected` where the run would not come to an end soon."""
        hindsight = self._given()
        async with self._turn():
            return await asyncio.to_thread(hindsight.what_if, links, rules, MOST_WAITS)

    def _given(self) -> Hindsight:
        if self._hindsight is None:
            raise Unavailable("this API cannot read the log again", hint="run it by `optiinfra`")
        return self._hindsight

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(BUSY_S):
                await self._free.acquire()
        except TimeoutError as busy:
            raise Unavailable("another reading of the log is under way") from busy
        try:
            yield
        finally:
            self._free.release()
