"""The coordinator as a process: two at once, a broker that restarts, timers, the stop switch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.coordinator.timekeeping import tidy
from optiinfra.runtime.stores import new_id
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.decisions import Decisions
from optiinfra.storage.postgres.events import log_of_chain
from optiinfra.storage.postgres.verification import verify
from tests.coordinator_stand import BRISK, Stand, opened
from tests.factories import recommendation, rollout

SAID = """
SELECT count(*) AS said, count(DISTINCT chain) AS changes FROM event_log
WHERE type = $1
"""


@pytest.fixture
async def server(nats_server: Callable[[], NatsServer]) -> NatsServer:
    return nats_server()


@pytest.fixture
async def stand(server: NatsServer, database: str) -> AsyncIterator[Stand]:
    async with opened(server.url, database) as made:
        yield made


def proposals(count: int, *, soak_s: float = 0.0) -> list[Recommendation]:
    return [
        recommendation(n, deployment=f"d-{n}", rollout=rollout(0.5, 1.0, soak_s=soak_s))
        for n in range(count)
    ]


async def check_whole(stand: Stand, count: int) -> None:
    """Each change decided and executed once, and the log proves it."""
    for kind in ("change.opened", "change.approved", "change.completed"):
        [row] = await stand.fetch(SAID, f"optiinfra.{kind}.v1")
        assert (row["said"], row["changes"]) == (count, count), kind
    [row] = await stand.fetch(SAID, "optiinfra.execution.requested.v1")
    assert row["said"] == 3 * count
    assert len({event.id for event in stand.asked}) == 3 * count
    assert (await verify(stand.database)).ok
    for saga in await stand.fetch("SELECT change_id, body FROM sagas"):
        log = await log_of_chain(stand.database, str(saga["change_id"]))
        folded = fold(Saga(change=str(saga["change_id"])), [(e.fact, at) for e, at in log])
        assert folded.model_dump_json() == saga["body"]


async def test_two_coordinators_at_once_decide_each_change_once(stand: Stand) -> None:
    await stand.cast()
    await stand.coordinator()
    await stand.coordinator()
    changes = proposals(24)
    await stand.propose(*changes)
    await stand.until_completed(changes, within_s=60)
    await check_whole(stand, len(changes))


async def test_a_broker_that_is_killed_twice_loses_no_change(
    stand: Stand, server: NatsServer
) -> None:
    await stand.cast()
    await stand.coordinator()
    changes = proposals(12, soak_s=0.5)
    await stand.propose(*changes)
    for completed in (1, 6):
        await stand.until(
            "SELECT count(*) >= $1 FROM event_log WHERE type = 'optiinfra.execution.staged.v1'",
            completed,
        )
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    await stand.until_completed(changes, within_s=60)
    await check_whole(stand, len(changes))


async def test_timers_fire_by_the_brokers_clock_alone(stand: Stand) -> None:
    await stand.cast()
    await stand.coordinator(replace(BRISK, timers_s=1_000.0))
    changes = proposals(2, soak_s=1.0)
    await stand.propose(*changes)
    await stand.until_completed(changes, within_s=30)
    await check_whole(stand, len(changes))


async def test_timers_that_the_broker_has_lost_are_swept(stand: Stand) -> None:
    await stand.cast()
    await stand.coordinator()
    changes = proposals(2, soak_s=1.5)
    await stand.propose(*changes)
    for stage in (1, 2):
        await stand.until(
            "SELECT count(*) = $1 FROM event_log WHERE type = 'optiinfra.execution.staged.v1'",
            stage * len(changes),
        )
        await stand.until("SELECT count(*) = $1 FROM timers WHERE name = 'soak'", len(changes))
        await stand.bus.js.purge_stream("TIMERS")
    await stand.until_completed(changes, within_s=30)
    await check_whole(stand, len(changes))


async def test_the_stop_switch_halts_within_a_second_and_lets_go_again(stand: Stand) -> None:
    await stand.cast()
    await stand.coordinator()
    changes = proposals(3, soak_s=1.0)
    await stand.propose(*changes)
    await stand.until(
        "SELECT count(*) = 3 FROM event_log WHERE type = 'optiinfra.execution.staged.v1'"
    )
    began = time.monotonic()
    await turn(stand, stopped=True)
    await stand.until(
        "SELECT count(*) = 3 FROM event_log WHERE type = 'optiinfra.change.paused.v1'"
    )
    assert time.monotonic() - began < 1.0
    late = proposals(4)[3]
    await stand.propose(late)
    await stand.until("SELECT count(*) = 4 FROM sagas")
    asked = len(stand.asked)
    await asyncio.sleep(1.5)  # longer than the soak: nothing may be asked in this time
    assert len(stand.asked) == asked
    await turn(stand, stopped=False)
    await stand.until_completed([*changes, late], within_s=40)


async def turn(stand: Stand, *, stopped: bool) -> None:
    """As the portal does for a person who may."""
    ann = Principal("t-1", "acme", "ann", Role.ADMIN, None)
    portal = Decisions(stand.database, stand.publisher)
    await portal.turn_switch(ann, stopped=stopped, reason="drill", key=new_id())


async def test_old_marks_and_sent_rows_are_forgotten_and_nothing_else(stand: Stand) -> None:
    await stand.cast()
    await stand.coordinator()
    changes = proposals(2)
    await stand.propose(*changes)
    await stand.until_completed(changes, within_s=30)
    await stand.until("SELECT count(*) = 0 FROM outbox WHERE sent_seq IS NULL")
    assert await tidy(stand.database, keep_s=3_600) == 0
    async with stand.database.connection() as connection:
        await connection.execute("UPDATE inbox SET at = at - interval '40 days'")
        await connection.execute(
            "UPDATE outbox SET created_at = created_at - interval '40 days',"
            " sent_seq = CASE WHEN id = (SELECT min(id) FROM outbox) THEN NULL ELSE sent_seq END"
        )
    [before] = await stand.fetch("SELECT count(*) FROM event_log")
    assert await tidy(stand.database, keep_s=31 * 86_400) > 10
    [left] = await stand.fetch("SELECT count(*) AS n FROM inbox")
    assert left["n"] == 0
    assert len(await stand.fetch("SELECT 1 FROM outbox")) == 1
    [after] = await stand.fetch("SELECT count(*) FROM event_log")
    assert after == before


async def test_housekeeping_runs_by_itself(stand: Stand) -> None:
    async with stand.database.connection() as connection:
        await connection.execute(
            "INSERT INTO inbox (consumer, event_id, at)"
            " SELECT 'x', n::text, now() - interval '32 days' FROM generate_series(1, 12000) n"
        )
    await stand.coordinator(replace(BRISK, tidy_s=0.2))
    await stand.until("SELECT count(*) = 0 FROM inbox WHERE consumer = 'x'")
