"""What was proposed, as it was said."""

from __future__ import annotations

from optiinfra.schemas.recommendation import Recommendation
from optiinfra.storage.postgres.asleep import ASLEEP
from optiinfra.storage.postgres.database import Database


class Proposals:
    """Reads recommendations. Raises `Unavailable` without server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def proposal(self, tenant: str, change: str) -> Recommendation | None:
        """That of a tenant's change; None when there is none (yet)."""
        async with self._database.connection() as connection:
            body = await connection.fetchval(_PROPOSAL, change, tenant)
        return None if body is None else Recommendation.model_validate_json(body)

    async def is_asleep(self, tenant: str, change: str) -> bool:
        """Whether a person has put the decision on a tenant's change off until later than now."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(_IS_ASLEEP, change, tenant))


_PROPOSAL = "SELECT body FROM recommendations WHERE id = $1 AND tenant = $2"
_IS_ASLEEP = f"SELECT {ASLEEP} FROM sagas s WHERE change_id = $1 AND tenant = $2"  # noqa: S608
