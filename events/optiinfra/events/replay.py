"""Reads a range of a stream back, in order: for audits, replays and late readers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from datetime import datetime

from optiinfra.events.bus import Bus
from optiinfra.events.delivery import Delivery
from optiinfra.events.envelope import Event, decode
from optiinfra.events.facts import change_of
from optiinfra.events.ordered import OrderedReader, Start
from optiinfra.events.subjects import Stream
from optiinfra.events.topology import kept, last_sequence
from optiinfra.schemas.errors import Rejected, Unavailable

MIRROR_PATIENCE_S = 10.0


async def replay(
    bus: Bus,
    *,
    stream: Stream = Stream.CHANGES_REPLAY,
    after: int = 0,
    since: datetime | None = None,
    until: int | None = None,
    change: str | None = None,
    unreadable: Callable[[int, Rejected], None] | None = None,
) -> AsyncGenerator[tuple[int, Event], None]:
    """(sequence, event) of everything after sequence `after` or from time `since` on.

    Ends at sequence `until`, without it at what CHANGES ends with when the replay begins; `change`
    leaves out the events of other changes. Raises `Unavailable` when the mirror stays behind,
    `Rejected` for a message that is no event (unless `unreadable` is there to be told of it),
    `Conflict` as `OrderedReader` does.
    """
    origin = Stream.CHANGES if stream is Stream.CHANGES_REPLAY else stream
    bounds = await kept(bus, origin)
    end = min(bounds.last, until) if until is not None else bounds.last
    if stream is not origin:
        await _caught_up(bus, stream, end)
    if (
        end <= after
        or end < bounds.first
        or (since is not None and not await _has_since(bus, stream, since))
    ):
        return
    reader = OrderedReader(bus, stream, (), Start(at=since) if since else Start(after=after))
    async with contextlib.aclosing(reader.deliveries()) as deliveries:
        async for delivery in deliveries:
            if delivery.sequence > end:
                return
            event = _event_of(delivery, unreadable)
            if event is not None and (change is None or change_of(event.fact) == change):
                yield delivery.sequence, event
            if delivery.sequence == end:
                return


def _event_of(
    delivery: Delivery, unreadable: Callable[[int, Rejected], None] | None
) -> Event | None:
    message = delivery.message
    try:
        return decode(message.subject, message.headers, message.data)
    except Rejected as why:
        if unreadable is None:
            raise
        unreadable(delivery.sequence, why)
        return None


async def _caught_up(bus: Bus, mirror: Stream, end: int) -> None:
    """Waits until the mirror has sequence `end`."""
    loop = asyncio.get_running_loop()
    deadline, delay_s = loop.time() + MIRROR_PATIENCE_S, 0.01
    while (reached := await last_sequence(bus, mirror)) < end:
        if loop.time() > deadline:
            raise Unavailable(
                f"{mirror} has {reached} of {end}", hint="replay from CHANGES, mend the mirror"
            )
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, 0.5)


async def _has_since(bus: Bus, stream: Stream, since: datetime) -> bool:
    info = await bus.ask(lambda: bus.js.stream_info(stream.value), f"cannot look at {stream}")
    last = await bus.ask(
        lambda: bus.js.get_msg(stream.value, info.state.last_seq), f"cannot read {stream}"
    )
    return last.time is not None and last.time >= since
