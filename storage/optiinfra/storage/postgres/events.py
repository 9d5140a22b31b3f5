"""Reads the event log: whole chains for replay and audit, pages for lists."""

from __future__ import annotations

from datetime import datetime

import asyncpg

from optiinfra.events.envelope import Event
from optiinfra.events.facts import FACT
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.database import Database

LINK_COLUMNS = (
    "event_id, tenant, chain, version, type, subject, source, at, said_at, correlation,"
    " causation, body, prev_hash, hash"
)


async def links_of_chain(database: Database, chain: str) -> list[Link]:
    """The links of one chain, in their order."""
    async with database.connection() as connection:
        rows = await connection.fetch(
            f"SELECT {LINK_COLUMNS} FROM event_log WHERE chain = $1 ORDER BY version",  # noqa: S608
            chain,
        )
    return [Link(**dict(row)) for row in rows]


async def log_of_chain(database: Database, chain: str) -> list[tuple[Event, datetime]]:
    """The events of one chain with the times at which they were taken in, to be folded."""
    return [(event_of(link), link.at) for link in await links_of_chain(database, chain)]


def event_of(link: Link, *, traceparent: str | None = None) -> Event:
    """The event that a link was made from; its trace is not kept in the log."""
    return Event(
        id=link.event_id,
        source=link.source,
        tenant=link.tenant,
        time=link.said_at,
        fact=FACT.validate_json(link.body),
        correlation=link.correlation,
        causation=link.causation,
        traceparent=traceparent,
    )


async def links_of_tenant(
    database: Database, tenant: str, since: datetime | None, most: int | None = None
) -> list[Link]:
    """The log of a tenant in its order: all of each chain that has begun since a time.

    With `most`, only so many of the first.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(_OF_TENANT, tenant, since, most)
    return [Link(**dict(row)) for row in rows]


async def chains(database: Database, tenant: str | None = None) -> list[tuple[str, int, str]]:
    """All chains with the version and hash that their heads claim (name, version, hash)."""
    async with database.connection() as connection:
        rows: list[asyncpg.Record] = await connection.fetch(
            "SELECT change_id AS chain, version, hash FROM sagas"
            " WHERE $1::text IS NULL OR tenant = $1"
            " UNION ALL SELECT chain, version, hash FROM chain_heads"
            " WHERE $1::text IS NULL OR chain = 'tenant-' || $1 ORDER BY chain",
            tenant,
        )
    return [(row["chain"], row["version"], row["hash"]) for row in rows]


_OF_TENANT = f"""
SELECT {LINK_COLUMNS} FROM event_log WHERE tenant = $1 AND (
    $2::timestamptz IS NULL OR chain LIKE 'tenant-%' OR chain IN (
        SELECT chain FROM event_log WHERE tenant = $1 AND version = 1 AND at >= $2
    )
) ORDER BY position LIMIT $3
"""  # noqa: S608 - constants
