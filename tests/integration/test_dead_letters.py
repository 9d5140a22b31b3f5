"""Dead letters on a real broker and a real PostgreSQL: looked at, sent again, dropped, audited."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from optiinfra.events.envelope import Event
from optiinfra.events.facts import ChangeResumed
from optiinfra.events.publish import Publisher
from optiinfra.schemas.errors import Conflict, NotFound, Rejected, Unavailable
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.letters import Letters, Wanted
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.letters import LetterState, Order
from tests.bus_stand import MemoryInbox, Stand, new_id, now, running, stand, until

ANN = Order("operator:ann")


@pytest.fixture
async def s(nats_server: Callable[[], NatsServer]) -> AsyncIterator[Stand]:
    async with stand(nats_server().url) as made:
        yield made


class Moody:
    """Refuses what comes while it is in a bad mood."""

    def __init__(self) -> None:
        self.bad = True
        self.handled: list[Event] = []

    async def __call__(self, event: Event) -> None:
        if self.bad:
            raise Rejected("not today")
        self.handled.append(event)


async def buried(s: Stand, handle: Moody, count: int) -> list[Event]:
    said = await s.say(count)
    await until_buried(s, count)
    return said


async def until_buried(s: Stand, count: int) -> None:
    async with asyncio.timeout(20):
        while len(await s.dead_letters()) < count:  # noqa: ASYNC110 - the broker says when
            await asyncio.sleep(0.02)


async def test_a_letter_is_shown_whole_and_sent_again_as_it_was(
    s: Stand, postgres: Database
) -> None:
    handle = Moody()
    letters = Letters(s.bus, postgres, s.publisher)
    async with running(s.consumer("moody", handle=handle, inbox=MemoryInbox())):
        [said] = await buried(s, handle, 1)
        [letter] = await letters.ls(Wanted())
        assert (letter.fact.consumer, letter.fact.cause) == ("moody", "Rejected")
        assert letter.fact.event_id == said.id
        assert letter.fact.headers is not None
        assert letter.fact.headers["ce-id"] == said.id
        handle.bad = False
        await letters.retry(letter, ANN)
        await until(lambda: len(handle.handled) == 1)
    assert handle.handled == [said]
    assert await letters.ls(Wanted()) == []
    [dealt] = await letters.ls(Wanted(state=None))
    assert dealt.state is LetterState.RETRIED
    with pytest.raises(Conflict, match="retried by operator:ann"):
        await letters.retry(letter, ANN)


async def test_each_deed_is_audited_once_and_only_if_it_was_done(
    s: Stand, postgres: Database
) -> None:
    handle = Moody()
    letters = Letters(s.bus, postgres, s.publisher)
    async with running(s.consumer("moody", handle=handle)):
        await buried(s, handle, 2)
    first, second = await letters.ls(Wanted(consumer="moody"))
    await letters.drop(first, Order("operator:ann", "known bad"))
    with pytest.raises(Conflict, match="dropped"):
        await letters.retry(first, ANN)
    await s.bus.js.delete_stream("CHANGES")
    hasty = Letters(s.bus, postgres, _hasty(s))
    with pytest.raises(Unavailable, match="stream not found"):
        await hasty.retry(second, ANN)
    assert [one.number for one in await letters.ls(Wanted())] == [second.number]
    async with postgres.connection() as connection:
        rows = await connection.fetch("SELECT action, target, actor, detail FROM audit")
    [row] = rows
    assert (row["action"], row["target"]) == ("letter.dropped", first.id)
    assert row["actor"].startswith("operator:")
    assert json.loads(row["detail"])["reason"] == "known bad"


def _hasty(s: Stand) -> Publisher:
    return Publisher(s.bus, "operator", now, new_id, give_up_after_s=0.3)


async def test_letters_are_chosen_by_consumer_cause_and_number(
    s: Stand, postgres: Database
) -> None:
    handle = Moody()
    letters = Letters(s.bus, postgres, s.publisher)
    async with running(s.consumer("one", handle=handle)), running(s.consumer("two", handle=handle)):
        await s.say(2)
        await until_buried(s, 4)
    assert len(await letters.ls(Wanted())) == 4
    assert len(await letters.ls(Wanted(consumer="two"))) == 2
    assert await letters.ls(Wanted(cause="Invariant")) == []
    with pytest.raises(NotFound):
        await letters.show(99)


async def test_a_letter_that_holds_a_part_is_not_sent_again(s: Stand, postgres: Database) -> None:
    handle = Moody()
    letters = Letters(s.bus, postgres, s.publisher)
    async with running(s.consumer("moody", handle=handle)):
        event = s.publisher.event(ChangeResumed(change="a" * 32, by="x" * 100_000), tenant="acme")
        await s.publisher.publish(event)
        await until_buried(s, 1)
    [letter] = await letters.ls(Wanted())
    assert letter.fact.truncated
    with pytest.raises(Rejected, match="only a part"):
        await letters.retry(letter, ANN)
    assert len(await letters.ls(Wanted())) == 1


async def test_what_was_no_text_comes_back_byte_for_byte(s: Stand, postgres: Database) -> None:
    letters = Letters(s.bus, postgres, s.publisher)
    handle = Moody()
    body = b"\xff\x00\xfe"
    async with running(s.consumer("moody", handle=handle)):
        await s.bus.js.publish(f"change.resumed.acme.{'b' * 32}", body, headers={"x": "y"})
        await until_buried(s, 1)
        [letter] = await letters.ls(Wanted())
        sequence = (await letters.retry(letter, ANN)).sequence
    assert sequence is not None
    again = await s.bus.js.get_msg("CHANGES", sequence)
    assert again.data == body
    assert (again.headers or {})["x"] == "y"


async def test_a_request_that_is_repeated_sends_once_and_is_audited_once(
    s: Stand, postgres: Database
) -> None:
    handle = Moody()
    letters = Letters(s.bus, postgres, s.publisher)
    asked = Order("person:ann", "mended", request="one")
    async with running(s.consumer("moody", handle=handle)):
        await buried(s, handle, 1)
        handle.bad = False
        [letter] = await letters.ls(Wanted())
        done = await asyncio.gather(*(letters.retry(letter, asked) for _ in range(3)))
        await until(lambda: len(handle.handled) == 1)
    assert sorted(one.repeated for one in done) == [False, True, True]
    assert len({one.dealt for one in done}) == 1
    assert (await s.bus.js.stream_info("CHANGES")).state.last_seq == 2
    for other in (
        Order("person:ann", "mended", request="two"),
        Order("person:ben", "mended", request="one"),
        Order("person:ann", "or not", request="one"),
    ):
        with pytest.raises(Conflict, match="retried by person:ann"):
            await letters.retry(letter, other)
    with pytest.raises(Conflict, match="retried by person:ann"):
        await letters.drop(letter, asked)
    async with postgres.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM audit") == 1


async def test_a_letter_of_what_nobody_said_is_not_sent_again(s: Stand, postgres: Database) -> None:
    """Whoever can bury something cannot have an operator say it."""
    letters = Letters(s.bus, postgres, s.publisher)
    handle = Moody()
    async with running(s.consumer("moody", handle=handle)):
        await buried(s, handle, 1)
    [true] = await letters.ls(Wanted())
    forged = [
        true.fact.model_copy(update=change)
        for change in (
            {"subject": f"change.completed.acme.{'a' * 32}"},
            {"body": true.fact.body.replace("test", "eve")},
            {"headers": {**(true.fact.headers or {}), "ce-source": "coordinator"}},
            {"stream_seq": 2},
            {"stream": "NOWHERE"},
        )
    ]
    for fact in forged:
        await s.publisher.publish(s.publisher.event(fact, tenant="acme"))
    for letter in (await letters.ls(Wanted()))[1:]:
        with pytest.raises(Rejected, match="does not hold"):
            await letters.retry(letter, ANN)
    assert (await s.bus.js.stream_info("CHANGES")).state.last_seq == 1
    assert len(await letters.ls(Wanted())) == 1 + len(forged)
    await letters.retry(true, ANN)
    assert (await s.bus.js.stream_info("CHANGES")).state.last_seq == 2


@pytest.mark.parametrize("chunk", [1, 2, 100])
async def test_letters_are_read_in_parts_and_around_what_is_no_letter(
    s: Stand, postgres: Database, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("optiinfra.storage.letters.CHUNK", chunk)
    handle = Moody()
    letters = Letters(s.bus, postgres, s.publisher)
    assert await letters.ls(Wanted()) == []
    async with running(s.consumer("moody", handle=handle)):
        await buried(s, handle, 2)
        await s.bus.js.publish("dlq.acme.moody", b"nonsense")
        await s.say(1)
        async with asyncio.timeout(20):
            while (await s.bus.js.stream_info("DLQ")).state.last_seq < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert [one.number for one in await letters.ls(Wanted())] == [1, 2, 4]
    assert [one.number for one in await letters.ls(Wanted(), after=1, limit=1)] == [2]
    assert [one.number for one in await letters.ls(Wanted(), after=2, limit=9)] == [4]
    assert await letters.ls(Wanted(tenant="globex")) == []
    with pytest.raises(NotFound):
        await letters.show(4, tenant="globex")
    assert (await letters.show(4, tenant="acme")).number == 4
    await s.bus.js.purge_stream("DLQ")
    assert await letters.ls(Wanted()) == []
    with pytest.raises(NotFound):
        await letters.show(4)
