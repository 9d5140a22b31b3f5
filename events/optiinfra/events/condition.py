"""What the broker says of itself: how full its streams are, how far consumers are, its clock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from nats.js.api import ConsumerInfo, DiscardPolicy, StreamInfo
from nats.js.errors import NotFoundError

from optiinfra.events.bus import CALL_TIMEOUT_S, Bus
from optiinfra.events.subjects import Stream

_GIVEN_UP = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>"


@dataclass(frozen=True, slots=True)
class StreamCondition:
    """How full a stream is, bytes; one that `refuses` takes nothing more when it is full."""

    stream: Stream
    held: int
    room: int
    refuses: bool
    mirror_lag: int
    """How many messages a mirror is behind; 0 for a stream that is none."""


@dataclass(frozen=True, slots=True)
class ConsumerCondition:
    """Where a consumer stands."""

    stream: Stream
    name: str
    durable: bool
    waiting: int
    """Messages that nobody has been given yet."""
    in_hand: int
    """Messages that were given out and are not acknowledged."""
    redelivered: int
    """Those of them that were given out more than once."""
    listeners: int
    """Requests for messages that stand at the broker."""
    delivered: int
    """How many deliveries there were; grows while anybody works."""
    acked_to: int
    """The sequence up to which everything is acknowledged."""


async def stream_condition(bus: Bus, stream: Stream) -> StreamCondition | None:
    """How full a stream is; None when there is no such stream.

    Raises `Unavailable` when the broker does not answer, `Denied` when it does not allow it.
    """
    info = await _stream(bus, stream)
    if info is None:
        return None
    return StreamCondition(
        stream=stream,
        held=info.state.bytes,
        room=info.config.max_bytes or -1,
        refuses=info.config.discard == DiscardPolicy.NEW,
        mirror_lag=(info.mirror.lag or 0) if info.mirror else 0,
    )


async def consumer_conditions(bus: Bus, stream: Stream) -> list[ConsumerCondition]:
    """All consumers of a stream by name; none for a stream that is missing. Raises as above."""
    found: dict[str, ConsumerInfo] = {}
    while True:
        offset = len(found)

        async def look(offset: int = offset) -> list[ConsumerInfo]:
            try:
                return await bus.js.consumers_info(stream.value, offset)
            except NotFoundError:
                return []

        page = await bus.ask(look, f"cannot look at the consumers of {stream}")
        found |= {one.name: one for one in page}
        if len(found) == offset:
            return [_consumer(stream, found[name]) for name in sorted(found)]


async def consumer_condition(bus: Bus, stream: Stream, name: str) -> ConsumerCondition | None:
    """One consumer; None when there is no such one. Raises as above."""

    async def look() -> ConsumerInfo | None:
        try:
            found: ConsumerInfo = await bus.js.consumer_info(stream.value, name)
            return found
        except NotFoundError:
            return None

    info = await bus.ask(look, f"cannot look at the consumer {name} of {stream}")
    return None if info is None else _consumer(stream, info)


async def given_up(bus: Bus) -> dict[str, int]:
    """How many messages the broker gave up for each consumer; `dlq` knows nothing of these."""
    info = await _stream(bus, Stream.ADVISORY, _GIVEN_UP)
    subjects = (info.state.subjects if info else None) or {}
    return {subject.rsplit(".", 1)[-1]: count for subject, count in sorted(subjects.items())}


async def broker_clock(bus: Bus) -> datetime | None:
    """The broker's time; None when it does not tell it."""

    async def look() -> bytes:
        request = f"$JS.API.STREAM.INFO.{Stream.CHANGES}"
        answer = await bus.client.request(request, b"", timeout=CALL_TIMEOUT_S)
        return answer.data

    told = json.loads(await bus.ask(look, "cannot ask the broker for its time")).get("ts")
    return datetime.fromisoformat(told) if told else None


async def _stream(bus: Bus, stream: Stream, subjects: str | None = None) -> StreamInfo | None:
    async def look() -> StreamInfo | None:
        try:
            return await bus.js.stream_info(stream.value, subjects)
        except NotFoundError:
            return None

    return await bus.ask(look, f"cannot look at the stream {stream}")


def _consumer(stream: Stream, info: ConsumerInfo) -> ConsumerCondition:
    return ConsumerCondition(
        stream=stream,
        name=info.name,
        durable=info.config.durable_name is not None,
        waiting=info.num_pending or 0,
        in_hand=info.num_ack_pending or 0,
        redelivered=info.num_redelivered or 0,
        listeners=info.num_waiting or 0,
        delivered=info.delivered.consumer_seq if info.delivered else 0,
        acked_to=info.ack_floor.stream_seq if info.ack_floor else 0,
    )
