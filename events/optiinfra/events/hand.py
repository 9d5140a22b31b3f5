"""The messages that a consumer has in hand, and the answer that each gets in the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime

from nats.aio.msg import Msg

from optiinfra.events.consumer_spec import Buries, ConsumerSpec, ConsumerStats
from optiinfra.events.delivery import Delivery, Key, dead_letter_of, delivery_of
from optiinfra.events.refusals import BROKER_ERRORS
from optiinfra.events.subjects import Stream
from optiinfra.events.verdicts import Verdict, backoff_s, retry_after_s, verdict_on
from optiinfra.schemas.errors import OptiInfraError, Rejected

log = logging.getLogger("optiinfra.events.consume")

HOLD_LIMIT_S = 60.0
"""How long a message is held for infrastructure before it goes back to the broker."""
HOLD_CAP_S = 5.0
CONFLICT_TRIES = 5
CONFLICT_BASE_S = 0.05
REMEMBERED = 4096
"""How many finished messages are remembered, so that a lost acknowledgement has no effect."""


class Hand:
    """Takes messages, keeps them alive on the broker, and answers each exactly once."""

    def __init__(
        self,
        spec: ConsumerSpec,
        publisher: Buries,
        *,
        capacity: int,
        clock: Callable[[], datetime],
        jitter: Callable[[], float],
    ) -> None:
        self._spec = spec
        self._publisher = publisher
        self._capacity = capacity
        self._low = max(capacity // 2, capacity - spec.batch)
        self._clock = clock
        self._jitter = jitter
        self._held: dict[Key, Delivery] = {}
        self._finished: OrderedDict[Key, None] = OrderedDict()
        self._failures: OrderedDict[Key, int] = OrderedDict()
        self._excused: OrderedDict[Key, int] = OrderedDict()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._room = asyncio.Event()
        self._enough = asyncio.Event()
        self._wanted = 0
        self._left: int | None = None
        self._newest_ns = 0
        self.ready: asyncio.Queue[Delivery] = asyncio.Queue()
        self.stats = ConsumerStats()

    def take(self, message: Msg) -> None:
        """A message has come. One that is in hand already only renews its reply address."""
        delivery = delivery_of(message, asyncio.get_running_loop().time())
        self.stats.received += 1
        self.stats.lag = delivery.pending
        self.note_left(delivery.pending)
        self._newest_ns = max(self._newest_ns, delivery.stored_ns)
        known = self._held.get(delivery.key)
        if known is not None:
            known.message, known.delivered = message, delivery.delivered
            _count(self._excused, known.key)
            return
        self._held[delivery.key] = delivery
        if delivery.key in self._finished:
            delivery.handled = True
        elif self._deliveries(delivery) > self._spec.max_deliver:
            delivery.cause = Rejected(f"delivered {delivery.delivered} times without an answer")
        self.ready.put_nowait(delivery)
        if self.ready.qsize() >= self._wanted:
            self._enough.set()

    async def until_ready(self, count: int, timeout_s: float) -> None:
        """Waits until so many are ready, at most `timeout_s`; one caller at a time."""
        if self.ready.qsize() >= count:
            return
        self._wanted = count
        self._enough.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._enough.wait()

    def note_left(self, count: int) -> None:
        """The broker has told how many messages it has not delivered yet."""
        self._left = count

    def heard_until_ns(self) -> int | None:
        """Everything that was stored before this time (ns since the epoch) has been handled here,
        or failed at least once; None: everything there is. 0 until the broker has told.
        """
        for delivery in self._held.values():
            if not delivery.tried:
                return delivery.stored_ns
        if self._left is None:
            return 0
        return self._newest_ns if self._left else None

    async def room(self) -> int:
        """Waits until half of the hand is free, or a batch; gives how many more it can take."""
        while len(self._held) > self._low:
            self._room.clear()
            await self._room.wait()
        return self._capacity - len(self._held)

    async def beat(self) -> None:
        """Tells the broker that everything in hand is still worked on."""
        for delivery in tuple(self._held.values()):
            await self._answer(delivery.message.in_progress)

    async def finished(self, delivery: Delivery) -> None:
        """The message is handled: acknowledge it."""
        await self._answer(delivery.message.ack)
        self.stats.acked += 1
        self._end(delivery)

    async def failed(self, delivery: Delivery, failed: BaseException) -> None:
        """Does what the failure asks for: hold, try again, or bury."""
        verdict = verdict_on(failed)
        if verdict is Verdict.HOLD:
            await self._hold(delivery, failed)
        elif verdict is Verdict.SOON and delivery.conflicts < CONFLICT_TRIES:
            delivery.conflicts += 1
            delay_s = backoff_s(delivery.conflicts, CONFLICT_BASE_S, HOLD_CAP_S)
            self._again(delivery, delay_s * self._jitter())
        elif verdict in (Verdict.SOON, Verdict.COUNT):
            await self._count_attempt(delivery, failed)
        else:
            delivery.cause = failed
            await self.bury(delivery)

    async def bury(self, delivery: Delivery) -> None:
        """Publishes the dead letter and only then terminates the message."""
        cause = delivery.cause
        if verdict_on(cause or Rejected("")) is Verdict.ALARM:
            log.error("consumer %s: a bug: %s", self._spec.name, cause, exc_info=cause)
        if self._spec.stream is not Stream.DLQ and not await self._publish_dead_letter(delivery):
            return
        log.error(
            "consumer %s: %s #%d is buried: %s",
            self._spec.name, delivery.message.subject, delivery.sequence, cause,
        )  # fmt: skip
        await self._answer(delivery.message.term)
        self.stats.dead_lettered += 1
        self._end(delivery)

    async def give_back(self) -> None:
        """Sends everything in hand back to the broker, at the consumer's end."""
        for timer in self._timers.values():
            timer.cancel()
        for delivery in tuple(self._held.values()):
            answer = delivery.message.ack if delivery.handled else delivery.message.nak
            await self._answer(answer)
            self._drop(delivery)

    async def _publish_dead_letter(self, delivery: Delivery) -> bool:
        attempts = self._failures.get(delivery.key, 0) or delivery.delivered
        spec, at = self._spec, self._clock()
        name, tenant, fact = dead_letter_of(delivery, spec.name, attempts, at, under=spec.buried_as)
        try:
            await self._publisher.publish(self._publisher.event(fact, tenant=tenant, id=name))
        except OptiInfraError as failed:
            log.error("consumer %s: no dead letter: %s", self._spec.name, failed)
            self._again(delivery, HOLD_CAP_S * self._jitter())
            return False
        return True

    async def _hold(self, delivery: Delivery, failed: BaseException) -> None:
        delivery.holds += 1
        spec, loop = self._spec, asyncio.get_running_loop()
        delay_s = backoff_s(delivery.holds, spec.backoff_base_s, HOLD_CAP_S) * self._jitter()
        delay_s = max(delay_s, min(retry_after_s(failed), spec.backoff_cap_s))
        log.warning("consumer %s waits %.1f s: %s", spec.name, delay_s, failed)
        # Near the limit of deliveries it is held for as long as it takes.
        spare = self._deliveries(delivery) < spec.max_deliver // 2
        if spare and loop.time() - delivery.since_s > HOLD_LIMIT_S:
            _count(self._excused, delivery.key)
            await self._send_back(delivery, spec.backoff_cap_s * self._jitter())
        else:
            self._again(delivery, delay_s)

    async def _count_attempt(self, delivery: Delivery, failed: BaseException) -> None:
        spec = self._spec
        here = _count(self._failures, delivery.key)
        attempt = max(here, self._deliveries(delivery))
        if attempt >= spec.attempts:
            delivery.cause = failed
            await self.bury(delivery)
            return
        delay_s = backoff_s(attempt, spec.backoff_base_s, spec.backoff_cap_s) * self._jitter()
        log.warning(
            "consumer %s: attempt %d of %d on %s failed, again in %.1f s",
            spec.name, attempt, spec.attempts, delivery.message.subject, delay_s, exc_info=failed,
        )  # fmt: skip
        await self._send_back(delivery, delay_s)

    def _deliveries(self, delivery: Delivery) -> int:
        """Deliveries that count against the message: not those that infrastructure caused."""
        return delivery.delivered - self._excused.get(delivery.key, 0)

    async def _send_back(self, delivery: Delivery, delay_s: float) -> None:
        self.stats.retried += 1
        message = delivery.message
        await self._answer(lambda: message.nak(delay_s))
        self._drop(delivery)

    def _again(self, delivery: Delivery, delay_s: float) -> None:
        """Hands the message out again after `delay_s`; meanwhile it stays in hand."""
        self.stats.retried += 1
        delivery.tried = True

        def hand_out() -> None:
            self._timers.pop(delivery.key, None)
            self.ready.put_nowait(delivery)

        loop = asyncio.get_running_loop()
        self._timers[delivery.key] = loop.call_later(delay_s, hand_out)

    async def _answer(self, answer: Callable[[], Awaitable[None]]) -> None:
        """An answer that cannot be sent is not: the broker delivers again, to no effect."""
        with contextlib.suppress(*BROKER_ERRORS):
            await answer()

    def _end(self, delivery: Delivery) -> None:
        self._drop(delivery)
        self.stats.progressed()
        self._failures.pop(delivery.key, None)
        self._excused.pop(delivery.key, None)
        self._finished[delivery.key] = None
        if len(self._finished) > REMEMBERED:
            self._finished.popitem(last=False)

    def _drop(self, delivery: Delivery) -> None:
        self._held.pop(delivery.key, None)
        if len(self._held) <= self._low:
            self._room.set()


def _count(counts: OrderedDict[Key, int], key: Key) -> int:
    counts[key] = counts.get(key, 0) + 1
    if len(counts) > REMEMBERED:
        counts.popitem(last=False)
    return counts[key]
