"""Questions about changes that other rooms ask."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from optiinfra.schemas.change import TERMINAL_STATES, ChangeState
from optiinfra.storage.postgres.database import Database


@dataclass(frozen=True, slots=True)
class ChangeSummary:
    """`ended_at` is None while the change is open."""

    id: str
    state: str
    ended_at: datetime | None


async def is_moving(database: Database, tenant: str, deployment: str) -> bool:
    """Whether a change is being carried out or undone on a deployment."""
    async with database.connection() as connection:
        found: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT 1 FROM sagas WHERE tenant = $1 AND deployment = $2"
            " AND state = ANY($3))",
            tenant,
            deployment,
            [ChangeState.EXECUTING.value, ChangeState.ROLLING_BACK.value],
        )
    return found


async def recent_changes(
    database: Database, tenant: str, deployment: str, kind: str, *, limit: int = 50
) -> list[ChangeSummary]:
    """The newest changes of one kind on one deployment."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT change_id, state, updated_at, state = ANY($4) AS ended FROM sagas"
            " JOIN recommendations ON recommendations.id = sagas.change_id"
            " WHERE sagas.tenant = $1 AND sagas.deployment = $2 AND kind = $3"
            " ORDER BY updated_at DESC LIMIT $5",
            tenant,
            deployment,
            kind,
            [state.value for state in TERMINAL_STATES],
            limit,
        )
    return [
        ChangeSummary(row["change_id"], row["state"], row["updated_at"] if row["ended"] else None)
        for row in rows
    ]
