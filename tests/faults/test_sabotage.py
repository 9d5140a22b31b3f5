"""Each mechanism switched off, to see that its promise falls without it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from nats.js.api import DiscardPolicy

from optiinfra.coordinator.announcer import Announcer
from optiinfra.coordinator.runner import Runner
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import encode
from optiinfra.events.publish import Publisher
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.journal import Journal
from tests.factories import vote
from tests.faults.child import SLOW_S, rules_of
from tests.faults.oracle import names
from tests.faults.sabotage import Unlocked
from tests.faults.stand import SETTLE_S, Stand, playing

IMPATIENCE_S = 14.0
COMPLETED = "SELECT count(*) FROM sagas WHERE state = 'completed'"
UNSAID = """
SELECT count(*) FROM outbox
WHERE sent_seq IS NULL AND created_at < clock_timestamp() - interval '5 seconds'
"""
"""The relay would have said it after half of this."""
OVERDUE = """
SELECT count(*) FROM timers
WHERE name = 'soak' AND fire_at < clock_timestamp() - interval '3 seconds'
"""
"""The sweep looks ten times a second."""
_FASTER = "another coordinator was faster"


async def test_without_names_for_launches_a_second_try_is_a_second_machine(stand: Stand) -> None:
    crashes = [("launch.after", 1), ("launch.after", 1)]
    agents = stand.role("agents", crashes, without=("tokens",))
    async with playing(stand.role("coordinator"), agents):
        await stand.propose(2)
        with pytest.raises(AssertionError, match=r"launch \d times"):
            await stand.settled(40)


async def test_without_the_relay_a_death_before_publishing_is_for_good(stand: Stand) -> None:
    """Its next life works on, and never says what the first one had decided."""
    dying = stand.role("coordinator", [("committed", 1)], without=("relay",))
    async with playing(dying, stand.role("agents")):
        await stand.propose(1)
        await dying.ended()
        await stand.propose(1)
        await stand.until(COMPLETED, 1)
        await stand.until(UNSAID, 1)
        assert names(await stand.broken(), "left in the outbox")


async def test_without_the_reconciler_a_lost_tail_is_lost(stand: Stand, server: NatsServer) -> None:
    """What was acknowledged is in the stream no more, and does not come back into it."""
    store, copy = server.home / "store", server.home / "older"
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(shutil.copytree, store, copy)
    await asyncio.to_thread(server.start)
    async with playing(stand.role("coordinator", without=("reconciler",))):
        await stand.propose(1)
        await stand.until("SELECT count(*) FROM outbox WHERE sent_seq IS NOT NULL", 2)
        acknowledged = await stand.acknowledged()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(shutil.rmtree, store)
        await asyncio.to_thread(shutil.move, copy, store)
        await asyncio.to_thread(server.start)
        async with playing(stand.role("agents")):
            await stand.propose(1)
            await stand.until(COMPLETED, 1)
    assert acknowledged
    assert not acknowledged & await stand.said()


async def test_without_the_sweep_timers_that_the_broker_lost_never_fire(stand: Stand) -> None:
    roles = (stand.role("coordinator", without=("sweep",)), stand.role("agents"))
    async with playing(*roles):
        await stand.propose(1, soak_s=3.0)
        await stand.staged(1)
        await stand.until("SELECT count(*) FROM timers WHERE name = 'soak'", 1)
        await stand.until_scheduled("soak")
        await stand.bus.js.purge_stream("TIMERS")
        await stand.until(OVERDUE, 1)


async def test_without_the_inbox_what_comes_again_is_taken_for_new(stand: Stand) -> None:
    """Facts of changes fold to a set besides; those of a tenant have the inbox alone."""
    coordinator = stand.role("coordinator", without=("inbox",))
    async with playing(coordinator):
        publisher = Publisher(stand.bus, "cost", now, new_id)
        said = f.AgentRegistered(
            tenant="acme", agent="cost", instance="i", version="1", capabilities=(), at=now()
        )
        subject, headers, body = encode(publisher.event(said, tenant="acme"))
        for name in ("once", "again"):
            await stand.bus.js.publish(subject, body, headers={**headers, "Nats-Msg-Id": name})
            await stand.until("SELECT count(*) FROM event_log", 1)
        async with asyncio.timeout(IMPATIENCE_S):
            while _FASTER not in coordinator.log.read_text():  # noqa: ASYNC110 - a process writes
                await asyncio.sleep(0.1)


@pytest.mark.parametrize(("journal", "moving"), [(Journal, 1), (Unlocked, 2)])
async def test_without_the_lock_two_coordinators_go_over_the_limit(
    stand: Stand, journal: type[Journal], moving: int
) -> None:
    """Each waits, before it commits, until the other has written too."""
    both = threading.Barrier(2)

    def meet(point: str) -> None:
        if point == "written":
            with suppress(threading.BrokenBarrierError):
                both.wait(2.0)

    made = stand.prepared(2)
    *before, last = sorted(VOTERS)
    said: list[f.Fact] = [f.RecommendationProposed(recommendation=one) for one in made]
    await decide(stand, journal, [*said, *(vote(one.id, name) for name in before for one in made)])
    await asyncio.gather(
        *(
            asyncio.to_thread(asyncio.run, decide(stand, journal, [vote(one.id, last)], meet))
            for one in made
        )
    )
    assert await stand.count("SELECT count(*) FROM sagas WHERE state = 'executing'") == moving


async def decide(
    stand: Stand,
    journal: type[Journal],
    said: Sequence[f.Fact],
    crash_point: Callable[[str], None] = lambda _point: None,
) -> None:
    """A coordinator of its own, as to connections, takes some facts in."""
    config = stand.config("coordinator", max_moving=1)
    bus = await Bus.connect(config.nats_url, name="coordinator")
    async with open_database(config.postgres_url) as database:
        publisher = Publisher(bus, "coordinator", now, new_id)
        runner = Runner(
            database, Announcer(publisher), lambda: rules_of(config), crash_point=crash_point
        )
        runner._journal = journal(database)
        assert not any(await runner.handle([publisher.event(fact, tenant="acme") for fact in said]))
    await bus.close()


async def test_without_beats_a_slow_target_is_asked_again_and_again(stand: Stand) -> None:
    slow = [stand.role("agents", slow_s=SLOW_S, without=("beats",)) for _ in range(2)]
    async with playing(stand.role("coordinator"), *slow):
        [made] = await stand.propose(1)
        async with asyncio.timeout(SETTLE_S):
            while stand.target.asked(made.deployment) < 2:  # noqa: ASYNC110 - processes ask it
                await asyncio.sleep(0.1)


async def test_a_full_stream_that_discards_the_old_loses_what_it_acknowledged(
    stand: Stand,
) -> None:
    found = (await stand.bus.js.stream_info("CHANGES")).config
    small = found.evolve(discard=DiscardPolicy.OLD, max_bytes=12_000)
    await stand.bus.js.update_stream(small)
    await stand.propose(12)
    left = (await stand.bus.js.stream_info("CHANGES")).state.messages
    await topology.apply(stand.bus, allow_update=True)
    async with playing(stand.role("coordinator"), stand.role("agents")):
        await stand.until(COMPLETED, left)
        assert 0 < left < 12
        assert names(await stand.broken(), f"proposed without exactly one end: {12 - left} ")
