"""The contract of an agent: it hears events, senses its world, and answers with facts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

from optiinfra.events.envelope import Event
from optiinfra.events.facts import Fact
from optiinfra.schemas.vote import AgentName

Say = Callable[[Fact], Awaitable[None]]
"""Publishes one fact now, while the handler goes on (the start of a long execution)."""

Clock = Callable[[], datetime]
"""The injected wall clock; aware, UTC."""


class Agent(Protocol):
    """What the host runs.

    Handlers are stateless: whatever they need lies in the stores or in the event, so that any
    instance can handle any event, twice if need be. Facts that `handle` returns get ids derived
    from the event, so that a redelivery repeats them under the same names.
    """

    @property
    def name(self) -> AgentName: ...

    @property
    def capabilities(self) -> tuple[str, ...]:
        """For the registry, such as "vote", "gate", "execute:spot_migration"."""
        ...

    @property
    def hears(self) -> tuple[str, ...]:
        """Subject prefixes (from the subject table) of the changes stream that it handles."""
        ...

    @property
    def sense_every_s(self) -> float: ...

    async def handle(self, event: Event, say: Say) -> Sequence[Fact]:
        """Facts that answer `event`; empty when it is for somebody else.

        Raises `Unavailable` when a store or target cannot be reached (tried again later) and
        `Rejected` when the event can never be handled (dead letter).
        """
        ...

    async def sense(self) -> Sequence[Fact]:
        """One round of looking at the world: readings, and proposals that follow from them."""
        ...
