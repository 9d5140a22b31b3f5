"""The coordinator's transaction: inbox, event log, saga rows, outbox, timers, projections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg

from optiinfra.events.envelope import Event
from optiinfra.events.subjects import row_of
from optiinfra.schemas.errors import Conflict, Unavailable
from optiinfra.storage.postgres.chain import GENESIS, Link
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.projections import project


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """A saga row; `body` is the saga as JSON, which only the coordinator understands.

    `version` and `hash` are those of the last link of the change's chain.
    """

    change: str
    tenant: str
    deployment: str | None
    state: str
    version: int
    hash: str
    body: str
    moving_since: datetime | None
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Moving:
    """A change that holds its target, as `World` needs it."""

    change: str
    tenant: str
    deployment: str | None
    state: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An event as it goes into the log; `said` ones are published through the outbox too."""

    event: Event
    said: bool


@dataclass(slots=True)
class SagaWrite:
    """What one batch did to one change: the new row, and the entries since `base`."""

    base: SagaRecord
    state: str
    deployment: str | None
    body: str
    moving_since: datetime | None
    entries: list[LogEntry] = field(default_factory=list)


class Journal:
    """Opens batches; one batch is one transaction, and serial with others of its tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def batch(self, tenants: Iterable[str]) -> AsyncIterator[Batch]:
        """Raises `Conflict` when another coordinator was faster, `Unavailable` without server."""
        try:
            async with self._database.transaction() as connection:
                await connection.execute(_LOCK_TENANTS, sorted(set(tenants)))
                now: datetime = await connection.fetchval("SELECT clock_timestamp()")
                yield Batch(connection, now)
        except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError) as raced:
            raise Conflict(f"another coordinator was faster: {raced}") from raced


class Batch:
    """One transaction of the coordinator; `now` is the database's clock, which alone decides."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self.now = now

    async def fresh(self, consumer: str, event_ids: Sequence[str]) -> set[str]:
        """Marks events as received; gives those that were not received before."""
        rows = await self._connection.fetch(_INBOX, consumer, list(event_ids))
        return {row["event_id"] for row in rows}

    async def forget(self, consumer: str, event_ids: Sequence[str]) -> None:
        """Takes marks back: what failed may come again from the dead letters."""
        if event_ids:
            await self._connection.execute(_FORGET, consumer, list(event_ids))

    async def sagas(self, changes: Sequence[str]) -> dict[str, SagaRecord]:
        rows = await self._connection.fetch(_SAGAS, list(changes))
        return {row["change_id"]: _record(row) for row in rows}

    async def moving(self, tenants: Sequence[str]) -> list[Moving]:
        """Changes of these tenants that hold their targets now."""
        rows = await self._connection.fetch(_MOVING, list(tenants))
        return [Moving(r["change_id"], r["tenant"], r["deployment"], r["state"]) for r in rows]

    async def moved_last_hour(self, tenants: Sequence[str]) -> dict[str, int]:
        rows = await self._connection.fetch(_MOVED, list(tenants))
        return {row["tenant"]: row["n"] for row in rows}

    async def stopped(self, tenants: Sequence[str]) -> set[str]:
        """The tenants whose stop switch is on."""
        rows = await self._connection.fetch(_STOPPED, list(tenants))
        return {row["tenant"] for row in rows}

    async def waiting(self, tenant: str, deployment: str | None) -> list[SagaRecord]:
        """Deferred changes of a target (None: of all the tenant's targets), oldest first."""
        rows = await self._connection.fetch(_WAITING, tenant, deployment)
        return [_record(row) for row in rows]

    async def nudge(self, change: str) -> None:
        """Lets a waiting change's turn come now instead of at its next retry."""
        await self._connection.execute(_NUDGE, change)

    async def write(self, writes: Mapping[str, SagaWrite]) -> None:
        """Appends to the chains, saves the rows, fills outbox, timers and projections.

        Raises `Conflict` when a row is no longer at the version that was read.
        """
        if not writes:
            return
        links: list[tuple[Link, LogEntry]] = []
        heads: dict[str, Link] = {}
        for change, write in writes.items():
            chained = list(_chained(write, self.now))
            links.extend(zip(chained, write.entries, strict=True))
            heads[change] = chained[-1]
        await self._save_rows(writes, heads)
        await self._append(links)
        await project(self._connection, [entry.event for _, entry in links])

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
            await self._append([(link, LogEntry(event, said=event.source == own_source))])
        await project(self._connection, events)

    async def _append(self, links: Sequence[tuple[Link, LogEntry]]) -> None:
        await self._connection.executemany(_LOG, [_log_row(link) for link, _ in links])
        said = [_outbox_row(entry.event) for _, entry in links if entry.said]
        if said:
            await self._connection.executemany(_OUTBOX, said)

    async def _save_rows(self, writes: Mapping[str, SagaWrite], heads: Mapping[str, Link]) -> None:
        new = [w for w in writes.values() if w.base.version == 0]
        old = [w for w in writes.values() if w.base.version > 0]
        for statement, group in ((_INSERT_SAGAS, new), (_UPDATE_SAGAS, old)):
            if not group:
                continue
            columns = zip(
                *(_saga_row(w, heads[w.base.change], self.now) for w in group), strict=True
            )
            done = await self._connection.fetch(statement, *(list(c) for c in columns))
            if len(done) != len(group):
                raise Conflict("another coordinator has moved a change on", hint="try again")


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
        body=event.fact.model_dump_json(),
        prev_hash=prev_hash,
    )
    return Link(**{**{n: getattr(link, n) for n in link.__slots__}, "hash": link.computed_hash()})


