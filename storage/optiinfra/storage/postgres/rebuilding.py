"""Builds the projections anew from the event log, beside those that stand, and compares them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import groupby

from optiinfra.events.envelope import Event
from optiinfra.storage.postgres.append import SagaRecord
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.events import LINK_COLUMNS, event_of
from optiinfra.storage.postgres.projections import project_in_turn, projected
from optiinfra.storage.postgres.together import run_together

CHUNK = 1_000


@dataclass(frozen=True, slots=True)
class Derived:
    """A table that follows from the log; `apart` are columns that do not, each for a reason."""

    table: str
    key: tuple[str, ...]
    apart: tuple[str, ...] = ()


DERIVED = (
    Derived("sagas", ("change_id",)),
    Derived("chain_heads", ("chain",)),
    Derived("recommendations", ("id",)),
    Derived("votes", ("event_id",)),
    Derived("approvals", ("event_id",)),
    Derived("outcomes", ("change_id",)),
    Derived("switches", ("tenant",)),
    Derived("policies", ("tenant", "number")),
    # Whether the broker knows a timer, or its turn has come early, is a matter of delivery.
    Derived("timers", ("change_id", "name"), ("scheduled", "nudged")),
    # Heartbeats are not kept in the log.
    Derived(
        "agents",
        ("tenant", "agent", "instance"),
        ("last_seen_at", "busy_with", "handled", "failed"),
    ),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what the log says; None where there is none."""

    table: str
    key: str
    stands: str | None
    derived: str | None


@dataclass(frozen=True, slots=True)
class ChangeRow(SagaRecord):
    """A saga as it follows from its log."""

    updated_at: datetime


class Rebuild:
    """One transaction in which nobody else decides; made with `rebuilding`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def chains(self) -> AsyncIterator[list[Link]]:
        """The links of one chain after the other, each in its order."""
        cursor = await self._connection.cursor(_LINKS)
        held: list[Link] = []
        while rows := await cursor.fetch(CHUNK):
            links = [Link(**dict(row)) for row in rows]
            for chain, group in groupby(links, key=lambda link: link.chain):
                if held and held[0].chain != chain:
                    yield held
                    held = []
                held += group
        if held:
            yield held

    async def project(self, links: Sequence[Link]) -> None:
        """Applies the events of one chain."""
        events: list[tuple[Event, datetime]] = [(event_of(link), link.at) for link in links]
        await run_together(self._connection, projected(events))
        await project_in_turn(self._connection, events)

    async def head(self, chain: str, version: int, digest: str) -> None:
        """Writes the end of a chain that belongs to no change."""
        await self._connection.execute(_HEAD, chain, version, digest)

    async def change(self, row: ChangeRow) -> None:
        """Writes the row of a change."""
        await self._connection.execute(_CHANGE, *(getattr(row, one.name) for one in fields(row)))

    async def differences(self, most: int = 20) -> list[Difference]:
        """Rows that stand otherwise than the log says, up to `most` of a table."""
        found: list[Difference] = []
        for one in DERIVED:
            rows = await self._connection.fetch(_compared(one), most)
            found += [Difference(one.table, *row) for row in rows]
        return found

    async def replace(self) -> None:
        """Puts what was derived in the place of what stands; what cannot be derived is kept."""
        for one in DERIVED:
            for statement in _replaced(one):
                await self._connection.execute(statement)


@asynccontextmanager
async def rebuilding(database: Database) -> AsyncIterator[Rebuild]:
    """Locks all coordinators out, and opens empty tables that hide those that stand.

    Raises `Unavailable` without server.
    """
    async with database.transaction() as connection:
        await connection.execute(_LOCK_ALL)
        for one in DERIVED:
            await connection.execute(
                f"CREATE TEMP TABLE {one.table} (LIKE public.{one.table} INCLUDING ALL)"
                " ON COMMIT DROP"
            )
        yield Rebuild(connection)
        for one in DERIVED:
            await connection.execute(f"DROP TABLE pg_temp.{one.table}")


def _row(one: Derived) -> str:
    apart = ", ".join(f"'{name}'" for name in one.apart)
    return f"(to_jsonb(t) - ARRAY[{apart}]::text[])::text"


def _compared(one: Derived) -> str:
    key = " || ' ' || ".join(f"t.{name}" for name in one.key)
    stands = f"SELECT {key} AS key, {_row(one)} AS row FROM public.{one.table} t"  # noqa: S608
    derived = f"SELECT {key} AS key, {_row(one)} AS row FROM pg_temp.{one.table} t"  # noqa: S608
    return (
        f"SELECT key, s.row AS stands, d.row AS derived FROM ({stands}) s"  # noqa: S608
        f" FULL JOIN ({derived}) d USING (key) WHERE s.row IS DISTINCT FROM d.row"
        " ORDER BY key LIMIT $1"
    )


def _replaced(one: Derived) -> Iterable[str]:
    if one.apart:
        same = " AND ".join(f"p.{name} = t.{name}" for name in one.key)
        kept = ", ".join(f"{name} = p.{name}" for name in one.apart)
        yield f"UPDATE pg_temp.{one.table} t SET {kept} FROM public.{one.table} p WHERE {same}"  # noqa: S608
    yield f"DELETE FROM public.{one.table}"  # noqa: S608
    yield f"INSERT INTO public.{one.table} SELECT * FROM pg_temp.{one.table}"  # noqa: S608


_LOCK_ALL = """
SELECT count(pg_advisory_xact_lock(hashtextextended(tenant, 7)))
FROM (SELECT DISTINCT tenant FROM event_log ORDER BY tenant) AS tenants
"""
_LINKS = f"SELECT {LINK_COLUMNS} FROM event_log ORDER BY chain, version"  # noqa: S608
_HEAD = "INSERT INTO chain_heads (chain, version, hash) VALUES ($1, $2, $3)"
_CHANGE = """
INSERT INTO sagas (change_id, tenant, deployment, state, version, hash, body, moving_since,
    opened_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""
