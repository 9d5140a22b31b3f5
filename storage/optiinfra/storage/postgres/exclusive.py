"""A name that one process holds at a time, for as long as its connection lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from optiinfra.storage.postgres.database import LOST_CONNECTION, Database

_SEED = 13
"""Sets these locks apart from the others that PostgreSQL keeps by number."""


@asynccontextmanager
async def exclusive(database: Database, name: str) -> AsyncIterator[bool]:
    """Whether `name` is ours inside of the block; False where somebody else holds it.

    PostgreSQL lets go of it when the process or its connection ends. Raises `Unavailable`.
    """
    async with database.connection() as connection:
        held = await connection.fetchval(
            "SELECT pg_try_advisory_lock(hashtextextended($1, $2))", name, _SEED
        )
        try:
            yield bool(held)
        finally:
            if held:
                with suppress(*LOST_CONNECTION):  # PostgreSQL has let go of it then
                    await connection.execute(
                        "SELECT pg_advisory_unlock(hashtextextended($1, $2))", name, _SEED
                    )
