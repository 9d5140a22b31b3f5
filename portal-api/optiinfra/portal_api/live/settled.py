"""Up to which sequence of the stream a snapshot from the database is known to be complete."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from optiinfra.portal_api.live.hub import Hub

GIVEN_UP_AFTER = timedelta(seconds=30)
"""An event that is not in the log by then has gone to the dead letters."""
ASK_EVERY_S = 0.1
"""While events wait to be written down, the log is asked no more often than that, s."""


class Logged(Protocol):
    """What is needed of the log."""

    async def logged(self, event_ids: Iterable[str]) -> set[str]: ...


def _now() -> datetime:
    return datetime.now(UTC)


class Settled:
    """The highest sequence up to which every event has been taken into the database.

    An event is on the stream before the coordinator has written it down, so a snapshot is not
    complete up to the stream's head. A client that opens the stream after this sequence misses
    nothing; at worst it sees again what the snapshot has already. So an answer that is a little
    old is as true as a new one, and the log is asked only when something new was said.
    """

    def __init__(
        self,
        hub: Hub,
        log: Logged,
        clock: Callable[[], datetime] = _now,
        *,
        elapsed: Callable[[], float] = time.monotonic,
        ask_every_s: float = ASK_EVERY_S,
    ) -> None:
        self._hub = hub
        self._log = log
        self._clock = clock
        self._elapsed = elapsed
        self._ask_every_s = ask_every_s
        self._asked_at = -math.inf
        self._epoch: str | None = None
        self._sequence = 0

    async def sequence(self) -> int:
        """Ask it before the snapshot is read."""
        if self._epoch != self._hub.epoch:
            self._epoch, self._sequence = self._hub.epoch, self._hub.floor
        self._sequence = max(self._sequence, self._hub.floor)
        now = self._elapsed()
        if self._sequence >= self._hub.head or now - self._asked_at < self._ask_every_s:
            return self._sequence
        self._asked_at = now
        return await self._ask()

    async def _ask(self) -> int:
        epoch, waiting = self._epoch, self._hub.after(self._sequence)
        written = await self._log.logged(frame.event_id for frame in waiting)
        if epoch != self._hub.epoch:
            return self._hub.floor
        too_old = self._clock() - GIVEN_UP_AFTER
        for frame in waiting:
            if frame.event_id not in written and frame.at > too_old:
                return self._sequence
            self._sequence = max(self._sequence, frame.sequence)
        self._asked_at = -math.inf
        return self._sequence
