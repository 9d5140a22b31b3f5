"""Proves the event log whole: every chain from its beginning to the head that is claimed for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from optiinfra.storage.postgres.chain import Break, Walker
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.events import LINK_COLUMNS

CHUNK = 2_000
"""Links in memory at once; as many are read ahead while these are hashed."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was walked, and each chain that does not hold: the earliest break in the log first."""

    chains: int
    events: int
    breaks: tuple[Break, ...]

    @property
    def ok(self) -> bool:
        return not self.breaks


async def verify(database: Database, tenant: str | None = None) -> Verification:
    """Walks all chains of a tenant (None: of everybody), with a bounded part of them in memory.

    All is read as of one moment, also while events are appended. Raises `Unavailable` without
    server.
    """
    walker, heads = Walker(), _Heads()
    async with (
        database.connection() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        async for rows in _chunks(connection, tenant):
            await asyncio.to_thread(walker.walk, rows)
            await heads.compare(connection, walker.ends)
        walker.finish()
        await heads.compare(connection, walker.ends)
        headless = [Break(*row) for row in await connection.fetch(_EMPTY, tenant)]
    found = [*walker.breaks, *heads.breaks, *headless]
    return Verification(
        walker.chains, walker.events, tuple(sorted(found, key=lambda one: one.position))
    )


async def _chunks(
    connection: Connection, tenant: str | None
) -> AsyncIterator[Sequence[Sequence[Any]]]:
    cursor = await connection.cursor(_LINKS if tenant is None else _LINKS_OF_TENANT, *_one(tenant))
    while rows := await cursor.fetch(CHUNK):
        yield cast("Sequence[Sequence[Any]]", rows)


def _one(tenant: str | None) -> tuple[str, ...]:
    return () if tenant is None else (tenant,)


class _Heads:
    """Compares where chains ended with the heads that are kept for them."""

    def __init__(self) -> None:
        self.breaks: list[Break] = []

    async def compare(self, connection: Connection, ends: dict[str, tuple[int, str]]) -> None:
        """Takes the ends out."""
        if not ends:
            return
        rows = await connection.fetch(_HEADS, list(ends))
        heads: Mapping[str, tuple[int, str]] = {row[0]: (row[1], row[2]) for row in rows}
        for chain, (version, end) in ends.items():
            head = heads.get(chain)
            if head is None:
                self.breaks.append(Break(chain, 0, "", "there is no head for this chain"))
            elif head[0] != version:
                what = f"the log ends at version {version}, its head claims version {head[0]}"
                self.breaks.append(Break(chain, version, "", what))
            elif head[1] != end:
                what = "the head names another hash than the last event"
                self.breaks.append(Break(chain, version, "", what))
        ends.clear()


_LINKS = f"SELECT {LINK_COLUMNS}, position FROM event_log ORDER BY chain, version"  # noqa: S608
_LINKS_OF_TENANT = f"""
SELECT {LINK_COLUMNS}, position FROM event_log WHERE tenant = $1 ORDER BY chain, version
"""  # noqa: S608 - constants
_HEADS = """
SELECT change_id, version, hash FROM sagas WHERE change_id = ANY($1)
UNION ALL SELECT chain, version, hash FROM chain_heads WHERE chain = ANY($1)
"""
_EMPTY = """
SELECT chain, 0, '', 'its head claims version ' || version || ', the log has nothing of it', 0
FROM (
    SELECT change_id AS chain, version FROM sagas WHERE $1::text IS NULL OR tenant = $1
    UNION ALL SELECT chain, version FROM chain_heads
    WHERE $1::text IS NULL OR chain = 'tenant-' || $1
) AS heads
WHERE NOT EXISTS (SELECT 1 FROM event_log WHERE event_log.chain = heads.chain)
"""
