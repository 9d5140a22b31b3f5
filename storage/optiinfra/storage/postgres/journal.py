"""The coordinator's transaction: inbox, event log, saga rows, outbox, timers, projections."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg

from optiinfra.events.envelope import Event
from optiinfra.events.facts import FACT
from optiinfra.schemas.errors import Conflict, Invariant, Rejected, Unavailable
from optiinfra.schemas.ids import token
from optiinfra.storage.postgres.append import (
    SagaRecord,
    SagaWrite,
    append,
    append_changes,
    record_of,
)
from optiinfra.storage.postgres.chain import GENESIS, Link
from optiinfra.storage.postgres.database import LOST_CONNECTION, Connection, Database
from optiinfra.storage.postgres.policies import PolicyRecord, newest_policy
from optiinfra.storage.postgres.projections import project_in_turn
from optiinfra.storage.postgres.recent import RuleCount, approvals_by_rule
from optiinfra.storage.postgres.view import Moving, Question, View, look


class Journal:
    """Opens batches; one batch is one transaction, and serial with others of its tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def batch(
        self, tenants: Iterable[str], asked: Question | None = None
    ) -> AsyncIterator[Batch]:
        """A batch of these tenants; its `view` is there when something was `asked`.

        Raises `Conflict` when another coordinator was faster, `Unavailable` without server."""
        try:
            async with self._database.connection() as connection:
                await connection.execute(_begin(tenants))
                try:
                    yield await _opened(connection, asked)
                    await connection.execute("COMMIT")
                except BaseException:
                    await _roll_back(connection)
                    raise
        except _RACED as raced:
            raise Conflict(f"another coordinator was faster: {raced}") from raced


_RACED = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,
)


def _begin(tenants: Iterable[str]) -> str:
    """One round trip for the transaction and the locks of its tenants, always in one order."""
    locks = (
        f"SELECT pg_advisory_xact_lock(hashtextextended('{token(tenant)}', 7))"
        for tenant in sorted(set(tenants))
    )
    return ";".join((_BEGIN, *locks))


async def _roll_back(connection: Connection) -> None:
    """A connection that is lost has rolled back by itself."""
    with contextlib.suppress(*LOST_CONNECTION):
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")


async def _opened(connection: Connection, asked: Question | None) -> Batch:
    if asked is None:
        return Batch(connection, await connection.fetchval(_CLOCK))
    view = await look(connection, asked)
    return Batch(connection, view.now, view)


class Batch:
    """One transaction of the coordinator; `now` is the database's clock, which alone decides."""

    def __init__(self, connection: Connection, now: datetime, view: View | None = None) -> None:
        self._connection = connection
        self._view = view
        self.now = now

    @property
    def view(self) -> View:
        """What was asked for when the batch was opened."""
        if self._view is None:
            raise Invariant("this batch was opened without a question")
        return self._view

    async def forget(self, consumer: str, event_ids: Sequence[str]) -> None:
        """Takes marks back: what failed may come again from the dead letters."""
        if event_ids:
            await self._connection.execute(_FORGET, consumer, list(event_ids))

    async def reused(self, repeated: Sequence[Event]) -> dict[str, Rejected]:
        """Those that say something else than what the log holds under the same id."""
        if not repeated:
            return {}
        rows = await self._connection.fetch(_LOGGED, [event.id for event in repeated])
        logged = {row["event_id"]: (row["tenant"], row["body"]) for row in rows}
        return {
            event.id: Rejected(f"{event.type}: the log holds another event under {event.id}")
            for event in repeated
            if event.id in logged and not _same(event, *logged[event.id])
        }

    async def sagas(self, changes: Sequence[str]) -> dict[str, SagaRecord]:
        """The rows of more changes than were asked for at the beginning."""
        rows = await self._connection.fetch(_SAGAS, list(changes))
        return {row["change_id"]: record_of(dict(row)) for row in rows}

    async def moving(self, tenants: Sequence[str]) -> list[Moving]:
        """Changes of these tenants that hold their targets now."""
        rows = await self._connection.fetch(_MOVING, list(tenants))
        return [Moving(r["change_id"], r["tenant"], r["deployment"], r["state"]) for r in rows]

    async def approvals_by_rule(self, tenants: Sequence[str]) -> list[RuleCount]:
        """How often each rule of the policy approved in the last hour and day."""
        return await approvals_by_rule(self._connection, tenants)

    async def newest_policy(self, tenant: str) -> PolicyRecord | None:
        """The policy that is in force; None before the first one was recorded."""
        return await newest_policy(self._connection, tenant)

    async def nudge_all(self, tenant: str) -> None:
        """Lets every waiting change of the tenant look again now."""
        await self._connection.execute(_NUDGE_ALL, tenant)

    async def waiting(self, tenant: str, deployment: str | None) -> list[SagaRecord]:
        """Deferred changes of a target (None: of all the tenant's targets), oldest first."""
        rows = await self._connection.fetch(_WAITING, tenant, deployment)
        return [record_of(dict(row)) for row in rows]

    async def nudge(self, change: str) -> None:
        """Lets a waiting change's turn come now instead of at its next retry."""
        await self._connection.execute(_NUDGE, change)

    async def write(self, writes: Mapping[str, SagaWrite]) -> dict[str, str]:
        """Appends to the chains, saves the rows, fills outbox, timers and projections.

        Gives the hash of the new head of each chain. Raises `Conflict` when a row is no longer at
        the version that was read.
        """
        if not writes:
            return {}
        chains = {change: list(chained(write, self.now)) for change, write in writes.items()}
        await append_changes(self._connection, writes, chains, self.now)
        return {change: links[-1].hash for change, links in chains.items()}

    async def write_tenant_events(self, events: Sequence[Event], own_source: str) -> None:
        """Appends events that belong to no change to their tenants' chains.

        Those from `own_source` are ours to publish and go through the outbox.
        """
        for event in events:
            chain = f"tenant-{event.tenant}"
            head = await self._connection.fetchrow(_HEAD, chain)
            version, prev = (head["version"], head["hash"]) if head else (0, GENESIS)
            link = link_of(event, chain, version + 1, prev, self.now)
            await self._connection.execute(_SET_HEAD, chain, link.version, link.hash)
            await append(self._connection, [link], [event] if event.source == own_source else [])
        await project_in_turn(self._connection, ((event, self.now) for event in events))


