"""The policies that were in force, as the event log tells; the newest one is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from optiinfra.storage.postgres.database import Connection, Database


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """One recorded policy; `body` is its whole content as JSON, `written_at` its file's age."""

    number: int
    version: str
    sha256: str
    body: str
    by: str
    written_at: datetime
    at: datetime


async def newest_policy(connection: Connection, tenant: str) -> PolicyRecord | None:
    """The policy in force; None before the first one was recorded."""
    row = await connection.fetchrow(_NEWEST, tenant)
    return _record(row) if row is not None else None


async def policy_in_force(database: Database, tenant: str) -> PolicyRecord | None:
    """As `newest_policy`, by itself. Raises `Unavailable` without server."""
    async with database.connection() as connection:
        return await newest_policy(connection, tenant)


def _record(row: asyncpg.Record) -> PolicyRecord:
    return PolicyRecord(
        number=row["number"],
        version=row["version"],
        sha256=row["sha256"],
        body=row["body"],
        by=row["by"],
        written_at=row["written_at"],
        at=row["at"],
    )


_NEWEST = """
SELECT number, version, sha256, body, by, written_at, at FROM policies WHERE tenant = $1
ORDER BY number DESC LIMIT 1
"""
