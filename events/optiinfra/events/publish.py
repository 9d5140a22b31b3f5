"""Says events on the bus: each until the broker has acknowledged it, repeats dropped by its id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from nats.errors import ConnectionClosedError, ConnectionDrainingError

from optiinfra.events.acks import Acks, Outgoing
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import Event, encode
from optiinfra.events.facts import Fact, TimerFired, TimerSet, change_of
from optiinfra.events.refusals import BROKER_ERRORS, is_passing, translated
from optiinfra.events.subjects import row_of
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.schemas.ids import NewId, derived_id

TRY_TIMEOUT_S = 5.0
GIVE_UP_AFTER_S = 30.0
FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 2.0
MAX_OUTSTANDING = 256
FIRED_TTL = "168h"
"""How long the stream keeps a fired timer."""
SCHEDULES = "timer.schedule"
"""Where message schedules are held: one subject a timer, since a subject holds one schedule."""

Clock = Callable[[], datetime]


class Publisher:
    """Publishes for one source (a role's name). Safe to share between tasks."""

    def __init__(
        self,
        bus: Bus,
        source: str,
        clock: Clock,
        new_id: NewId,
        *,
        try_timeout_s: float = TRY_TIMEOUT_S,
        give_up_after_s: float = GIVE_UP_AFTER_S,
    ) -> None:
        self._bus = bus
        self._acks = Acks(bus)
        self._source = source
        self._clock = clock
        self._new_id = new_id
        self._try_timeout_s = try_timeout_s
        self._give_up_after_s = give_up_after_s

    def event(
        self,
        fact: Fact,
        *,
        tenant: str,
        id: str | None = None,  # noqa: A002 - the envelope's own word
        correlation: str | None = None,
        causation: str | None = None,
    ) -> Event:
        """`fact` in an envelope of this source, of now; a change's fact is correlated with it."""
        return Event(
            id=id or self._new_id(),
            source=self._source,
            tenant=tenant,
            time=self._clock(),
            fact=fact,
            correlation=correlation or change_of(fact),
            causation=causation,
        )

    async def publish(self, event: Event) -> int:
        """Publishes and gives the stream's sequence (0 for what no stream keeps).

        Tries again on timeouts and reconnections. Raises `Unavailable` when the broker has not
        acknowledged it within `give_up_after_s`, or has no room; `Rejected` when it never can.
        """
        message = Outgoing(*encode(event))
        if row_of(event.fact).stream is None:
            await self._say(message)
            return 0
        return await self._persist(message)

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        """Publishes all, in order; gives the sequence or the error of each, in order.

        What is not kept by a stream has the sequence 0. Of those that are tried again after a
        timeout or a reconnection, order is not kept.
        """
        results: dict[int, int | OptiInfraError] = {}
        kept: dict[int, Outgoing] = {}
        for position, event in enumerate(events):
            try:
                message = Outgoing(*encode(event))
                if row_of(event.fact).stream is None:
                    await self._say(message)
                    results[position] = 0
                else:
                    kept[position] = message
            except OptiInfraError as failed:
                results[position] = failed
        results |= await self._persist_many(kept)
        return [results[position] for position in range(len(events))]

    async def send(self, subject: str, headers: dict[str, str], body: bytes) -> int:
        """Publishes a message as it is, and gives its sequence: for what was buried once.

        Raises as `publish` does.
        """
        return await self._persist(Outgoing(subject, headers, body))

    async def schedule(self, event: Event, fire_at: datetime, target_event: Event) -> int:
        """Has the broker say `target_event` at `fire_at`; gives the schedule's sequence.

        `event` names the timer: the same event scheduled again replaces its schedule, and within
        the duplicate window changes nothing. The broker keeps the schedule on disk and copies the
        headers, so what fires is an event like any other. A time that has passed fires at once.
        """
        target, headers, body = encode(target_event)
        headers |= {
            "Nats-Msg-Id": event.id,
            "Nats-Schedule": f"@at {fire_at.astimezone(UTC).isoformat().replace('+00:00', 'Z')}",
            "Nats-Schedule-Target": target,
            "Nats-Schedule-TTL": FIRED_TTL,
        }
        key = target.removeprefix("timer.fired.")
        if key == target:
            raise Rejected(f"{target!r} is not on the stream of timers")
        subject = f"{SCHEDULES}.{key}.{event.id}"
        return await self._persist(Outgoing(subject, headers, body))

    async def _say(self, message: Outgoing) -> None:
        await self._bus.ask(
            lambda: self._bus.client.publish(
                message.subject, message.body, headers=message.headers
            ),
            f"cannot say {message.subject}",
        )

    async def _persist(self, message: Outgoing) -> int:
        result = (await self._persist_many({0: message}))[0]
        if isinstance(result, OptiInfraError):
            raise result
        return result

    async def _persist_many(
        self, messages: Mapping[int, Outgoing]
    ) -> dict[int, int | OptiInfraError]:
        """Until each is acknowledged or refused for good, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline, delay_s = loop.time() + self._give_up_after_s, FIRST_DELAY_S
        results: dict[int, int | OptiInfraError] = {}
        left = dict(messages)
        while left:
            try_s = max(0.01, min(self._try_timeout_s, deadline - loop.time()))
            answers = await self._try(left, try_s)
            over = loop.time() + delay_s >= deadline
            for position in tuple(left):
                answer = answers.get(position, _NO_ANSWER)
                if isinstance(answer, Exception) and not over and _may_pass(answer):
                    continue
                results[position] = _result(answer, left.pop(position))
            if left:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, LONGEST_DELAY_S)
        return results

    async def _try(
        self, messages: Mapping[int, Outgoing], timeout_s: float
    ) -> dict[int, int | Exception]:
        """One try of all, in parts, so that the broker has a bounded number to answer at once."""
        answers: dict[int, int | Exception] = {}
        positions = tuple(messages)
        try:
            for start in range(0, len(positions), MAX_OUTSTANDING):
                part = positions[start : start + MAX_OUTSTANDING]
                sent = await self._acks.send([messages[one] for one in part], timeout_s)
                answers |= {part[index]: answer for index, answer in sent.items()}
        except BROKER_ERRORS as failed:
            answers |= {position: failed for position in positions if position not in answers}
        return answers


_NO_ANSWER = TimeoutError()


def _may_pass(failed: Exception) -> bool:
    over = isinstance(failed, (ConnectionClosedError, ConnectionDrainingError))
    return not over and is_passing(failed)


def _result(answer: int | Exception, message: Outgoing) -> int | OptiInfraError:
    if isinstance(answer, Exception):
        return translated(answer, f"cannot publish {message.subject}")
    return answer


def fired_by(event: Event) -> Event:
    """The event that a `timer.set` event fires; its id follows from the timer's."""
    fact = event.fact
    if not isinstance(fact, TimerSet):
        raise Rejected(f"{event.type} sets no timer")
    return Event(
        id=derived_id(fact.change, fact.name, fact.key),
        source=event.source,
        tenant=event.tenant,
        time=fact.fire_at,
        fact=TimerFired(change=fact.change, name=fact.name, key=fact.key),
        correlation=event.correlation,
        causation=event.id,
        traceparent=event.traceparent,
    )
