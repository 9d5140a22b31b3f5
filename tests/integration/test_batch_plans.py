"""What a batch of the coordinator asks of PostgreSQL: planned once, no walk through what grows."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from optiinfra.storage.postgres.database import Database, open_database
from tests.factories import recommendation
from tests.integration.test_runner import AUTO, Story

PLANS = """
SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements
WHERE ltrim(statement, E'\\n') ~ '^WITH (received|log)'
"""
WALKS = """
SELECT relname, seq_scan FROM pg_stat_user_tables
WHERE relname IN ('event_log', 'inbox', 'recommendations', 'sagas', 'timers', 'votes')
"""


@pytest.fixture
async def alone(database: str) -> AsyncIterator[Database]:
    """The fresh database over one connection: it has the plans and the counts of all batches."""
    async with open_database(database, connections=1) as opened:
        yield opened


async def walks(postgres: Database) -> dict[str, int]:
    """How often each table was read from end to end so far."""
    async with postgres.connection() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        return {row["relname"]: row["seq_scan"] for row in await connection.fetch(WALKS)}


async def test_a_batch_never_walks_through_a_table(alone: Database) -> None:
    """Neither when it is small, nor with counted movers, rivals and timers that end."""
    story = Story(alone, AUTO.model_copy(update={"movers_per_hour": 99}))
    before = await walks(alone)
    for number in range(3):
        first, second = recommendation(number), recommendation(f"rival-{number}")
        await story.open(first)
        await story.open(second)
        await story.approve_by_vote(first)
    assert await walks(alone) == before


async def test_whatever_a_batch_writes_it_is_one_statement_planned_once(alone: Database) -> None:
    story = Story(alone)
    for number in range(4):
        proposal = recommendation(number, deployment=f"d-{number}")
        await story.open(proposal)
        await story.approve_by_vote(proposal)
        await story.play()
    async with alone.connection() as connection:
        plans = await connection.fetch(PLANS)
    assert len(plans) == 2
    assert [plan["custom_plans"] for plan in plans] == [0, 0]
    assert min(plan["generic_plans"] for plan in plans) > 20
