"""Which events the portal must have written down, and what becomes of those that it has not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from optiinfra.coordinator.provenance import Vouched, is_word
from optiinfra.events.envelope import Event
from optiinfra.events.facts import ApprovalGranted
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.tenant import policy
from tests.payloads import APPROVAL, PAYLOADS

POLICYS = ApprovalGranted(approval=APPROVAL.model_copy(update={"by": policy("default@1")}))
WORDS = {
    "approval.granted", "approval.denied", "control.requested", "switch.turned",
    "recommendation.snoozed", "recommendation.woken",
}  # fmt: skip


def event(fact: object, name: str) -> Event:
    return Event(
        id=derived_id(name),
        source="test",
        tenant="acme",
        time=datetime(2026, 1, 1, tzinfo=UTC),
        fact=fact,
    )


class Book:
    """Refuses what is not in it, and remembers what it was asked."""

    def __init__(self, *ids: str) -> None:
        self.ids = ids
        self.asked: list[list[str]] = []

    async def refused(self, events: Sequence[Event]) -> dict[str, Rejected]:
        self.asked.append([one.id for one in events])
        return {one.id: Rejected("unknown") for one in events if one.id not in self.ids}


class Saga:
    def __init__(self) -> None:
        self.heard: list[str] = []

    async def handle(self, events: Sequence[Event]) -> list[BaseException | None]:
        self.heard += [one.id for one in events]
        return [Rejected("late") if one.fact.kind == "vote.cast" else None for one in events]


def test_words_of_persons_are_known_by_their_facts() -> None:
    assert {prefix for prefix, fact in PAYLOADS.items() if is_word(event(fact, prefix))} == WORDS
    assert not is_word(event(POLICYS, "policy"))


async def test_only_what_was_written_down_is_handed_on() -> None:
    good = event(PAYLOADS["approval.granted"], "good")
    bad = event(PAYLOADS["control.requested"], "bad")
    vote = event(PAYLOADS["vote.cast"], "vote")
    book, saga = Book(good.id), Saga()
    results = await Vouched(book, saga.handle)([bad, vote, good])
    assert [str(one) if one else None for one in results] == ["unknown", "late", None]
    assert saga.heard == [vote.id, good.id]
    assert book.asked == [[bad.id, good.id]]


@pytest.mark.parametrize("fact", [PAYLOADS["change.opened"], POLICYS])
async def test_nobody_is_asked_when_no_person_speaks(fact: object) -> None:
    one, book, saga = event(fact, "one"), Book(), Saga()
    assert await Vouched(book, saga.handle)([one]) == [None]
    assert book.asked == []
    assert saga.heard == ([] if fact is POLICYS else [one.id])
