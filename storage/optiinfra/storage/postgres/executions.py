"""Intents of executors: what makes a step happen at most once."""

from __future__ import annotations

import json
from typing import Any

from optiinfra.schemas.errors import Conflict
from optiinfra.schemas.execution import Intent
from optiinfra.schemas.rollout import Step
from optiinfra.storage.postgres.database import Database


class ExecutionLog:
    """Intents in PostgreSQL, unique on (change, kind, stage, attempt)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, change: str, step: Step, fence: int, captured: dict[str, Any]) -> Intent:
        """Writes the intent, or gives the one that stands.

        Raises `Conflict` when a higher fence of this change has been seen.
        """
        async with self._database.transaction() as connection:
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 11))", change
            )
            highest = await connection.fetchval(
                "SELECT max(fence) FROM executions WHERE change_id = $1", change
            )
            if highest is not None and highest > fence:
                raise Conflict(f"fence {fence} of change {change} is behind {highest}")
            inserted = await connection.fetchval(
                _BEGIN, change, *_key(step), fence, json.dumps(captured)
            )
            row = await connection.fetchrow(_INTENT, change, *_key(step))
            first = await connection.fetchval(_CAPTURED, change)
        assert row is not None
        return Intent(
            change=change,
            step=step,
            fence=row["fence"],
            captured=json.loads(first),
            result=json.loads(row["result"]) if row["result"] else None,
            fresh=inserted is not None,
        )

    async def finish(self, change: str, step: Step, result: dict[str, Any]) -> None:
        """Stores what was read back; repeating it changes nothing."""
        async with self._database.connection() as connection:
            await connection.execute(_FINISH, change, *_key(step), json.dumps(result))

    async def is_paused(self, change: str) -> bool:
        """Whether the change is held up now, as the coordinator has written it down."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_PAUSED, change))

    async def captured(self, change: str) -> dict[str, Any] | None:
        """What the first intent of the change captured; None when nothing was ever begun."""
        async with self._database.connection() as connection:
            found = await connection.fetchval(_CAPTURED, change)
        return json.loads(found) if found is not None else None


def _key(step: Step) -> tuple[str, int, int]:
    return step.kind.value, step.stage, step.attempt


_BEGIN = """
INSERT INTO executions (change_id, kind, stage, attempt, fence, captured)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb) ON CONFLICT DO NOTHING RETURNING 1
"""
_PAUSED = """
SELECT body::json ->> 'paused_by' IS NOT NULL FROM sagas WHERE change_id = $1
"""
_INTENT = """
SELECT fence, result::text FROM executions
WHERE change_id = $1 AND kind = $2 AND stage = $3 AND attempt = $4
"""
_CAPTURED = """
SELECT captured::text FROM executions WHERE change_id = $1 ORDER BY begun_at, fence LIMIT 1
"""
_FINISH = """
UPDATE executions SET result = $5::text::jsonb, finished_at = clock_timestamp()
WHERE change_id = $1 AND kind = $2 AND stage = $3 AND attempt = $4 AND result IS NULL
"""
