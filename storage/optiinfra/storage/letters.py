"""Dead letters as a person handles them: looks, sends again, drops; each deed is audited."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from optiinfra.events.bus import Bus
from optiinfra.events.delivery import body_of
from optiinfra.events.envelope import Event, decode
from optiinfra.events.facts import DeadLettered
from optiinfra.events.publish import Publisher
from optiinfra.events.replay import replay
from optiinfra.events.subjects import Stream
from optiinfra.events.topology import kept, message_at
from optiinfra.schemas.errors import NotFound, Rejected, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.letters import (
    Dealt,
    Deed,
    Done,
    LetterState,
    Order,
    dealing,
    dealt_with,
)

log = logging.getLogger("optiinfra.storage.letters")

CHUNK = 100
"""For how many letters the database is asked at once what was done with them."""


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

    def told(self) -> dict[str, Any]:
        """As it is shown: where it stands, then all that it holds."""
        dealt = self.dealt
        return {
            "number": self.number,
            "id": self.id,
            "tenant": self.tenant,
            "state": self.state.value,
            "dealt_by": dealt.by if dealt else None,
            "reason": dealt.reason if dealt else None,
            **self.fact.model_dump(mode="json", exclude={"kind"}),
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters; None means "any"."""

    consumer: str | None = None
    cause: str | None = None
    since: datetime | None = None
    state: LetterState | None = LetterState.NEW
    tenant: str | None = None


class Letters:
    """The letters of one broker. Raises `Unavailable` when broker or database do not answer.

    The bus may be that of a reader; `publisher` is an operator's, who alone may speak again what
    others said. Without it nothing is sent.
    """

    def __init__(self, bus: Bus, database: Database, publisher: Publisher | None) -> None:
        self._bus = bus
        self._database = database
        self._publisher = publisher

    async def ls(self, wanted: Wanted, *, after: int = 0, limit: int | None = None) -> list[Letter]:
        """Those after letter number `after`, in the order in which they were buried."""
        found: list[Letter] = []
        async with aclosing(self._fitting(wanted, after)) as letters:
            async for letter in letters:
                found.append(letter)
                if len(found) == limit:
                    break
        return found

    async def show(self, number: int, *, tenant: str | None = None) -> Letter:
        """Raises `NotFound` when there is no such letter (any more), or of this tenant."""
        message = await message_at(self._bus, Stream.DLQ, number)
        event = (
            decode(message.subject or "", message.headers, message.data or b"") if message else None
        )
        if event is None or tenant not in (None, event.tenant):
            raise NotFound(f"there is no letter {number}", hint="list them: some expire")
        [letter] = await self._known([(number, event)])
        return letter

    async def retry(self, letter: Letter, order: Order) -> Done:
        """Sends the message again, as it was, to its subject.

        All consumers of the subject get it; those that have handled it know it. Raises `Conflict`
        when the letter was dealt with before (a repeated order is no other one), `Rejected` when
        it holds only a part, or when the stream does not hold the message as the letter tells it:
        else whoever can bury something could have an operator say it.
        """
        if self._publisher is None:
            raise Unavailable(
                "nobody is signed in at the bus here who may send letters again",
                hint="use `optiinfra dlq retry`, or give the API OPTIINFRA_OPERATOR_NATS_URL",
            )
        body, fact = body_of(letter.fact), letter.fact
        async with dealing(self._database, _deed(letter, LetterState.RETRIED, order)) as done:
            if done.repeated:
                return done
            await self._require_kept(fact, body)
            headers = _own(fact.headers) | {"Nats-Msg-Id": derived_id("retry", letter.id)}
            sequence = await self._publisher.send(fact.subject, headers, body)
            return replace(done, sequence=sequence)

    async def drop(self, letter: Letter, order: Order) -> Done:
        """Says that nothing more is to come of it. Raises `Conflict` as `retry` does."""
        async with dealing(self._database, _deed(letter, LetterState.DROPPED, order)) as done:
            return done

    async def _require_kept(self, fact: DeadLettered, body: bytes) -> None:
        """Somebody who may say it has said it: the message lies where the letter says."""
        message = None
        if fact.stream in Stream.__members__.values():
            message = await message_at(self._bus, Stream(fact.stream), fact.stream_seq)
        told = (fact.subject, _own(fact.headers), body)
        if message is None or told != (message.subject, _own(message.headers), message.data or b""):
            raise Rejected(
                f"{fact.stream} does not hold, at {fact.stream_seq}, the message that the letter"
                " tells of, so it cannot be sent again",
                hint="it may have expired: have its sender say it again, then drop the letter",
            )

    async def _fitting(self, wanted: Wanted, after: int) -> AsyncGenerator[Letter, None]:
        """Read on only as far as somebody asks."""
        first = (await kept(self._bus, Stream.DLQ)).first
        chunk: list[tuple[int, Event]] = []
        source = replay(
            self._bus,
            stream=Stream.DLQ,
            after=max(after, first - 1),
            since=wanted.since,
            unreadable=_left_out,
        )
        async with aclosing(source) as found:
            async for number, event in found:
                if number > after:
                    chunk.append((number, event))
                if len(chunk) == CHUNK:
                    for letter in await self._known(chunk):
                        if _fits(letter, wanted):
                            yield letter
                    chunk.clear()
        for letter in await self._known(chunk):
            if _fits(letter, wanted):
                yield letter

    async def _known(self, found: Sequence[tuple[int, Event]]) -> list[Letter]:
        """With what was done with each."""
        dealt = await dealt_with(self._database, [event.id for _, event in found])
        return [
            Letter(number, event.id, event.tenant, event.fact, dealt.get(event.id))
            for number, event in found
            if isinstance(event.fact, DeadLettered)
        ]


def by_cause(letters: Sequence[Letter]) -> dict[tuple[str, str], list[Letter]]:
    """Letters by consumer and cause."""
    found: dict[tuple[str, str], list[Letter]] = {}
    for letter in letters:
        found.setdefault((letter.fact.consumer, letter.fact.cause), []).append(letter)
    return found


def _left_out(number: int, why: Rejected) -> None:
    log.warning("letter %d is left out: %s", number, why)


def _own(headers: dict[str, str] | None) -> dict[str, str]:
    """The message's headers without the broker's."""
    given = headers or {}
    return {name: value for name, value in given.items() if not name.lower().startswith("nats-")}


def _fits(letter: Letter, wanted: Wanted) -> bool:
    return (
        wanted.consumer in (None, letter.fact.consumer)
        and wanted.cause in (None, letter.fact.cause)
        and wanted.state in (None, letter.state)
        and wanted.tenant in (None, letter.tenant)
    )


def _deed(letter: Letter, state: LetterState, order: Order) -> Deed:
    return Deed(letter.id, letter.tenant, state, letter.fact.subject, order)
