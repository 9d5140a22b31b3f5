"""Consumes durably: every message is handled, retried, or buried with its cause; none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from nats.aio.msg import Msg

from optiinfra.events.bus import Bus
from optiinfra.events.consumer_spec import (
    Buries,
    ConsumerStats,
)
from optiinfra.events.consumer_spec import (
    ConsumerSpec as ConsumerSpec,
)
from optiinfra.events.consumer_spec import (
    Inbox as Inbox,
)
from optiinfra.events.delivery import Delivery
from optiinfra.events.durable import Durable, left_of
from optiinfra.events.envelope import Event, decode
from optiinfra.events.hand import Hand
from optiinfra.events.pull import Ended, Pull
from optiinfra.events.refusals import BROKER_ERRORS
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.events.verdicts import Verdict, backoff_s, verdict_on
from optiinfra.schemas.errors import Invariant, Rejected, Unavailable

log = logging.getLogger("optiinfra.events.consume")

Handle = Callable[[Event], Awaitable[None]]
HandleBatch = Callable[[Sequence[Any]], Awaitable[Sequence[BaseException | None]]]

PATIENCE_S = 10.0
"""How long a broker that is connected may lack the stream or JetStream before `run` gives up."""
GRACE_S = 3.0
"""How long handlers may go on after a cancellation, s."""
CANCEL_EVERY_S = 1.0
LOOK_EVERY_S = 5.0
LISTEN_LIMIT = 10_000
READ_AT_ONCE = 100
"""How many messages of a batch are read before others may run."""


class Consumer:
    """Runs one durable consumer; any number of instances may share it.

    Give either `handle` (one event; up to `spec.concurrency` at once) or `handle_batch` (up to
    `spec.batch` events, `spec.batches` at once; answers for each with None or its exception). With
    `keep`, a batch holds what that makes of each event, and the events are let go: many large ones
    take much memory, and time of the garbage collector. What a raised exception means is told in
    `verdicts`. With an `inbox`, an event that was handled before is acknowledged without being
    handled again. `jitter` gives factors about 1.
    """

    def __init__(
        self,
        bus: Bus,
        spec: ConsumerSpec,
        *,
        handle: Handle | None,
        handle_batch: HandleBatch | None,
        keep: Callable[[Event], Any] = lambda event: event,
        publisher: Buries,
        inbox: Inbox | None,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
    ) -> None:
        if (handle is None) == (handle_batch is None):
            raise Invariant(f"consumer {spec.name} needs handle or handle_batch")
        self.spec = spec
        self._bus = bus
        self._handle = handle
        self._handle_batch = handle_batch
        self._keep = keep
        self._filling = asyncio.Lock()
        self._inbox = inbox
        self._durable = Durable(bus, spec.durable())
        capacity = spec.batch if handle else (1 + spec.batches) * spec.batch
        self._hand = Hand(spec, publisher, capacity=capacity, clock=clock, jitter=jitter)
        self._pull = Pull(bus, spec.stream.value, spec.name, self._take)
        self._busy: set[asyncio.Task[None]] = set()
        self._trouble_since_s: float | None = None
        self._closing = False

    @property
    def stats(self) -> ConsumerStats:
        """Counts since the start."""
        return self._hand.stats

    def heard_until(self) -> datetime | None:
        """What was said before this time, on the broker's clock, has been handled by this instance
        or by another; None: all that was said. The beginning of time before it has heard anything.

        What others have in hand counts as handled.
        """
        until_ns = self._hand.heard_until_ns()
        return None if until_ns is None else datetime.fromtimestamp(until_ns / 1e9, UTC)

    async def run(self) -> None:
        """Goes on until cancelled; then finishes or gives back what is in hand.

        Raises `Conflict` when the durable consumer is of another kind, and `Unavailable` within
        15 s when the connection is closed or the stream is gone, for a supervisor to act on.
        """
        await self._attach()
        await self._pull.open()
        workers = self.spec.concurrency if self._handle is not None else self.spec.batches
        tasks = [asyncio.create_task(self._work()) for _ in range(workers)]
        helpers = [asyncio.create_task(one()) for one in (self._draw, self._beat, self._look)]
        try:
            done, _ = await asyncio.wait([*tasks, *helpers], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            await self._settle(tasks, helpers)

    async def _settle(
        self, workers: list[asyncio.Task[None]], helpers: list[asyncio.Task[None]]
    ) -> None:
        self._closing = True
        helpers[0].cancel()  # it draws no more
        await self._pull.close()
        for task in workers:
            if task not in self._busy:
                task.cancel()
        if self._busy:
            await asyncio.wait(tuple(self._busy), timeout=GRACE_S)
        left = {*workers, *helpers}
        while left:  # a cancellation that is lost on its way comes again
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=CANCEL_EVERY_S)
        await self._hand.give_back()

    def _take(self, message: Msg) -> None:
        self._hand.take(message)

    async def _draw(self) -> None:
        """Keeps one request for messages standing while there is room in the hand."""
        failures = 0
        while True:
            room = await self._hand.room()
            ended = await self._pull.request(room)
            failures = 0 if self._pull.heard else failures
            if ended is Ended.EXPIRED:
                self.stats.lag = 0
                self._hand.note_left(0)
                self.stats.progressed()
            elif ended is not Ended.FILLED:
                failures += 1
                await self._heal(self._pull.heard_at_s, backoff_s(failures, 0.05, 2.0))

    async def _attach(self) -> None:
        failures = 0
        while True:
            try:
                await self._durable.attach()
            except Unavailable as failed:
                failures += 1
                now_s = asyncio.get_running_loop().time()
                await self._endure(failed, now_s, backoff_s(failures, 0.05, 2.0))
            else:
                self._trouble_since_s = None
                return

    async def _heal(self, heard_at_s: float, delay_s: float) -> None:
        """Sees to it that the consumer exists; never asks more often than its delays allow."""
        if not self._bus.is_connected:
            if self._bus.is_closed:
                raise Unavailable(f"consumer {self.spec.name}: the connection is closed")
            await self._bus.connected(LOOK_EVERY_S)
            self._trouble_since_s = None
            return
        try:
            await self._durable.attach()
        except Unavailable as failed:
            await self._endure(failed, heard_at_s, delay_s)
        else:
            self._trouble_since_s = None
            await asyncio.sleep(delay_s)

    async def _endure(self, failed: Unavailable, since_s: float, delay_s: float) -> None:
        """Waits, unless the trouble, which began at `since_s` or before, has lasted too long.

        Silence is part of it: nobody may have told that the stream is gone.
        """
        since_s = self._trouble_since_s = self._trouble_since_s or since_s
        left_s = since_s + PATIENCE_S - asyncio.get_running_loop().time()
        if self._bus.is_closed or (self._bus.is_connected and left_s <= 0):
            raise failed
        log.warning("consumer %s: %s", self.spec.name, failed)
        await asyncio.sleep(min(delay_s, max(left_s, 0.0)))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.spec.heartbeat_s)
            await self._hand.beat()

    async def _look(self) -> None:
        """Asks now and then how far all instances are: for the lag, and for `Durable.floor`."""
        while True:
            with contextlib.suppress(Unavailable):
                received = self.stats.received
                info = await self._durable.look()
                if info is not None:
                    self.stats.lag = (info.num_pending or 0) + (info.num_ack_pending or 0)
                    left = left_of(info)
                    # A message that came meanwhile has told what is newer.
                    if left is not None and self.stats.received == received:
                        self._hand.note_left(left)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _work(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not self._closing:
            try:
                await self._process(await self._next(task))
            finally:
                self._busy.discard(task)

    async def _next(self, task: asyncio.Task[None]) -> list[Delivery]:
        """What the worker is to handle now. One batch fills at a time, so that each gets full."""
        if self._handle_batch is None:
            batch = [await self._hand.ready.get()]
            self._busy.add(task)
            return batch
        async with self._filling:
            batch = [await self._hand.ready.get()]
            self._busy.add(task)
            await self._fill(batch)
        return batch

    async def _fill(self, batch: list[Delivery]) -> None:
        """Adds what is there already, or comes within the linger time."""
        ready, limit = self._hand.ready, self.spec.batch
        if self.spec.linger_s > 0:
            await self._hand.until_ready(limit - len(batch), self.spec.linger_s)
        while len(batch) < limit and not ready.empty():
            batch.append(ready.get_nowait())

    async def _process(self, batch: list[Delivery]) -> None:
        fresh = []
        for number, delivery in enumerate(batch, 1):
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
            if delivery.cause is not None:
                await self._hand.bury(delivery)
            elif delivery.handled:
                await self._finish(delivery)
            elif await self._is_new(delivery):
                fresh.append(delivery)
        if self._handle_batch is not None and fresh:
            await self._handle_together(fresh, self._handle_batch)
        elif self._handle is not None:
            for delivery in fresh:
                await self._handle_one(delivery, self._handle)

    async def _is_new(self, delivery: Delivery) -> bool:
        """Reads the event; answers at once for one that cannot be read or was handled before."""
        message = delivery.message
        try:
            if not delivery.event_id:
                event = decode(message.subject, message.headers, message.data)
                delivery.content = self._keep(event)
                delivery.event_id, delivery.tenant = event.id, event.tenant
            if self._inbox is not None:
                delivery.handled = await self._inbox.seen(self.spec.name, delivery.event_id)
        except Exception as failed:  # noqa: BLE001 - the bus edge: verdicts translates it
            await self._hand.failed(delivery, failed)
            return False
        if delivery.handled:
            await self._hand.finished(delivery)
        return not delivery.handled

    async def _handle_one(self, delivery: Delivery, handle: Handle) -> None:
        try:
            await handle(delivery.content)
        except Exception as failed:  # noqa: BLE001 - the bus edge: verdicts translates it
            await self._hand.failed(delivery, failed)
        else:
            await self._finish(delivery)

    async def _handle_together(self, batch: list[Delivery], handle: HandleBatch) -> None:
        try:
            results = await handle([delivery.content for delivery in batch])
            if len(results) != len(batch):
                raise Invariant(f"{len(results)} answers for {len(batch)} events")
        except Exception as failed:  # noqa: BLE001 - the bus edge: verdicts translates it
            await self._fail_together(batch, failed, handle)
            return
        for delivery, failure in zip(batch, results, strict=True):
            if failure is None:
                await self._finish(delivery)
            else:
                await self._hand.failed(delivery, failure)

    async def _fail_together(
        self, batch: list[Delivery], failed: Exception, handle: HandleBatch
    ) -> None:
        """A batch that failed whole is handled one by one, so that one bad event harms no other."""
        if len(batch) == 1 or verdict_on(failed) is Verdict.HOLD:
            for delivery in batch:
                await self._hand.failed(delivery, failed)
            return
        for delivery in batch:
            await self._handle_together([delivery], handle)

    async def _finish(self, delivery: Delivery) -> None:
        delivery.handled = True
        if self._inbox is not None and delivery.event_id:
            try:
                await self._inbox.mark(self.spec.name, delivery.event_id)
            except Exception as failed:  # noqa: BLE001 - the bus edge: verdicts translates it
                await self._hand.failed(delivery, failed)
                return
        await self._hand.finished(delivery)


async def listen(bus: Bus, prefix: str) -> AsyncIterator[Event]:
    """Events of a prefix that no stream keeps (heartbeats), from now on.

    What cannot be read is logged and left out; a listener that is too slow misses the oldest.
    Raises `Unavailable` when the connection is closed.
    """
    waiting: asyncio.Queue[Msg | None] = asyncio.Queue()

    async def hear(message: Msg) -> None:
        if waiting.qsize() >= LISTEN_LIMIT:
            waiting.get_nowait()
        waiting.put_nowait(message)

    pattern = BY_PREFIX[prefix].pattern
    subscription = await bus.ask(
        lambda: bus.client.subscribe(pattern, cb=hear), f"cannot listen to {pattern}"
    )
    remove = bus.on_close(lambda: waiting.put_nowait(None))
    try:
        while (message := await waiting.get()) is not None:
            try:
                yield decode(message.subject, message.headers, message.data)
            except Rejected as bad:
                log.warning("listening to %s: %s", pattern, bad)
        raise Unavailable(f"listening to {pattern}: the connection is closed")
    finally:
        remove()
        with contextlib.suppress(*BROKER_ERRORS):
            await subscription.unsubscribe()
