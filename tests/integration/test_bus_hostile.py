"""Hostile messages on a real broker: each is buried with its cause, and nobody else waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from optiinfra.events.envelope import MAX_BODY_BYTES, Event, encode
from optiinfra.events.facts import ChangeResumed, DeadLettered, VoteCast
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import Stand, new_id, now, running, stand, until
from tests.coordinator_stand import opened
from tests.factories import recommendation, vote

Headers = dict[str, str]


@pytest.fixture
async def bus(nats_server: Callable[[], NatsServer]) -> AsyncIterator[Stand]:
    async with stand(nats_server().url) as made:
        yield made


def good(name: str = "good") -> tuple[str, Headers, bytes]:
    """A message as it should be, on `change.resumed.acme.<change>`."""
    fact = ChangeResumed(change=derived_id("change"), by="x")
    return encode(Event(id=derived_id(name), source="t", tenant="acme", time=now(), fact=fact))


SUBJECT, HEADERS, BODY = good()
HOSTILE: dict[str, tuple[Headers | None, bytes]] = {
    "no headers": (None, BODY),
    "too large": (HEADERS, BODY.replace(b'"x"', b'"' + b"x" * MAX_BODY_BYTES + b'"')),
    "deep": (HEADERS, b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "no text": (HEADERS, b"\xff\xfe" + BODY),
    "NUL": (HEADERS, BODY.replace(b'"x"', b'"\\u0000"')),
    "raw NUL": (HEADERS, b"\x00" * 64),
    "an endless integer": (HEADERS, BODY.replace(b'"x"', b"9" * 5_000)),
    "another type": ({**HEADERS, "ce-type": "optiinfra.approval.granted.v1"}, BODY),
    "another kind": (HEADERS, BODY.replace(b"resumed", b"paused")),
    "foreign tenant": ({**HEADERS, "ce-tenant": "other"}, BODY),
    "no tenant": ({k: v for k, v in HEADERS.items() if k != "ce-tenant"}, BODY),
    "a far future": ({**HEADERS, "ce-time": "9999-12-31T23:59:59-12:00"}, BODY),
    "a long past": ({**HEADERS, "ce-time": "0001-01-01T00:00:00+14:00"}, BODY),
    "an enormous id": ({**HEADERS, "ce-id": "a" * 50_000}, BODY),
    "an enormous source": ({**HEADERS, "ce-source": "a" * 50_000}, BODY),
    "control characters": ({**HEADERS, "traceparent": "a\x01b"}, BODY),
    "empty": (HEADERS, b""),
}


async def post(bus: Stand, headers: Headers | None, body: bytes, subject: str = SUBJECT) -> None:
    """Past our own publisher, which would refuse to say it."""
    plain = {k: v for k, v in (headers or {}).items() if k != "Nats-Msg-Id"}
    await bus.bus.js.publish(subject, body, headers=plain or None, timeout=10)


async def letters(bus: Stand, count: int) -> list[DeadLettered]:
    async with asyncio.timeout(30):
        while len(found := await bus.dead_letters()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


@pytest.mark.parametrize("together", [False, True])
async def test_each_hostile_message_is_buried_with_its_cause(bus: Stand, *, together: bool) -> None:
    handled: list[str] = []

    async def one(event: Event) -> None:
        handled.append(event.id)

    async def batch(events: list[Event]) -> list[None]:
        handled.extend(event.id for event in events)
        return [None] * len(events)

    how = {"handle_batch": batch} if together else {"handle": one}
    consumer = bus.consumer("hostile", **how)
    async with running(consumer):
        for headers, body in HOSTILE.values():
            await post(bus, headers, body)
        [after] = await bus.say(1)
        await until(lambda: after.id in handled)
        found = await letters(bus, len(HOSTILE))
    assert [(one.cause, one.subject) for one in found] == [("Rejected", SUBJECT)] * len(HOSTILE)
    assert all(one.error and one.attempts == 1 for one in found)
    assert handled == [after.id]
    assert (consumer.stats.dead_lettered, consumer.stats.retried) == (len(HOSTILE), 0)


async def test_headers_are_not_injected_and_a_doubled_one_is_one(bus: Stand) -> None:
    handled: list[Event] = []

    async def handle(event: Event) -> None:
        handled.append(event)

    subject, headers, body = good("injected")
    raw = "NATS/1.0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    doubled = (raw + "ce-tenant: other\r\n\r\n").encode()
    async with running(bus.consumer("injected", handle=handle)):
        await post(bus, {**headers, "ce-source": "t\r\nce-tenant: other"}, body)
        await bus.bus.client._send_command(
            f"HPUB {subject} {len(doubled)} {len(doubled) + len(body)}\r\n".encode()
            + doubled + body + b"\r\n"
        )  # fmt: skip
        await bus.bus.client.flush()
        found = await letters(bus, 2)
    assert handled == []
    assert {one.cause for one in found} == {"Rejected"}


async def test_an_honest_message_does_not_wait_for_hostile_ones(bus: Stand) -> None:
    """Each of many hostile messages costs a dead letter, and no more than that."""
    waits: list[float] = []
    sent: dict[str, float] = {}

    async def handle(event: Event) -> None:
        waits.append(time.monotonic() - sent[event.id])

    async def say() -> None:
        for event in bus.facts(100):
            sent[event.id] = time.monotonic()
            await bus.publisher.publish(event)

    deep = HOSTILE["deep"]
    async with running(bus.consumer("unharmed", handle=handle)):
        await say()
        await until(lambda: len(waits) == 100)
        calm = sorted(waits)[98]
        waits.clear()
        await asyncio.gather(say(), *(post(bus, *deep) for _ in range(40)))
        await until(lambda: len(waits) == 100)
    assert sorted(waits)[98] < max(0.5, 10 * calm)


async def test_an_id_that_is_used_again_for_something_else_is_refused(
    nats_server: Callable[[], NatsServer], database: str
) -> None:
    async with opened(nats_server().url, database) as s:
        await s.coordinator()
        proposal = recommendation("voted")
        await s.propose(proposal)
        voter = min(VOTERS)
        cast = vote(proposal.id, voter)
        assert isinstance(cast, VoteCast)
        name = derived_id("vote", proposal.id, voter, 1)
        first = s.publisher.event(cast, tenant="acme", id=name)
        await s.publisher.publish(first)
        await s.until("SELECT count(*) = 1 FROM event_log WHERE event_id = $1", name)
        other = cast.vote.model_copy(update={"reasons": ("changed my mind",)})
        _, headers, body = encode(s.publisher.event(VoteCast(vote=other), tenant="acme", id=name))
        reused = Stand(s.bus, s.publisher)
        await post(reused, {**headers, "x": new_id()}, body, first.subject)
        [letter] = await letters(reused, 1)
        assert "another event under" in letter.error
        await post(reused, {**headers, "x": new_id()}, encode(first)[2], first.subject)
        await s.until("SELECT count(*) = 1 FROM event_log WHERE event_id = $1", name)
        assert len(await reused.dead_letters()) == 1
