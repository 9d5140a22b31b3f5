"""Says on the bus what was committed, while the next batch is being decided."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from optiinfra.events.envelope import Event
from optiinfra.events.facts import TimerSet
from optiinfra.schemas.errors import OptiInfraError, Unavailable
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.outbox import mark_sent

log = structlog.get_logger()

CrashPoint = Callable[[str], None]
"""Called at named points; tests kill the process there. Does nothing otherwise."""

SPEAKERS = 4
WAITING_BATCHES = 64
MARK_EVERY_S = 0.1
SOON_S = 5.0
"""A timer that is due within this is handed to the broker at once; later ones by the relay, if
they still stand then: most are void within a second."""


class Publishes(Protocol):
    """What is needed of the bus."""

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]: ...


class Outlet:
    """Everything said stands in the outbox already: what is not said here, the relay says.

    `say` speaks and marks at once. While `run` runs, `take` hands over and returns; it waits when
    `WAITING_BATCHES` batches have not been said yet.
    """

    def __init__(
        self,
        database: Database,
        publisher: Publishes,
        *,
        crash_point: CrashPoint = lambda _name: None,
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._crash_point = crash_point
        self._waiting: asyncio.Queue[list[Event]] = asyncio.Queue(WAITING_BATCHES)
        self._sent: dict[str, int] = {}
        self._has_sent = asyncio.Event()
        self._running = False

    async def run(self) -> None:
        """Speaks until it is cancelled."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(SPEAKERS):
                    group.create_task(self._speak(), name=f"outlet-{number}")
                group.create_task(self._mark_now_and_then(), name="outlet-marks")
        finally:
            self._running = False

    async def take(self, said: Sequence[Event]) -> None:
        """Has it said soon while `run` runs, else now."""
        due = [event for event in said if is_due_soon(event)]
        if due and self._running:
            await self._waiting.put(due)
        elif due:
            await self._publish(due)
            await self._mark()

    async def _speak(self) -> None:
        while True:
            said = await self._waiting.get()
            while not self._waiting.empty() and len(said) < WAITING_BATCHES:
                said = said + self._waiting.get_nowait()
            await self._publish(said)

    async def _publish(self, said: Sequence[Event]) -> None:
        """What cannot be published now stays in the outbox, where the relay finds it."""
        results = await self._publisher.publish_many(said)
        self._crash_point("published")
        sent = {
            event.id: result
            for event, result in zip(said, results, strict=True)
            if isinstance(result, int)
        }
        if len(sent) < len(said):
            log.warning("outbox.left_to_relay", unsent=len(said) - len(sent))
        self._sent |= sent
        if sent:
            self._has_sent.set()

    async def _mark_now_and_then(self) -> None:
        """Many acknowledgements in one statement; what is not marked is published once more."""
        while True:
            await self._has_sent.wait()
            await asyncio.sleep(MARK_EVERY_S)
            await self._mark()

    async def _mark(self) -> None:
        sent, self._sent = self._sent, {}
        self._has_sent.clear()
        try:
            await mark_sent(self._database, sent)
        except Unavailable as lost:
            log.warning("outbox.not_marked", reason=str(lost), sent=len(sent))
        self._crash_point("marked")


def is_due_soon(event: Event) -> bool:
    """Whether it is to be said at once: everything but timers that are far off."""
    fact = event.fact
    return not isinstance(fact, TimerSet) or (fact.fire_at - event.time).total_seconds() < SOON_S
