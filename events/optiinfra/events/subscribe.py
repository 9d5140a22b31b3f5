"""The kit for downstream systems: subscribe to events with only pydantic and nats-py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from optiinfra.events.bus import Bus, Credentials
from optiinfra.events.delivery import Delivery, Key, delivery_of
from optiinfra.events.durable import Durable, DurableSpec
from optiinfra.events.envelope import Event
from optiinfra.events.newer import decode_newer
from optiinfra.events.ordered import OrderedReader, Start
from optiinfra.events.patterns import filters_for
from optiinfra.events.pull import Ended, Pull
from optiinfra.events.refusals import BROKER_ERRORS
from optiinfra.events.subjects import Stream
from optiinfra.events.verdicts import backoff_s
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.ids import token

log = logging.getLogger("optiinfra.events.subscribe")

DEFAULT_SUBJECTS = (
    "recommendation.*",
    "vote.*",
    "approval.*",
    "change.*",
    "conflict.*",
    "execution.*",
    "rollback.*",
    "gate.*",
    "quality.*",
    "outcome.*",
)
BATCH = 64
ACK_WAIT_S = 30.0
BEAT_S = 5.0
ACK_GIVE_UP_S = 30.0
PATIENCE_S = 10.0
REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Received:
    """One event with its place in the stream. `ack` it once it is dealt with."""

    event: Event
    sequence: int
    _ack: Callable[[], Awaitable[None]]

    async def ack(self) -> None:
        """Confirms it, for a durable subscription; else does nothing.

        Returns once the broker has confirmed. Raises `Unavailable` when it has not for 30 s.
        """
        await self._ack()


async def subscribe(
    url: str,
    *,
    subjects: tuple[str, ...] = DEFAULT_SUBJECTS,
    tenant: str | None = None,
    durable: str | None = None,
    since_sequence: int | None = None,
    since_time: datetime | None = None,
    credentials: Credentials | None = None,
) -> AsyncGenerator[Received, None]:
    """Events as they are said, from one stream, for ever; restarts of the broker are outlasted.

    `subjects` are prefixes (`change.*`, `vote.cast`) or whole patterns; `tenant` narrows them.
    With `durable` the broker remembers under that name what was acknowledged: after a restart of
    the subscriber it goes on there, and what was not acknowledged comes again after 30 s.
    Without, the subscriber remembers: `since_sequence` is the last sequence that it has (0: from
    the beginning), `since_time` a time, neither means from now on; each event comes once and in
    order. With `durable` they say where a new name begins (from the beginning without).

    Raises `Rejected` for unknown subjects; `Unavailable` when the broker does not answer at the
    start; `Conflict` when the stream was made anew or no longer keeps what comes next. An event of
    a kind that this version does not know is logged and left out; of one that it knows, fields
    that a newer release has added are.
    """
    stream, filters = filters_for(subjects, tenant)
    if since_sequence is not None and since_time is not None:
        raise Rejected("give since_sequence or since_time, not both")
    start = Start(since_sequence, since_time)
    name = token(durable) if durable is not None else None
    bus = await Bus.connect(url, name=name or "optiinfra-subscriber", credentials=credentials)
    try:
        if name is None:
            source = _ordered(OrderedReader(bus, stream, filters, start))
        else:
            source = DurableReader(bus, stream, filters, name, start).received()
        async with contextlib.aclosing(source) as received:
            async for one in received:
                yield one
    finally:
        await bus.close()


async def _ordered(reader: OrderedReader) -> AsyncGenerator[Received, None]:
    async with contextlib.aclosing(reader.deliveries()) as deliveries:
        async for delivery in deliveries:
            event = _read(delivery)
            if event is not None:
                yield Received(event, delivery.sequence, _nothing)


async def _nothing() -> None:
    return


def _read(delivery: Delivery) -> Event | None:
    message = delivery.message
    try:
        return decode_newer(message.subject, message.headers, message.data)
    except Rejected as unknown:
        log.warning("%s #%d is left out: %s", message.subject, delivery.sequence, unknown)
        return None


class DurableReader:
    """Reads through a durable consumer, one message at a time, with confirmed acknowledgements."""

    def __init__(
        self, bus: Bus, stream: Stream, filters: tuple[str, ...], name: str, start: Start
    ) -> None:
        self._bus = bus
        spec = DurableSpec(
            name=name,
            stream=stream.value,
            filters=filters,
            ack_wait_s=ACK_WAIT_S,
            max_deliver=-1,
            max_ack_pending=1024,
            first=_first(start),
        )
        self._durable = Durable(bus, spec)
        self._pull = Pull(bus, stream.value, name, self._take)
        self._incoming: asyncio.Queue[Delivery] = asyncio.Queue()
        self._held: dict[Key, Delivery] = {}
        self._acked: OrderedDict[Key, None] = OrderedDict()
        self._wanted = asyncio.Event()

    async def received(self) -> AsyncGenerator[Received, None]:
        """As `subscribe` says."""
        await self._durable.attach()
        await self._pull.open()
        helpers = [asyncio.create_task(one()) for one in (self._draw, self._beat)]
        try:
            while True:
                delivery = await self._next(helpers)
                event = None if delivery.key in self._acked else _read(delivery)
                if event is None:
                    await self._confirm(delivery)
                else:
                    yield Received(event, delivery.sequence, lambda d=delivery: self._confirm(d))  # type: ignore[misc]
                self._held.pop(delivery.key, None)
        finally:
            await self._end(helpers)

    async def _next(self, helpers: list[asyncio.Task[None]]) -> Delivery:
        if self._incoming.empty():
            getting = asyncio.ensure_future(self._incoming.get())
            try:
                await asyncio.wait([getting, *helpers], return_when=asyncio.FIRST_COMPLETED)
                for task in helpers:
                    if task.done():
                        task.result()
                delivery = await getting
            finally:
                getting.cancel()
        else:
            delivery = self._incoming.get_nowait()
        if self._incoming.qsize() < BATCH // 2:
            self._wanted.set()
        return delivery

    async def _end(self, helpers: list[asyncio.Task[None]]) -> None:
        for task in helpers:
            task.cancel()
        await asyncio.wait(helpers)
        await self._pull.close()
        for key, delivery in self._held.items():
            message = delivery.message
            with contextlib.suppress(*BROKER_ERRORS):
                await (message.ack() if key in self._acked else message.nak())

    def _take(self, message: Msg) -> None:
        delivery = delivery_of(message, 0.0)
        known = self._held.get(delivery.key)
        if known is not None:
            known.message = message
            return
        self._held[delivery.key] = delivery
        self._incoming.put_nowait(delivery)

    async def _confirm(self, delivery: Delivery) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ACK_GIVE_UP_S
        while not delivery.message.is_acked:
            try:
                await self._bus.ask(
                    lambda: delivery.message.ack_sync(5.0), "cannot acknowledge", timeout_s=5.0
                )
            except Unavailable:
                if self._bus.is_closed or loop.time() > deadline:
                    raise
                await self._bus.connected(1.0)
                await asyncio.sleep(0.05)
        self._held.pop(delivery.key, None)
        self._acked[delivery.key] = None
        if len(self._acked) > REMEMBERED:
            self._acked.popitem(last=False)

    async def _beat(self) -> None:
        """Keeps what waits here from being delivered again, and learns how far the broker is."""
        while True:
            await asyncio.sleep(BEAT_S)
            for delivery in tuple(self._held.values()):
                with contextlib.suppress(*BROKER_ERRORS):
                    await delivery.message.in_progress()
            with contextlib.suppress(Unavailable):
                await self._durable.look()

    async def _draw(self) -> None:
        failures, trouble_since_s = 0, None
        while True:
            while self._incoming.qsize() >= BATCH // 2:
                self._wanted.clear()
                await self._wanted.wait()
            ended = await self._pull.request(BATCH)
            failures = 0 if self._pull.heard else failures + 1
            if ended in (Ended.FILLED, Ended.EXPIRED):
                trouble_since_s = None
                continue
            trouble_since_s = await self._heal(trouble_since_s)
            await asyncio.sleep(backoff_s(failures, 0.05, 2.0))

    async def _heal(self, since_s: float | None) -> float | None:
        """Sees to it that the consumer exists; gives since when it could not be seen to."""
        if self._bus.is_closed:
            raise Unavailable("the connection is closed")
        if not await self._bus.connected(5.0):
            return None
        try:
            await self._durable.attach()
        except Unavailable:
            now_s = asyncio.get_running_loop().time()
            if now_s - (since_s or now_s) > PATIENCE_S:
                raise
            return since_s or now_s
        return None


def _first(start: Start) -> ConsumerConfig:
    if start.at is not None:
        return ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=start.at)
    return ConsumerConfig(
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=(start.after or 0) + 1
    )
