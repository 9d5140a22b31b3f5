"""Whose clock and whose deadline: switched off, to see changes end early, or never."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from optiinfra.coordinator.process import Coordinator, CoordinatorPorts
from optiinfra.events.bus import Bus
from optiinfra.events.publish import Publisher
from optiinfra.runtime.stores import jitter, new_id, now
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.journal import Batch, Journal
from optiinfra.storage.postgres.view import Question
from optiinfra.storage.redis import RegistryCache
from tests.coordinator_stand import BRISK, RULES, Stand, ended, opened
from tests.factories import recommendation, vote


@dataclass
class Clock:
    """The clock of a machine, an hour behind until somebody sets it right."""

    behind: timedelta = timedelta(hours=1)

    def __call__(self) -> datetime:
        return now() - self.behind


class OwnClock(Journal):
    """Decides by the clock of its machine, not by that of the database."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        super().__init__(database)
        self._clock = clock

    @asynccontextmanager
    async def batch(
        self, tenants: Iterable[str], asked: Question | None = None
    ) -> AsyncIterator[Batch]:
        async with super().batch(tenants, asked) as begun:
            begun.now = self._clock()
            yield begun


@pytest.fixture
async def stand(nats_server: Callable[[], NatsServer], database: str) -> AsyncIterator[Stand]:
    async with opened(nats_server().url, database) as made:
        yield made


class Hasty(Coordinator):
    """Takes what it has not heard for never said."""

    def _heard_until(self) -> None:
        return None


async def started(
    stand: Stand,
    rules: Rules,
    clock: Clock,
    *,
    own_clock: bool = False,
    kind: type[Coordinator] = Coordinator,
) -> asyncio.Task[None]:
    """A coordinator on a machine with this clock."""
    bus = await Bus.connect(stand.nats_url, name="coordinator")
    stand.stack.push_async_callback(bus.close)
    cache = RegistryCache("memory://")
    stand.stack.push_async_callback(cache.aclose)
    ports = CoordinatorPorts(
        bus=bus,
        publisher=Publisher(bus, "coordinator", clock, new_id),
        database=stand.database,
        cache=cache,
        rules=lambda: rules,
        clock=clock,
        new_id=new_id,
        jitter=jitter,
    )
    made = kind(ports, BRISK)
    if own_clock:
        made.runner._journal = OwnClock(stand.database, clock)
    return stand.runs(made.run)


async def begin(stand: Stand, rules: Rules, clock: Clock, *, own_clock: bool = False) -> None:
    """A coordinator, and a change on which nobody votes."""
    await started(stand, rules, clock, own_clock=own_clock)
    await stand.propose(recommendation())
    await stand.until("SELECT count(*) = 1 FROM sagas WHERE state <> 'proposed'")


async def is_vetoed(stand: Stand, within_s: float) -> bool:
    try:
        await stand.until(
            "SELECT count(*) = 1 FROM sagas WHERE state = 'vetoed'", within_s=within_s
        )
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("own_clock", [False, True])
async def test_a_coordinator_with_a_clock_of_its_own_decides_early(
    stand: Stand,
    own_clock: bool,  # noqa: FBT001
) -> None:
    clock = Clock()
    await begin(stand, RULES, clock, own_clock=own_clock)
    clock.behind = timedelta(0)
    assert await is_vetoed(stand, within_s=4.0) == own_clock


@pytest.mark.parametrize("deadline_s", [1.0, 1e6])
async def test_without_a_deadline_silence_decides_nothing(stand: Stand, deadline_s: float) -> None:
    await begin(stand, RULES.model_copy(update={"vote_deadline_s": deadline_s}), Clock())
    assert await is_vetoed(stand, within_s=5.0) == (deadline_s == 1.0)


@pytest.mark.parametrize("kind", [Coordinator, Hasty])
async def test_a_deadline_that_does_not_wait_for_what_was_said_vetoes_what_was_approved(
    stand: Stand, kind: type[Coordinator]
) -> None:
    """The votes come while the coordinator is away, and stand in the queue when it is back."""
    rules = RULES.model_copy(update={"vote_deadline_s": 1.0})
    away = await started(stand, rules, Clock(timedelta(0)))
    proposal = recommendation()
    await stand.propose(proposal)
    await stand.until("SELECT count(*) = 1 FROM sagas WHERE state = 'voting'")
    await ended(away)
    said = await stand.say(*(vote(proposal.id, agent) for agent in VOTERS))
    assert not any(said)
    await stand.until("SELECT max(fire_at) < clock_timestamp() FROM timers")
    await started(stand, rules, Clock(timedelta(0)), kind=kind)
    await stand.until("SELECT count(*) = 1 FROM sagas WHERE state IN ('vetoed', 'executing')")
    assert await is_vetoed(stand, within_s=0.5) == (kind is Hasty)