def _chained(write: SagaWrite, at: datetime) -> Iterable[Link]:
    version, prev = write.base.version, write.base.hash
    for entry in write.entries:
        link = link_of(entry.event, write.base.change, version + 1, prev, at)
        version, prev = link.version, link.hash
        yield link


def _record(row: asyncpg.Record) -> SagaRecord:
    return SagaRecord(
        change=row["change_id"],
        tenant=row["tenant"],
        deployment=row["deployment"],
        state=row["state"],
        version=row["version"],
        hash=row["hash"],
        body=row["body"],
        moving_since=row["moving_since"],
        opened_at=row["opened_at"],
    )


def _saga_row(write: SagaWrite, head: Link, now: datetime) -> tuple[object, ...]:
    base = write.base
    return (
        base.change,
        base.tenant,
        write.deployment,
        write.state,
        head.version,
        head.hash,
        write.body,
        write.moving_since,
        base.opened_at,
        now,
        base.version,
    )


def _outbox_row(event: Event) -> tuple[str, str, str]:
    stream = row_of(event.fact).stream
    return event.id, stream.value if stream else "", event.model_dump_json()


def _log_row(link: Link) -> tuple[object, ...]:
    return (
        link.event_id,
        link.tenant,
        link.chain,
        link.version,
        link.type,
        link.subject,
        link.source,
        link.at,
        link.said_at,
        link.correlation,
        link.causation,
        link.body,
        link.prev_hash,
        link.hash,
    )


async def publishable(database: Database, *, limit: int, older_than_s: float) -> list[Event]:
    """What stands in the outbox unsent for `older_than_s` seconds, oldest first."""
    async with database.transaction() as connection:
        rows = await connection.fetch(_UNSENT, limit, older_than_s)
    return [Event.model_validate_json(row["event"]) for row in rows]


async def mark_sent(database: Database, sent: Mapping[str, int]) -> None:
    """Stores the stream sequences that the broker has acknowledged."""
    if not sent:
        return
    async with database.connection() as connection:
        await connection.execute(_SENT, list(sent), list(sent.values()))


async def unsent_count(database: Database) -> int:
    """How many events wait in the outbox."""
    async with database.connection() as connection:
        count: int = await connection.fetchval("SELECT count(*) FROM outbox WHERE sent_seq IS NULL")
    return count


