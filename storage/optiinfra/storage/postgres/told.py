"""What was told to a notification target: the marks of its consumer beside the event log."""

from __future__ import annotations

from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.queries import Row


class Told:
    """Reads. Raises `Unavailable` without server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def handled(self, tenant: str, consumer: str, *, limit: int) -> list[Row]:
        """A tenant's events that a consumer has handled, the latest first.

        What a rule has kept from the target was handled, too. Marks are kept for a while only.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(_HANDLED, tenant, consumer, limit)
        return [dict(row) for row in rows]


_HANDLED = """
SELECT e.event_id, e.type, i.at, r.id AS change, r.body::json ->> 'title' AS title,
    r.body::json ->> 'risk' AS risk,
    coalesce(r.body::json ->> 'deployment', e.body::json ->> 'deployment') AS deployment
FROM inbox i
JOIN event_log e ON e.event_id = i.event_id AND e.tenant = $1
LEFT JOIN recommendations r ON r.id = e.chain AND r.tenant = $1
WHERE i.consumer = $2 ORDER BY i.at DESC, e.position DESC LIMIT $3
"""
