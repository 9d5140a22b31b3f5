"""Dead letters without what keeps a second try right, to see it go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from optiinfra.events.envelope import Event
from optiinfra.events.facts import DeadLettered, Fact
from optiinfra.events.publish import Publisher
from optiinfra.schemas.errors import Conflict, Rejected
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.letters import Letter, Letters, Wanted
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.letters import Order
from tests.bus_stand import Stand, new_id, now, running, stand, until

Make = Callable[[], NatsServer]
WINDOW_S = 0.1
"""The least that the broker takes: afterwards it knows no repeats."""


class BodyAlone(Publisher):
    """Buries what a message said, and not its headers."""

    def event(self, fact: Fact, **envelope: Any) -> Event:
        if isinstance(fact, DeadLettered):
            fact = fact.model_copy(update={"headers": {}})
        return super().event(fact, **envelope)


class _ForgottenError(Exception):
    """Rolls a transaction back."""


class Forgetful(Database):
    """Keeps nothing of a transaction: no deed stands before it is done, and none after."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        with suppress(_ForgottenError):
            async with super().transaction() as connection:
                yield connection
                raise _ForgottenError


class Moody:
    """Refuses what comes while it is in a bad mood."""

    def __init__(self) -> None:
        self.bad = True
        self.handled: list[Event] = []

    async def __call__(self, event: Event) -> None:
        if self.bad:
            raise Rejected("not today")
        self.handled.append(event)


@pytest.fixture
async def s(nats_server: Make) -> AsyncIterator[Stand]:
    async with stand(nats_server().url) as made:
        yield made


@pytest.mark.parametrize("kept", [True, False])
async def test_a_letter_without_its_headers_cannot_be_sent_again(
    s: Stand,
    postgres: Database,
    kept: bool,  # noqa: FBT001
) -> None:
    burying = (Publisher if kept else BodyAlone)(s.bus, "test", now, new_id)
    letters, handle = Letters(s.bus, postgres, s.publisher), Moody()
    consumer = Stand(s.bus, burying).consumer("moody", handle=handle)
    async with running(consumer):
        [said] = await s.say(1)
        await until(lambda: consumer.stats.dead_lettered == 1)
        handle.bad = False
        [letter] = await letters.ls(Wanted())
        assert await sent(letters, letter, "ann") == kept
        if kept:
            await until(lambda: bool(handle.handled))
    assert handle.handled == ([said] if kept else [])


@pytest.mark.parametrize("written", [True, False])
async def test_a_letter_whose_deed_is_not_written_down_is_sent_twice_and_nobody_knows(
    s: Stand,
    postgres: Database,
    written: bool,  # noqa: FBT001
) -> None:
    """Two operators, one after the other, of whom each sees a letter that nobody has touched."""
    stream = (await s.bus.js.stream_info("CHANGES")).config
    await s.bus.js.update_stream(stream.evolve(duplicate_window=WINDOW_S))
    deeds = postgres if written else Forgetful(postgres._pool, postgres.engine)
    letters, handle = Letters(s.bus, deeds, s.publisher), Moody()
    consumer = s.consumer("moody", handle=handle)
    async with running(consumer):
        [said] = await s.say(1)
        await until(lambda: consumer.stats.dead_lettered == 1)
        handle.bad = False
        [letter] = await letters.ls(Wanted())
        assert await sent(letters, letter, "ann")
        await asyncio.sleep(2 * WINDOW_S)  # the window itself
        assert await sent(letters, letter, "bob") != written
        await until(lambda: len(handle.handled) == (1 if written else 2))
    assert handle.handled == [said] * (1 if written else 2)
    async with postgres.connection() as connection:
        audited = await connection.fetchval("SELECT count(*) FROM audit")
    assert audited == (1 if written else 0)


async def sent(letters: Letters, letter: Letter, who: str) -> bool:
    try:
        await letters.retry(letter, Order(f"operator:{who}"))
    except (Conflict, Rejected):
        return False
    return True
