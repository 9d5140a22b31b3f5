"""Carries tapped answers from the gateway to the bus."""

from __future__ import annotations

from optiinfra.events.facts import AnswerSampled
from optiinfra.events.publish import Publisher
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.sampling import AnswerSample


class BusSampleSink:
    """Publishes what the gateway has tapped."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def publish(self, samples: list[AnswerSample]) -> None:
        """Raises what the publisher gave for the first sample that did not get through."""
        events = [
            self._publisher.event(AnswerSampled(sample=one), tenant=one.tenant, id=one.id)
            for one in samples
        ]
        for result in await self._publisher.publish_many(events):
            if isinstance(result, OptiInfraError):
                raise result
