"""What a coordinator does before it takes new work: real PostgreSQL, a broker of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from optiinfra.coordinator.recovery import Reconciler, recover
from optiinfra.coordinator.runner import Runner
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.events.topology import Kept
from optiinfra.schemas.errors import Invariant, OptiInfraError, Unavailable
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.postgres.database import Database, open_database
from tests.factories import event, recommendation, vote
from tests.saga_log import AUTO


@dataclass
class Broker:
    """A stream in memory that can forget its tail and count on from there."""

    messages: list[str] = field(default_factory=list)
    heard: list[Event] = field(default_factory=list)
    down: bool = False
    first: int = 1
    looked: int = 0

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        if self.down:
            return [Unavailable("down") for _ in events]
        results: list[int | OptiInfraError] = []
        for one in events:
            self.heard.append(one)
            self.messages.append(one.id)
            results.append(len(self.messages))
        return results

    async def look(self) -> Kept:
        return Kept(self.first, len(self.messages))

    async def message_at(self, sequence: int) -> str | None:
        self.looked += 1
        return self.messages[sequence - 1] if self.first <= sequence <= len(self.messages) else None

    def forget_after(self, sequence: int) -> list[str]:
        gone, self.messages = self.messages[sequence:], self.messages[:sequence]
        return gone

    def said(self, kind: str) -> list[str]:
        return [one.id for one in self.heard if one.fact.kind == kind]


@dataclass
class Story:
    database: Database
    broker: Broker
    runner: Runner
    reconciler: Reconciler

    async def open(self, *proposals: Recommendation, agreed: bool = False) -> None:
        for one in proposals:
            await self.runner.handle([event(f.RecommendationProposed(recommendation=one))])
            if agreed:
                await self.runner.handle([event(vote(one.id, agent)) for agent in VOTERS])

    async def recover(self) -> None:
        """As a process that has just started, which knows nothing but what is written down."""
        fresh = Runner(self.database, self.broker, lambda: AUTO)
        await recover(self.database, self.broker, fresh.handle, self.reconciler)

    async def do(self, statement: str) -> None:
        async with self.database.connection() as connection:
            await connection.execute(statement)


@pytest.fixture
async def story(database: str) -> AsyncIterator[Story]:
    async with open_database(database) as opened:
        broker = Broker()
        runner = Runner(opened, broker, lambda: AUTO)
        reconciler = Reconciler(opened, broker, broker.look, broker.message_at)
        yield Story(opened, broker, runner, reconciler)


def proposals(count: int, first: int = 0) -> list[Recommendation]:
    return [recommendation(n, deployment=f"d-{n}") for n in range(first, first + count)]


async def test_everything_that_was_never_said_is_said_before_new_work(story: Story) -> None:
    story.broker.down = True
    await story.open(*proposals(150))
    story.broker.down = False
    await story.recover()
    assert len(set(story.broker.messages)) == 300
    assert await story.reconciler.reconcile() == 0


async def test_a_lost_tail_is_said_again(story: Story) -> None:
    await story.open(*proposals(5))
    assert await story.reconciler.reconcile() == 0
    gone = story.broker.forget_after(4)
    assert await story.reconciler.reconcile() >= len(gone) == 6
    assert set(gone) <= set(story.broker.messages)
    assert await story.reconciler.reconcile() == 0


async def test_a_tail_is_missed_also_after_the_broker_has_counted_on(story: Story) -> None:
    """The same sequences then name other messages."""
    await story.open(*proposals(5))
    await story.reconciler.reconcile()
    gone = story.broker.forget_after(4)
    await story.open(*proposals(20, first=5))
    assert await story.reconciler.reconcile() >= len(gone)
    assert set(gone) <= set(story.broker.messages)


async def test_a_coordinator_that_starts_afterwards_misses_it_as_well(story: Story) -> None:
    await story.open(*proposals(30))
    gone = story.broker.forget_after(20)
    await story.open(*proposals(30, first=30))
    await story.recover()
    assert set(gone) <= set(story.broker.messages)


async def test_while_nothing_happens_two_messages_are_looked_at(story: Story) -> None:
    await story.open(*proposals(40))
    await story.reconciler.reconcile()
    story.broker.looked = 0
    assert await story.reconciler.reconcile() == 0
    assert story.broker.looked == 2


async def test_what_the_stream_has_let_go_by_age_is_not_lost(story: Story) -> None:
    await story.open(*proposals(10))
    story.broker.first = 15
    assert await story.reconciler.reconcile() == 0
    story.broker.first = 21
    assert await story.reconciler.reconcile() == 0


async def test_what_cannot_be_said_again_now_is_tried_again(story: Story) -> None:
    await story.open(*proposals(5))
    gone = story.broker.forget_after(2)
    story.broker.down = True
    with pytest.raises(Unavailable, match="could not be said again"):
        await story.reconciler.reconcile()
    story.broker.down = False
    await story.reconciler.reconcile()
    assert set(gone) <= set(story.broker.messages)


async def test_a_step_that_nobody_has_answered_is_asked_for_again(story: Story) -> None:
    moving, deciding = proposals(2)
    await story.open(moving, agreed=True)
    await story.open(deciding)
    asked = story.broker.said("execution.requested")
    assert len(asked) == 1
    await story.recover()
    assert story.broker.said("execution.requested") == asked * 2
    assert len(story.broker.said("vote.requested")) == 2


async def test_all_timers_that_are_overdue_fire_before_new_work(story: Story) -> None:
    await story.open(*proposals(100))
    await story.do("UPDATE timers SET fire_at = now() - interval '1 hour'")
    await story.do("UPDATE sagas SET body = regexp_replace(body, '20[0-9]{2}-', '2001-', 'g')")
    await story.recover()
    async with story.database.connection() as connection:
        states = await connection.fetch("SELECT DISTINCT state FROM sagas")
        left = await connection.fetchval("SELECT count(*) FROM timers")
    assert [row["state"] for row in states] == ["vetoed"]
    assert left == 0


async def test_a_row_that_is_not_at_the_end_of_its_log_stops_the_start(story: Story) -> None:
    await story.open(*proposals(2))
    await story.do("UPDATE sagas SET version = version - 1 WHERE deployment = 'd-1'")
    with pytest.raises(Invariant, match="1 open changes") as stopped:
        await story.recover()
    assert "rebuild" in str(stopped.value)
