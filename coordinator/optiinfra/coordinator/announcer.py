"""Says what the coordinator has decided; a timer is said as a message schedule."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from optiinfra.events.envelope import Event
from optiinfra.events.facts import TimerSet
from optiinfra.events.publish import Publisher, fired_by
from optiinfra.schemas.errors import OptiInfraError


class Announcer:
    """A publisher that hands timers to the broker's own clock.

    The broker fires them within milliseconds; the sweep over the database is the net under it.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        """The stream sequence or the error of each event, in order."""
        facts = [event for event in events if not isinstance(event.fact, TimerSet)]
        timers = [event for event in events if isinstance(event.fact, TimerSet)]
        published, scheduled = await asyncio.gather(
            self._publisher.publish_many(facts),
            asyncio.gather(*(self._schedule(event) for event in timers)),
        )
        results = dict(zip((e.id for e in facts), published, strict=True))
        results.update(zip((e.id for e in timers), scheduled, strict=True))
        return [results[event.id] for event in events]

    async def _schedule(self, event: Event) -> int | OptiInfraError:
        assert isinstance(event.fact, TimerSet)
        try:
            return await self._publisher.schedule(event, event.fact.fire_at, fired_by(event))
        except OptiInfraError as failed:
            return failed
