"""Says events on the bus: each until the broker has acknowledged it, repeats dropped by its id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from nats.errors import ConnectionClosedError, ConnectionDrainingError

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
        return await self._publish(event, self._deadline())

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        """Publishes all, several at a time; gives the sequence or the error of each, in order."""
        deadline, turns = self._deadline(), asyncio.Semaphore(MAX_OUTSTANDING)

        async def one(event: Event) -> int | OptiInfraError:
            async with turns:
                try:
                    return await self._publish(event, deadline)
                except OptiInfraError as failed:
                    return failed

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(event)) for event in events]
        return [task.result() for task in tasks]

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
        return await self._persist(subject, headers, body, deadline=self._deadline())

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._give_up_after_s

    async def _publish(self, event: Event, deadline: float) -> int:
        subject, headers, body = encode(event)
        if row_of(event.fact).stream is None:
            await self._bus.ask(
                lambda: self._bus.client.publish(subject, body, headers=headers),
                f"cannot say {subject}",
            )
            return 0
        return await self._persist(subject, headers, body, deadline=deadline)

    async def _persist(
        self, subject: str, headers: dict[str, str], body: bytes, *, deadline: float
    ) -> int:
        now, delay_s = asyncio.get_running_loop().time, FIRST_DELAY_S
        while True:
            try_s = max(0.01, min(self._try_timeout_s, deadline - now()))
            try:
                async with self._bus.attempt(try_s):
                    ack = await self._bus.js.publish(subject, body, try_s, headers=headers)
                return ack.seq
            except BROKER_ERRORS as failed:
                over = isinstance(failed, (ConnectionClosedError, ConnectionDrainingError))
                if over or not is_passing(failed) or now() + delay_s >= deadline:
                    raise translated(failed, f"cannot publish {subject}") from failed
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_DELAY_S)


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