async def sent_after(database: Database, sequence: int, limit: int) -> list[Event]:
    """Events whose ack named a stream sequence above `sequence`: a broker that does not have
    them any more has lost them. Timers live in a stream of their own and are swept anyway.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(_SENT_AFTER, sequence, limit)
    return [Event.model_validate_json(row["event"]) for row in rows]


async def require_journal(database: Database) -> None:
    """Raises `Unavailable` when the tables are not there yet."""
    async with database.connection() as connection:
        if await connection.fetchval("SELECT to_regclass('event_log')") is None:
            raise Unavailable("the database has no tables", hint="run `optiinfra migrate`")


_LOCK_TENANTS = """
SELECT pg_advisory_xact_lock(hashtextextended(name, 7)) FROM unnest($1::text[]) AS name
"""
_INBOX = """
INSERT INTO inbox (consumer, event_id) SELECT $1, id FROM unnest($2::text[]) AS id
ON CONFLICT DO NOTHING RETURNING event_id
"""
_FORGET = "DELETE FROM inbox WHERE consumer = $1 AND event_id = ANY($2)"
_SAGA_COLUMNS = "change_id, tenant, deployment, state, version, hash, body, moving_since, opened_at"
_SAGAS = f"""
SELECT {_SAGA_COLUMNS} FROM sagas WHERE change_id = ANY($1) ORDER BY change_id FOR UPDATE
"""  # noqa: S608 - a constant
_MOVING = """
SELECT change_id, tenant, deployment, state FROM sagas WHERE tenant = ANY($1)
AND state IN ('voting', 'awaiting_approval', 'approved', 'executing', 'rolling_back')
"""
_MOVED = """
SELECT tenant, count(*) AS n FROM sagas WHERE tenant = ANY($1)
AND moving_since > clock_timestamp() - interval '1 hour' GROUP BY tenant
"""
_STOPPED = "SELECT tenant FROM switches WHERE tenant = ANY($1) AND stopped"
_WAITING = f"""
SELECT {_SAGA_COLUMNS} FROM sagas WHERE tenant = $1 AND state = 'deferred'
AND ($2::text IS NULL OR deployment = $2)
ORDER BY opened_at
"""  # noqa: S608 - a constant
_NUDGE = """
UPDATE timers SET fire_at = clock_timestamp() WHERE change_id = $1 AND name = 'turn'
"""
_INSERT_SAGAS = """
INSERT INTO sagas (change_id, tenant, deployment, state, version, hash, body, moving_since,
    opened_at, updated_at)
SELECT a, b, c, d, e, f, g, h, i, j FROM unnest($1::text[], $2::text[], $3::text[], $4::text[],
    $5::int[], $6::text[], $7::text[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[],
    $11::int[]) AS n(a, b, c, d, e, f, g, h, i, j, k)
ON CONFLICT DO NOTHING RETURNING change_id
"""
_UPDATE_SAGAS = """
UPDATE sagas SET deployment = n.c, state = n.d, version = n.e, hash = n.f, body = n.g,
    moving_since = n.h, updated_at = n.j
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::int[], $6::text[], $7::text[],
    $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::int[])
    AS n(a, b, c, d, e, f, g, h, i, j, k)
WHERE sagas.change_id = n.a AND sagas.version = n.k RETURNING change_id
"""
_HEAD = "SELECT version, hash FROM chain_heads WHERE chain = $1 FOR UPDATE"
_SET_HEAD = """
INSERT INTO chain_heads (chain, version, hash) VALUES ($1, $2, $3)
ON CONFLICT (chain) DO UPDATE SET version = $2, hash = $3
"""
_LOG = """
INSERT INTO event_log (event_id, tenant, chain, version, type, subject, source, at, said_at,
    correlation, causation, body, prev_hash, hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""
_OUTBOX = "INSERT INTO outbox (event_id, stream, event) VALUES ($1, $2, $3)"
_UNSENT = """
SELECT event FROM outbox WHERE sent_seq IS NULL
AND created_at <= clock_timestamp() - make_interval(secs => $2)
ORDER BY id LIMIT $1
"""
_SENT_AFTER = """
SELECT event FROM outbox WHERE sent_seq > $1 AND stream = 'CHANGES'
ORDER BY id LIMIT $2
"""
_SENT = """
UPDATE outbox SET sent_seq = n.seq FROM unnest($1::text[], $2::bigint[]) AS n(id, seq)
WHERE outbox.event_id = n.id
"""
