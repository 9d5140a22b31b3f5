"""Proves the event log whole: every chain from its beginning to the head that is claimed for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from optiinfra.storage.postgres.chain import GENESIS, Break, first_break
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.events import chains, links_of_chain

LONG_CHAIN = 500
"""From this many links on, hashing goes to a thread so that the event loop stays free."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was walked, and each chain that does not hold."""

    chains: int
    events: int
    breaks: tuple[Break, ...]

    @property
    def ok(self) -> bool:
        return not self.breaks


async def verify(database: Database, tenant: str | None = None) -> Verification:
    """Walks all chains of a tenant (None: of everybody). Raises `Unavailable` without server."""
    heads = await chains(database, tenant)
    breaks = [
        Break(name, 0, "", "there is no head for this chain")
        for name in await _headless(database, {name for name, _, _ in heads}, tenant)
    ]
    events = 0
    for name, version, head_hash in heads:
        length, found = await _walk(database, name, (version, head_hash))
        events += length
        if found is not None:
            breaks.append(found)
    return Verification(len(heads), events, tuple(breaks))


async def _walk(database: Database, name: str, head: tuple[int, str]) -> tuple[int, Break | None]:
    links = await links_of_chain(database, name)
    if len(links) >= LONG_CHAIN:
        found = await asyncio.to_thread(first_break, links)
    else:
        found = first_break(links)
    if found is not None:
        return len(links), found
    last = (links[-1].version, links[-1].hash) if links else (0, GENESIS)
    if last != head:
        what = f"the log ends at version {last[0]}, its head claims version {head[0]}"
        return len(links), Break(name, last[0], links[-1].event_id if links else "", what)
    return len(links), None


async def _headless(database: Database, known: set[str], tenant: str | None) -> list[str]:
    async with database.connection() as connection:
        rows = await connection.fetch(
            "SELECT DISTINCT chain FROM event_log WHERE $1::text IS NULL OR tenant = $1", tenant
        )
    return sorted({row["chain"] for row in rows} - known)
