"""Forgets what only served delivery: old marks of the inbox, old rows of the outbox."""

from __future__ import annotations

from optiinfra.storage.postgres.database import Database


async def forget_received(database: Database, *, older_than_s: float, limit: int) -> int:
    """Removes up to `limit` inbox marks older than `older_than_s` seconds; gives how many."""
    return await _count(database, _RECEIVED, older_than_s, limit)


async def forget_sent(database: Database, *, older_than_s: float, limit: int) -> int:
    """Removes up to `limit` outbox rows that were sent and are that old; gives how many.

    What was never acknowledged stays, however old.
    """
    return await _count(database, _SENT, older_than_s, limit)


async def _count(database: Database, statement: str, older_than_s: float, limit: int) -> int:
    async with database.connection() as connection:
        done: str = await connection.execute(statement, older_than_s, limit)
    return int(done.rpartition(" ")[2])


_RECEIVED = """
DELETE FROM inbox WHERE (consumer, event_id) IN (
    SELECT consumer, event_id FROM inbox
    WHERE at < clock_timestamp() - make_interval(secs => $1) LIMIT $2
)
"""
_SENT = """
DELETE FROM outbox WHERE id IN (
    SELECT id FROM outbox WHERE sent_seq IS NOT NULL
    AND created_at < clock_timestamp() - make_interval(secs => $1) ORDER BY id LIMIT $2
)
"""
