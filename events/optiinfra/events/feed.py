"""The ordered feed of one stream as raw messages, for who passes them on without reading them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

from optiinfra.events.bus import Bus
from optiinfra.events.delivery import Delivery
from optiinfra.events.ordered import OrderedReader, Start
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import Conflict


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
    """Reads a stream without leaving anything behind on the server."""

    def __init__(self, bus: Bus, stream: Stream = Stream.CHANGES) -> None:
        self._bus = bus
        self._stream = stream

    async def state(self) -> StreamState:
        """Where the stream stands. Raises `Unavailable` without broker or stream."""
        info = await self._bus.ask(
            lambda: self._bus.js.stream_info(self._stream.value), f"cannot look at {self._stream}"
        )
        created = info.created
        epoch = created.isoformat() if created is not None else ""
        return StreamState(epoch, info.state.first_seq, info.state.last_seq)

    async def follow(self, after: int) -> AsyncGenerator[Delivered, None]:
        """Everything after sequence `after`, in order, each message once; never ends by itself.

        Raises `Conflict` when positions hold no more (the stream was made anew, lost its tail, or
        keeps no longer what comes next), `Unavailable` when the stream stays away.
        """
        cursor = after
        reader = OrderedReader(self._bus, self._stream, (), Start(after=after))
        async with aclosing(reader.deliveries()) as deliveries:
            async for delivery in deliveries:
                if delivery.sequence <= cursor:
                    raise Conflict(f"{self._stream} has given sequence {cursor} to another event")
                cursor = delivery.sequence
                yield _delivered(delivery)


def _delivered(delivery: Delivery) -> Delivered:
    message = delivery.message
    return Delivered(
        sequence=delivery.sequence,
        subject=message.subject,
        headers=dict(message.headers or {}),
        body=message.data,
        at=datetime.fromtimestamp(delivery.stored_ns / 1e9, UTC),
    )
