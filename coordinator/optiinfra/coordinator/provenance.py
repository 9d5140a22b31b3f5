"""Words of persons count only if the portal wrote them down; the bus alone proves nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from optiinfra.events import facts as f
from optiinfra.events.commands import ControlRequested
from optiinfra.events.envelope import Event
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.tenant import POLICY

log = structlog.get_logger()

Handle = Callable[[Sequence[Event]], Awaitable[Sequence[BaseException | None]]]


class Words(Protocol):
    """Where words of persons are written down. May raise `Unavailable`."""

    async def refused(self, events: Sequence[Event]) -> dict[str, Rejected]: ...


class Vouched:
    """Hands on what was heard, but for words that nobody said: those fail, for a dead letter."""

    def __init__(self, words: Words, handle: Handle) -> None:
        self._words = words
        self._handle = handle

    async def __call__(self, events: Sequence[Event]) -> list[BaseException | None]:
        """For each event, None or why it cannot be handled; asks only when persons speak."""
        spoken = [event for event in events if is_word(event)]
        refused = await self._words.refused(spoken) if spoken else {}
        for event in spoken:
            if event.id in refused:
                log.error("word.refused", type=event.type, event_id=event.id, source=event.source)
        kept = [event for event in events if event.id not in refused and not _is_own(event)]
        results = await self._handle(kept) if kept else ()
        failures = {event.id: failed for event, failed in zip(kept, results, strict=True)}
        return [refused.get(event.id) or failures.get(event.id) for event in events]


_WORDS = (ControlRequested, f.SwitchTurned, f.RecommendationSnoozed, f.RecommendationWoken)


def is_word(event: Event) -> bool:
    """Whether somebody at the portal must have said it."""
    fact = event.fact
    if isinstance(fact, f.ApprovalGranted | f.ApprovalDenied):
        return fact.approval.by.kind != POLICY
    return isinstance(fact, _WORDS)


def _is_own(event: Event) -> bool:
    """A policy's word is the coordinator's own and in force before it is said: it is not heard
    from the bus, where it could be anybody's."""
    fact = event.fact
    if not isinstance(fact, f.ApprovalGranted | f.ApprovalDenied):
        return False
    return fact.approval.by.kind == POLICY
