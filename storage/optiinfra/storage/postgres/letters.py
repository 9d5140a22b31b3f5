"""What was done with dead letters: written down, with an audit row, before it is done."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from optiinfra.schemas.errors import Conflict
from optiinfra.storage.postgres.database import Database


class LetterState(StrEnum):
    NEW = "new"
    RETRIED = "retried"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Dealt:
    """Who has done what with a letter, and why."""

    state: LetterState
    by: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Deed:
    """What is to be done with the letter `letter` (its event id) of a tenant."""

    letter: str
    tenant: str
    state: LetterState
    by: str
    reason: str
    subject: str


async def dealt_with(database: Database, letters: list[str]) -> dict[str, Dealt]:
    """What was done with each of these letters; without those that nobody has touched."""
    async with database.connection() as connection:
        rows = await connection.fetch(_DEALT, letters)
    return {
        row["letter"]: Dealt(LetterState(row["state"]), row["by"], row["reason"], row["at"])
        for row in rows
    }


@asynccontextmanager
async def dealing(database: Database, deed: Deed) -> AsyncIterator[None]:
    """Writes a deed down and audits it; both stand only if the block, which does it, succeeds.

    Raises `Conflict` when the letter was dealt with before.
    """
    async with database.transaction() as connection:
        first = await connection.fetchval(
            _DEAL, deed.letter, deed.state.value, deed.by, deed.reason
        )
        if first is None:
            found = await connection.fetchrow(_ONE, deed.letter)
            assert found is not None
            raise Conflict(
                f"the letter was {found['state']} by {found['by']} at {found['at']:%Y-%m-%d %H:%M}"
            )
        detail = json.dumps({"reason": deed.reason, "subject": deed.subject})
        action = f"letter.{deed.state.value}"
        await connection.execute(_AUDIT, deed.tenant, deed.by, action, deed.letter, detail)
        yield


_DEALT = "SELECT letter, state, by, reason, at FROM dead_letters WHERE letter = ANY($1)"
_ONE = "SELECT state, by, at FROM dead_letters WHERE letter = $1"
_DEAL = """
INSERT INTO dead_letters (letter, state, by, reason) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING 1
"""
_AUDIT = """
INSERT INTO audit (tenant, actor, action, target, allowed, detail)
VALUES ($1, $2, $3, $4, true, $5::text::jsonb)
"""
