"""The answer that each message in hand gets, with the broker played by the messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from optiinfra.events import hand as hand_module
from optiinfra.events.consumer_spec import ConsumerSpec
from optiinfra.events.facts import DeadLettered
from optiinfra.events.hand import Hand
from optiinfra.events.subjects import Stream
from optiinfra.events.testing import RecordingPublisher
from optiinfra.schemas.errors import Conflict, Invariant, Rejected, Unavailable
from tests.factories import AT


class Answered(Msg):
    """A message that notes its answers."""

    def note(self, answer: str) -> None:
        vars(self).setdefault("answers", []).append(answer)

    @property
    def answers(self) -> list[str]:
        return list(vars(self).get("answers", []))

    async def ack(self) -> None:
        self.note("ack")

    async def nak(self, delay: float | None = None) -> None:
        self.note(f"nak {delay}")

    async def in_progress(self) -> None:
        self.note("working")

    async def term(self) -> None:
        self.note("term")


def message(sequence: int = 1, delivered: int = 1) -> Answered:
    reply = f"$JS.ACK.CHANGES.cost.{delivered}.{sequence}.{sequence}.17.0"
    return Answered(Client(), "change.paused.acme.x", reply, b"{}", {"ce-id": "e"})


class Table:
    """A hand and its publisher."""

    def __init__(self, **options: Any) -> None:
        fields: dict[str, Any] = {
            "name": "cost",
            "stream": Stream.CHANGES,
            "prefixes": ("change.paused",),
            "backoff_base_s": 0.5,
            **options,
        }
        if fields["stream"] is Stream.DLQ:
            fields["prefixes"] = ("dlq",)
        self.publisher = RecordingPublisher()
        self.hand = Hand(
            ConsumerSpec(**fields),
            self.publisher,
            capacity=4,
            clock=lambda: AT,
            jitter=lambda: 1.0,
        )

    async def fail(self, taken: Answered, failed: BaseException) -> None:
        self.hand.take(taken)
        await self.hand.failed(self.hand.ready.get_nowait(), failed)


@pytest.fixture
async def table() -> AsyncIterator[Table]:
    made = Table()
    yield made
    await made.hand.give_back()


async def test_a_message_that_comes_again_while_in_hand_renews_only_its_reply(
    table: Table,
) -> None:
    first, second = message(), message(delivered=2)
    table.hand.take(first)
    table.hand.take(second)
    delivery = table.hand.ready.get_nowait()
    assert table.hand.ready.empty()
    await table.hand.beat()
    await table.hand.finished(delivery)
    assert (first.answers, second.answers) == ([], ["working", "ack"])


async def test_a_message_that_was_finished_is_only_acknowledged_again(table: Table) -> None:
    table.hand.take(message())
    await table.hand.finished(table.hand.ready.get_nowait())
    table.hand.take(message(delivered=2))
    assert table.hand.ready.get_nowait().handled


async def test_failures_are_delayed_ever_longer_and_the_last_buries(table: Table) -> None:
    delays = []
    for attempt in range(1, 7):
        taken = message(delivered=attempt)
        await table.fail(taken, ValueError("no"))
        delays += taken.answers
    assert delays == ["nak 0.5", "nak 1.0", "nak 2.0", "nak 4.0", "nak 8.0", "term"]
    letter = table.publisher.facts[0]
    assert isinstance(letter, DeadLettered)
    assert (letter.attempts, letter.cause, letter.error) == (6, "ValueError", "no")


async def test_deliveries_that_infrastructure_caused_do_not_count(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_module, "HOLD_LIMIT_S", -1.0)
    for delivered in range(1, 15):
        taken = message(delivered=delivered)
        await table.fail(taken, Unavailable("away"))
        assert taken.answers == ["nak 60.0"]
    taken = message(delivered=15)
    await table.fail(taken, ValueError("no"))
    assert taken.answers == ["nak 0.5"]


async def test_near_the_limit_of_deliveries_a_message_is_held_for_as_long_as_it_takes(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_module, "HOLD_LIMIT_S", -1.0)
    taken = message(delivered=10)
    await table.fail(taken, Unavailable("away"))
    assert taken.answers == []
    await table.hand.give_back()
    assert taken.answers == ["nak None"]


async def test_what_is_held_is_handed_out_again(table: Table) -> None:
    table.hand.take(message())
    delivery = table.hand.ready.get_nowait()
    await table.hand.failed(delivery, Conflict("moved on"))
    async with asyncio.timeout(5):
        assert await table.hand.ready.get() is delivery
    assert delivery.conflicts == 1


async def test_conflicts_without_end_count_as_attempts(table: Table) -> None:
    taken = message()
    table.hand.take(taken)
    delivery = table.hand.ready.get_nowait()
    delivery.conflicts = hand_module.CONFLICT_TRIES
    await table.hand.failed(delivery, Conflict("moved on"))
    assert taken.answers == ["nak 0.5"]


async def test_without_a_dead_letter_nothing_is_terminated(table: Table) -> None:
    table.publisher.failure = Unavailable("the broker is full")
    taken = message()
    await table.fail(taken, Rejected("never"))
    assert taken.answers == []
    assert table.hand.stats.dead_lettered == 0


async def test_a_message_delivered_too_often_is_buried_unhandled(table: Table) -> None:
    table.hand.take(message(delivered=21))
    delivery = table.hand.ready.get_nowait()
    await table.hand.bury(delivery)
    assert "21 times" in str(delivery.cause)


async def test_dead_letters_that_cannot_be_handled_make_no_more_of_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = Table(stream=Stream.DLQ)
    taken = message()
    await table.fail(taken, Invariant("bug"))
    assert (taken.answers, table.publisher.events) == (["term"], [])
    assert "bug" in caplog.text


async def test_the_hand_waits_for_room_and_never_grows_beyond_what_it_asked_for(
    table: Table,
) -> None:
    for sequence in (1, 2, 3):
        table.hand.take(message(sequence))
    waiting = asyncio.ensure_future(table.hand.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await table.hand.finished(table.hand.ready.get_nowait())
    assert await asyncio.wait_for(waiting, 5) == 2


async def test_a_hand_of_several_batches_has_room_once_one_batch_has_left_it() -> None:
    table = Table(batch=1)
    for sequence in (1, 2, 3, 4):
        table.hand.take(message(sequence))
    waiting = asyncio.ensure_future(table.hand.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await table.hand.finished(table.hand.ready.get_nowait())
    assert await asyncio.wait_for(waiting, 5) == 1
    await table.hand.give_back()


async def test_memory_of_messages_is_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_module, "REMEMBERED", 3)
    for sequence in range(1, 9):
        table.hand.take(message(sequence))
        await table.hand.finished(table.hand.ready.get_nowait())
        await table.fail(message(sequence + 100), ValueError("no"))
    assert len(table.hand._finished) == 3
    assert len(table.hand._failures) == 3
