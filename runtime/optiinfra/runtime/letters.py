"""Dead letters as an operator handles them: looks, sends again, drops; each deed is audited."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from optiinfra.events.bus import Bus
from optiinfra.events.delivery import body_of
from optiinfra.events.facts import DeadLettered
from optiinfra.events.publish import Publisher
from optiinfra.events.replay import replay
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import NotFound
from optiinfra.schemas.ids import derived_id
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.letters import Dealt, Deed, LetterState, dealing, dealt_with


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, by its number in the stream of letters, and what was done with it."""

    number: int
    id: str
    tenant: str
    fact: DeadLettered
    dealt: Dealt | None

    @property
    def state(self) -> LetterState:
        return self.dealt.state if self.dealt else LetterState.NEW


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters; None means "any"."""

    consumer: str | None = None
    cause: str | None = None
    since: datetime | None = None
    state: LetterState | None = LetterState.NEW


class Letters:
    """The letters of one broker. Raises `Unavailable` when broker or database do not answer."""

    def __init__(self, bus: Bus, database: Database, publisher: Publisher) -> None:
        self._bus = bus
        self._database = database
        self._publisher = publisher

    async def ls(self, wanted: Wanted) -> list[Letter]:
        """In the order in which they were buried."""
        found = [
            (number, event)
            async for number, event in replay(self._bus, stream=Stream.DLQ, since=wanted.since)
        ]
        dealt = await dealt_with(self._database, [event.id for _, event in found])
        letters = [
            Letter(number, event.id, event.tenant, event.fact, dealt.get(event.id))
            for number, event in found
            if isinstance(event.fact, DeadLettered)
        ]
        return [one for one in letters if _fits(one, wanted)]

    async def show(self, number: int) -> Letter:
        """Raises `NotFound` when there is no such letter (any more)."""
        for letter in await self.ls(Wanted(state=None)):
            if letter.number == number:
                return letter
        raise NotFound(f"there is no letter {number}", hint="optiinfra dlq ls")

    async def retry(self, letter: Letter, reason: str = "") -> int:
        """Sends the message again, as it was, to its subject; gives its new sequence.

        All consumers of the subject get it; those that have handled it know it. Raises `Conflict`
        when the letter was dealt with before, `Rejected` when it holds only a part.
        """
        body = body_of(letter.fact)
        headers = {
            name: value
            for name, value in (letter.fact.headers or {}).items()
            if not name.lower().startswith("nats-")
        }
        headers["Nats-Msg-Id"] = derived_id("retry", letter.id)
        async with dealing(self._database, _deed(letter, LetterState.RETRIED, reason)):
            return await self._publisher.send(letter.fact.subject, headers, body)

    async def drop(self, letter: Letter, reason: str) -> None:
        """Says that nothing more is to come of it. Raises `Conflict` as `retry` does."""
        async with dealing(self._database, _deed(letter, LetterState.DROPPED, reason)):
            pass


def by_cause(letters: Sequence[Letter]) -> dict[tuple[str, str], list[Letter]]:
    """Letters by consumer and cause."""
    found: dict[tuple[str, str], list[Letter]] = {}
    for letter in letters:
        found.setdefault((letter.fact.consumer, letter.fact.cause), []).append(letter)
    return found


def _fits(letter: Letter, wanted: Wanted) -> bool:
    return (
        wanted.consumer in (None, letter.fact.consumer)
        and wanted.cause in (None, letter.fact.cause)
        and wanted.state in (None, letter.state)
    )


def _deed(letter: Letter, state: LetterState, reason: str) -> Deed:
    who = f"operator:{getpass.getuser()}"
    return Deed(letter.id, letter.tenant, state, who, reason, letter.fact.subject)
