"""What a consumer has handled, so that a redelivery has no second effect."""

from __future__ import annotations

from optiinfra.storage.postgres.database import Database


class PostgresInbox:
    """For consumers whose effect lies outside the database: asked before, marked after."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def seen(self, consumer: str, event_id: str) -> bool:
        async with self._database.connection() as connection:
            found = await connection.fetchval(
                "SELECT 1 FROM inbox WHERE consumer = $1 AND event_id = $2", consumer, event_id
            )
        return found is not None

    async def mark(self, consumer: str, event_id: str) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "INSERT INTO inbox (consumer, event_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                consumer,
                event_id,
            )
