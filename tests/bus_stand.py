"""What the tests of the bus share: connections, publishers, and waiting for a condition."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.envelope import Event
from optiinfra.events.facts import ChangeResumed, DeadLettered
from optiinfra.events.publish import Publisher
from optiinfra.events.replay import replay
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.ids import derived_id

_NUMBERS = itertools.count()


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return derived_id("bus-test", next(_NUMBERS), time.time_ns())


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Waits until `condition` holds; the test fails when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - many things are waited for, few have an event
            await asyncio.sleep(0.005)


async def letter_of(bus: Bus, sequence: int) -> DeadLettered:
    """What a consumer would write of a message of CHANGES that it cannot handle."""
    message = await topology.message_at(bus, Stream.CHANGES, sequence)
    assert message is not None
    headers, body = message.headers or {}, message.data or b""
    return DeadLettered(
        consumer="moody",
        subject=message.subject or "",
        stream=Stream.CHANGES,
        stream_seq=sequence,
        attempts=1,
        error="not today",
        cause="Rejected",
        event_id=headers.get("ce-id"),
        body=body.decode(),
        headers=dict(headers),
        at=now(),
    )


@dataclass
class MemoryInbox:
    """An inbox with the contract of the one in PostgreSQL."""

    ids: set[tuple[str, str]] = field(default_factory=set)
    failures: int = 0

    async def seen(self, consumer: str, event_id: str) -> bool:
        if self.failures:
            self.failures -= 1
            raise Unavailable("the database is away")
        return (consumer, event_id) in self.ids

    async def mark(self, consumer: str, event_id: str) -> None:
        self.ids.add((consumer, event_id))


@dataclass
class Stand:
    """A connection with streams and a publisher."""

    bus: Bus
    publisher: Publisher

    def facts(self, count: int, *, by: str = "test") -> list[Event]:
        """Distinct small events on CHANGES."""
        return [
            self.publisher.event(ChangeResumed(change=new_id(), by=by), tenant="acme")
            for _ in range(count)
        ]

    async def say(self, count: int, *, by: str = "test") -> list[Event]:
        events = self.facts(count, by=by)
        results = await self.publisher.publish_many(events)
        assert all(isinstance(result, int) for result in results), results
        return events

    def consumer(self, name: str, **options: Any) -> Consumer:
        """A consumer of `change.resumed`; `options` are fields of the spec or arguments."""
        arguments = {key: options.pop(key, None) for key in ("handle", "handle_batch", "inbox")}
        arguments |= {key: options.pop(key) for key in ("keep",) if key in options}
        fields = {
            "stream": Stream.CHANGES,
            "prefixes": ("change.resumed",),
            "ack_wait_s": 1.0,
            "heartbeat_s": 0.3,
            "backoff_base_s": 0.05,
            **options,
        }
        return Consumer(
            self.bus,
            ConsumerSpec(name=name, **fields),
            publisher=self.publisher,
            clock=now,
            jitter=lambda: 1.0,
            **arguments,
        )

    async def dead_letters(self) -> list[DeadLettered]:
        return [
            event.fact
            async for _, event in replay(self.bus, stream=Stream.DLQ)
            if isinstance(event.fact, DeadLettered)
        ]


@asynccontextmanager
async def stand(url: str, *, limits: topology.TopologyLimits | None = None) -> AsyncIterator[Stand]:
    """Connected, with all streams."""
    bus = await Bus.connect(url, name="test")
    try:
        await topology.apply(bus, limits=limits)
        yield Stand(bus, Publisher(bus, "test", now, new_id))
    finally:
        await bus.close()


@asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[asyncio.Task[None]]:
    """The consumer at work; cancelled and awaited at the end."""
    task = asyncio.create_task(consumer.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and not isinstance(task.exception(), Unavailable):
            task.result()
