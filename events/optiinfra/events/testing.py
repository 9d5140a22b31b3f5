"""For unit tests of others: a publisher that remembers instead of publishing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from optiinfra.events.envelope import Event, encode
from optiinfra.events.facts import Fact, change_of
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.ids import NewId, derived_id


class RecordingPublisher:
    """Has the interface of `Publisher`; `events` is what was published, `scheduled` the timers.

    Repeated ids are dropped, as the broker does. Set `failure` to have every call fail with it.
    """

    def __init__(
        self,
        source: str = "test",
        clock: Callable[[], datetime] = lambda: datetime(2026, 1, 1, tzinfo=UTC),
        new_id: NewId | None = None,
    ) -> None:
        self._source = source
        self._clock = clock
        self._new_id = new_id or self._counted_id
        self._made = 0
        self.events: list[Event] = []
        self.scheduled: list[tuple[Event, datetime, Event]] = []
        self.failure: OptiInfraError | None = None

    @property
    def facts(self) -> list[Fact]:
        """The facts of what was published."""
        return [event.fact for event in self.events]

    def _counted_id(self) -> str:
        self._made += 1
        return derived_id("recorded", self._source, self._made)

    def event(
        self,
        fact: Fact,
        *,
        tenant: str,
        id: str | None = None,  # noqa: A002 - the envelope's own word
        correlation: str | None = None,
        causation: str | None = None,
    ) -> Event:
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
        """Remembers the event; gives its place (from 1). Raises what `encode` raises."""
        if self.failure is not None:
            raise self.failure
        encode(event)
        known = [one.id for one in self.events]
        if event.id in known:
            return known.index(event.id) + 1
        self.events.append(event)
        return len(self.events)

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        results: list[int | OptiInfraError] = []
        for event in events:
            try:
                results.append(await self.publish(event))
            except OptiInfraError as failed:
                results.append(failed)
        return results

    async def schedule(self, event: Event, fire_at: datetime, target_event: Event) -> int:
        if self.failure is not None:
            raise self.failure
        self.scheduled.append((event, fire_at, target_event))
        return len(self.scheduled)
