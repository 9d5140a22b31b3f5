"""The ordered feed of one stream: every message once, in order, from any sequence, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime

from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import FetchTimeoutError

from optiinfra.events.bus import Bus
from optiinfra.events.refusals import BROKER_ERRORS
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import Conflict, Unavailable

BATCH = 256
POLL_S = 5.0
HEARTBEAT_S = 1.0
"""How often the server says that it is still there while nothing happens, s."""
RETRY_S = 0.2
IDLE_CONSUMER_S = 30.0


@dataclass(frozen=True, slots=True)
class StreamState:
    """`epoch` is when the stream was made: another epoch means that sequences began anew."""

    epoch: str
    first: int
    last: int

    @property
    def oldest(self) -> int:
        """The first sequence that can still be had (`last` + 1 when there is none)."""
        return max(self.first, 1)


@dataclass(frozen=True, slots=True)
class Delivered:
    """One message as it came: the envelope is in `headers`, the fact is `body`."""

    sequence: int
    subject: str
    headers: dict[str, str]
    body: bytes
    at: datetime


class Feed:
    """Reads a stream without leaving anything behind on the server but a short-lived consumer."""

    def __init__(self, bus: Bus, stream: Stream = Stream.CHANGES) -> None:
        self._bus = bus
        self._stream = stream.value

    async def state(self) -> StreamState:
        """Where the stream stands. Raises `Unavailable` without broker or stream."""
        return await self._bus.ask(self._state, f"cannot read stream {self._stream}")

    async def _state(self) -> StreamState:
        info = await self._bus.js.stream_info(self._stream)
        created = info.created
        epoch = created.isoformat() if isinstance(created, datetime) else str(created)
        return StreamState(epoch, info.state.first_seq, info.state.last_seq)

    async def follow(self, after: int) -> AsyncGenerator[list[Delivered], None]:
        """Batches of everything after sequence `after`, in order, each message once.

        Lasts for ever: a lost broker or consumer is waited for and taken up where it was left.
        A batch may be empty: a sign that the feed is in touch with the broker. Raises
        `Conflict` when the stream was made anew or fell back behind what was read (sequences
        begin again, so no position holds), `Unavailable` when the connection was closed for good.
        """
        cursor, epoch = after, None
        while True:
            try:
                state = await self._state()
                if (epoch or state.epoch) != state.epoch or state.last < cursor:
                    raise Conflict(f"stream {self._stream} is not the one that was followed")
                epoch = state.epoch
                async with aclosing(self._consume(cursor)) as batches:
                    async for batch in batches:
                        cursor = batch[-1].sequence if batch else cursor
                        yield batch
            except ConnectionClosedError as closed:
                raise Unavailable("the connection to the bus is closed") from closed
            except BROKER_ERRORS:
                await asyncio.sleep(RETRY_S)

    async def _consume(self, after: int) -> AsyncGenerator[list[Delivered], None]:
        """One consumer's life; ends (or raises) as soon as a message may have been missed."""
        subscription = await self._bus.js.pull_subscribe(
            "", stream=self._stream, config=_ordered_from(after + 1)
        )
        expected = 1
        try:
            while True:
                try:
                    async with self._bus.attempt(POLL_S + HEARTBEAT_S):
                        batch = await subscription.fetch(
                            BATCH, timeout=POLL_S, heartbeat=HEARTBEAT_S
                        )
                except FetchTimeoutError:
                    batch = []
                numbers = [message.metadata.sequence.consumer for message in batch]
                if numbers != list(range(expected, expected + len(batch))):
                    return
                expected += len(batch)
                yield [_delivered(message) for message in batch]
        finally:
            await self._drop(subscription)

    async def _drop(self, subscription: JetStreamContext.PullSubscription) -> None:
        """Takes the consumer away; one that cannot be reached goes by itself."""
        with suppress(*BROKER_ERRORS):
            await subscription.unsubscribe()


def _ordered_from(sequence: int) -> ConsumerConfig:
    return ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=sequence,
        ack_policy=AckPolicy.NONE,
        mem_storage=True,
        num_replicas=1,
        inactive_threshold=IDLE_CONSUMER_S,
    )


def _delivered(message: Msg) -> Delivered:
    return Delivered(
        sequence=message.metadata.sequence.stream,
        subject=message.subject,
        headers=dict(message.headers or {}),
        body=message.data,
        at=message.metadata.timestamp,
    )
