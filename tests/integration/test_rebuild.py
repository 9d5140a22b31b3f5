"""Folding the log from nothing gives the tables that stand, byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from optiinfra.coordinator.rebuild import rebuild
from optiinfra.coordinator.runner import Runner
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.runtime.stores import now
from optiinfra.schemas.errors import Invariant, OptiInfraError
from optiinfra.schemas.vote import VOTERS, Verdict
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.rebuilding import DERIVED
from optiinfra.storage.postgres.verification import verify
from tests.factories import event, recommendation, rollout, step_result, vote
from tests.saga_log import AUTO


class Bus:
    def __init__(self) -> None:
        self.said: list[Event] = []

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        self.said += events
        return list(range(1, len(events) + 1))


@pytest.fixture
async def played(database: str) -> AsyncIterator[Database]:
    """Changes in many states, an agent, a switch and an outcome."""
    async with open_database(database) as opened:
        bus = Bus()
        runner = Runner(opened, bus, lambda: AUTO)

        async def hear(*facts: f.Fact) -> None:
            await runner.handle([event(fact) for fact in facts])

        for number in range(6):
            one = recommendation(number, deployment=f"d-{number}", rollout=rollout(1.0))
            one = one.model_copy(update={"rollout": one.rollout.model_copy(update={"gates": ()})})
            await hear(f.RecommendationProposed(recommendation=one))
            if number % 3 == 1:
                await hear(vote(one.id, "resource", Verdict.REJECT))
            if number % 3 == 2:
                await hear(*(vote(one.id, agent) for agent in VOTERS))
        full = recommendation("full", deployment="full", rollout=rollout(1.0))
        await hear(f.RecommendationProposed(recommendation=full))
        await hear(*(vote(full.id, agent) for agent in VOTERS))
        asked = [e.fact for e in bus.said if e.fact.kind == "execution.requested"]
        for one_step in asked:
            await hear(
                f.ExecutionStaged(
                    change=one_step.change, result=step_result(one_step.step, one_step.fence)
                )
            )
        await hear(
            f.AgentRegistered(
                tenant="acme",
                agent="cost",
                instance="one",
                version="1",
                capabilities=("propose",),
                at=now(),
            ),
            f.SwitchTurned(tenant="acme", stopped=True, by="person:ann", reason="drill", at=now()),
        )
        await hear(
            f.SwitchTurned(tenant="acme", stopped=False, by="person:ann", reason="over", at=now())
        )
        yield opened


async def dump(database: Database) -> dict[str, list[str]]:
    async with database.connection() as connection:
        return {
            one.table: [
                row[0]
                for row in await connection.fetch(
                    f"SELECT t::text FROM {one.table} t ORDER BY t::text"
                )
            ]
            for one in DERIVED
        }


async def test_nothing_differs_and_nothing_changes(played: Database) -> None:
    before = await dump(played)
    assert {table for table, rows in before.items() if rows} >= {
        "sagas", "chain_heads", "recommendations", "votes", "approvals", "switches", "timers",
        "agents",
    }  # fmt: skip
    found = await rebuild(played, check=True)
    assert found.differences == ()
    assert found.chains == 8
    await rebuild(played)
    assert await dump(played) == before
    assert (await verify(played)).ok


async def test_tables_that_are_gone_come_back_byte_for_byte(played: Database) -> None:
    before = await dump(played)
    async with played.connection() as connection:
        for one in DERIVED:
            if not one.apart:
                await connection.execute(f"DELETE FROM {one.table}")
    found = await rebuild(played)
    assert len(found.differences) > 10
    assert await dump(played) == before


async def test_a_row_that_was_altered_is_told_and_mended(played: Database) -> None:
    async with played.connection() as connection:
        await connection.execute(
            "UPDATE approvals SET reason = 'forged' WHERE event_id ="
            " (SELECT min(event_id) FROM approvals)"
        )
    [difference] = (await rebuild(played, check=True)).differences
    assert difference.table == "approvals"
    assert "forged" in (difference.stands or "")
    assert "forged" not in (difference.derived or "")
    await rebuild(played)
    assert (await rebuild(played, check=True)).differences == ()


async def test_a_broken_chain_is_not_folded_unless_told_to(played: Database) -> None:
    async with played.connection() as connection:
        await connection.execute("UPDATE event_log SET source = 'x' WHERE version = 3")
    before = await dump(played)
    with pytest.raises(Invariant, match="is broken at version 3"):
        await rebuild(played)
    assert await dump(played) == before
    assert (await rebuild(played, force=True)).differences == ()
