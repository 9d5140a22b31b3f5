"""What a batch of the coordinator asks of PostgreSQL: planned once, no walk through what grows."""

from __future__ import annotations

from optiinfra.storage.postgres.database import Connection, Database, open_database
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


async def walks(connection: Connection) -> dict[str, int]:
    """How often each table was read from end to end so far, by this connection and the others."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    rows = await connection.fetch(WALKS)
    return {row["relname"]: row["seq_scan"] for row in rows}


async def test_a_batch_never_walks_through_a_table(postgres: Database) -> None:
    """Neither when it is small, nor with counted movers, rivals and timers that end."""
    story = Story(postgres, AUTO.model_copy(update={"movers_per_hour": 99}))
    async with postgres.connection() as connection:
        before = await walks(connection)
    for number in range(3):
        first, second = recommendation(number), recommendation(f"rival-{number}")
        await story.open(first)
        await story.open(second)
        await story.approve_by_vote(first)
    async with postgres.connection() as connection:
        assert await walks(connection) == before


async def test_whatever_a_batch_writes_it_is_one_statement_planned_once(database: str) -> None:
    async with open_database(database, connections=1) as postgres:
        story = Story(postgres)
        for number in range(4):
            proposal = recommendation(number, deployment=f"d-{number}")
            await story.open(proposal)
            await story.approve_by_vote(proposal)
            await story.play()
        async with postgres.connection() as connection:
            plans = await connection.fetch(PLANS)
    assert len(plans) == 2
    assert [plan["custom_plans"] for plan in plans] == [0, 0]
    assert min(plan["generic_plans"] for plan in plans) > 20