def _same(event: Event, tenant: str, body: str) -> bool:
    """By meaning, not by text: another version may write more fields."""
    if event.tenant != tenant:
        return False
    return event.body == body or FACT.validate_json(body) == event.fact


def link_of(event: Event, chain: str, version: int, prev_hash: str, at: datetime) -> Link:
    """The link that an event becomes when it is written at `at`."""
    link = Link(
        event_id=event.id,
        tenant=event.tenant,
        chain=chain,
        version=version,
        type=event.type,
        subject=event.subject,
        source=event.source,
        at=at,
        said_at=event.time,
        correlation=event.correlation,
        causation=event.causation,
        body=event.body,
        prev_hash=prev_hash,
    )
    return link.sealed()


def chained(write: SagaWrite, at: datetime) -> Iterable[Link]:
    """The links that a write's entries become at `at`."""
    version, prev = write.base.version, write.base.hash
    for entry in write.entries:
        link = link_of(entry.event, write.base.change, version + 1, prev, at)
        version, prev = link.version, link.hash
        yield link


async def require_journal(database: Database) -> None:
    """Raises `Unavailable` when the tables are not there yet."""
    async with database.connection() as connection:
        if await connection.fetchval("SELECT to_regclass('event_log')") is None:
            raise Unavailable("the database has no tables", hint="run `optiinfra migrate`")


_BEGIN = (
    "BEGIN; SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_seqscan = off;"
    " SET LOCAL enable_hashjoin = off"
)
"""A batch's statements find a few rows of tables that grow: each is planned once a connection, and
for indexes, also while a table is small or nobody has counted its rows yet. Planning costs more
than running them, and a plan from quiet times would walk through all timers for each batch."""
_CLOCK = "SELECT clock_timestamp()"
_LOGGED = "SELECT event_id, tenant, body FROM event_log WHERE event_id = ANY($1)"
_FORGET = "DELETE FROM inbox WHERE consumer = $1 AND event_id = ANY($2)"
_SAGA_COLUMNS = "change_id, tenant, deployment, state, version, hash, body, moving_since, opened_at"
_SAGAS = f"SELECT {_SAGA_COLUMNS} FROM sagas WHERE change_id = ANY($1)"  # noqa: S608
_MOVING = """
SELECT change_id, tenant, deployment, state FROM sagas WHERE tenant = ANY($1)
AND state IN ('voting', 'awaiting_approval', 'approved', 'executing', 'rolling_back')
"""
_WAITING = f"""
SELECT {_SAGA_COLUMNS} FROM sagas WHERE tenant = $1 AND state = 'deferred'
AND ($2::text IS NULL OR deployment = $2)
ORDER BY opened_at
"""  # noqa: S608 - a constant
_NUDGE = """
UPDATE timers SET nudged = true WHERE change_id = $1 AND name = 'turn'
"""
_NUDGE_ALL = """
UPDATE timers SET nudged = true WHERE tenant = $1 AND name = 'turn'
"""
_HEAD = "SELECT version, hash FROM chain_heads WHERE chain = $1 FOR UPDATE"
_SET_HEAD = """
INSERT INTO chain_heads (chain, version, hash) VALUES ($1, $2, $3)
ON CONFLICT (chain) DO UPDATE SET version = $2, hash = $3
"""
