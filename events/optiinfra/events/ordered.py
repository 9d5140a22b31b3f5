"""Reads a stream in order, each event once, over restarts of the broker; leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime

from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamInfo

from optiinfra.events.bus import Bus
from optiinfra.events.delivery import Delivery, delivery_of
from optiinfra.events.pull import Ended, Pull
from optiinfra.events.refusals import BROKER_ERRORS
from optiinfra.events.subjects import Stream
from optiinfra.events.verdicts import backoff_s
from optiinfra.schemas.errors import Conflict, Unavailable

log = logging.getLogger("optiinfra.events.ordered")

BATCH = 256
OVERLAP = 1000
"""How many sequences are read again after a reconnection; known events among them are left out.

A broker that lost its tail gives the lost sequences to other events: those are found so.
"""
REMEMBERED = 4 * OVERLAP
IDLE_CONSUMER_S = 60.0
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin: after a sequence, or at a time; after neither, with what comes from now."""

    after: int | None = None
    at: datetime | None = None


class OrderedReader:
    """One reader of one stream. `deliveries` may be iterated once."""

    def __init__(
        self, bus: Bus, stream: Stream, filters: tuple[str, ...], start: Start, *, overlap: int = 0
    ) -> None:
        self._bus = bus
        self._stream = stream.value
        self._filters = filters
        self._start = start
        self._first_overlap = overlap
        self._cursor: int | None = None
        self._created: datetime | None = None
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._incoming: asyncio.Queue[Delivery | None] = asyncio.Queue()
        self._wanted = asyncio.Event()
        self._failures = 0

    async def deliveries(self) -> AsyncGenerator[Delivery, None]:
        """Every message, in order, each event once; never ends by itself.

        Raises `Conflict` when the stream was made anew or no longer keeps what comes next, and
        `Unavailable` when the connection is closed, or the stream stays away for 10 s.
        """
        trouble_since_s: float | None = None
        while True:
            try:
                async with contextlib.aclosing(self._one_consumer()) as deliveries:
                    async for delivery in deliveries:
                        trouble_since_s = None
                        if self._is_new(delivery):
                            yield delivery
            except Unavailable as failed:
                now_s = asyncio.get_running_loop().time()
                trouble_since_s = trouble_since_s or now_s
                lasted = now_s - trouble_since_s > PATIENCE_S
                if self._bus.is_closed or (self._bus.is_connected and lasted):
                    raise
                log.warning("reading %s: %s", self._stream, failed)
            self._failures += 1
            await self._bus.connected(5.0)
            await asyncio.sleep(backoff_s(self._failures, 0.02, 2.0))

    async def _one_consumer(self) -> AsyncGenerator[Delivery, None]:
        """The life of one consumer on the broker; ends as soon as a message may be missing."""
        name = await self._create()
        self._incoming = asyncio.Queue()
        pull = Pull(self._bus, self._stream, name, self._take)
        await pull.open()
        drawing = asyncio.create_task(self._draw(pull))
        expected = 1
        try:
            while (delivery := await self._incoming.get()) is not None:
                if delivery.position != expected:
                    log.warning("reading %s: a gap, reading again", self._stream)
                    return
                expected += 1
                if self._incoming.qsize() < BATCH // 2:
                    self._wanted.set()
                yield delivery
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})
            await pull.close()
            await self._delete(name)

    async def _delete(self, name: str) -> None:
        """A consumer that cannot be reached goes by itself."""
        if self._bus.is_connected:
            with contextlib.suppress(*BROKER_ERRORS):
                async with asyncio.timeout(1.0):
                    await self._bus.js.delete_consumer(self._stream, name)

    def _take(self, message: Msg) -> None:
        self._failures = 0
        self._incoming.put_nowait(delivery_of(message, 0.0))

    async def _draw(self, pull: Pull) -> None:
        while True:
            while self._incoming.qsize() >= BATCH // 2:
                self._wanted.clear()
                await self._wanted.wait()
            if await pull.request(BATCH) in (Ended.REFUSED, Ended.LOST):
                self._incoming.put_nowait(None)
                return

    async def _create(self) -> str:
        info = await self._bus.ask(
            lambda: self._bus.js.stream_info(self._stream), f"cannot look at {self._stream}"
        )
        if self._created not in (None, info.created):
            raise Conflict(
                f"the stream {self._stream} was made anew: its sequences begin again",
                hint="subscribe again, from a time or from the beginning",
            )
        self._created = info.created
        # A name of our own: one that the broker chooses is asked for on a subject that would let
        # whoever may use it rewrite other consumers, too.
        config = self._starting(info).evolve(
            name=f"reader-{secrets.token_hex(8)}",
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=IDLE_CONSUMER_S,
            filter_subjects=list(self._filters) or None,
        )
        made = await self._bus.ask(
            lambda: self._bus.js.add_consumer(self._stream, config), f"cannot read {self._stream}"
        )
        return made.name

    def _starting(self, info: StreamInfo) -> ConsumerConfig:
        if self._cursor is None and self._start.at is not None:
            return ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=self._start.at
            )
        overlap = self._first_overlap if self._cursor is None else OVERLAP
        if self._cursor is None:
            after = self._start.after
            self._cursor = info.state.last_seq if after is None else after
        if 0 < self._cursor < info.state.first_seq - 1:
            raise Conflict(
                f"{self._stream} no longer keeps what follows {self._cursor}: "
                f"it begins at {info.state.first_seq}",
                hint="subscribe from a time or from the beginning, and fetch the state anew",
            )
        after = min(self._cursor, info.state.last_seq) - overlap
        return ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=max(after, 0) + 1
        )

    def _is_new(self, delivery: Delivery) -> bool:
        headers = delivery.message.headers or {}
        name = headers.get("ce-id") or f"{delivery.sequence}@{delivery.stored_ns}"
        self._cursor = max(self._cursor or 0, delivery.sequence)
        if name in self._seen:
            return False
        self._seen[name] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return True
