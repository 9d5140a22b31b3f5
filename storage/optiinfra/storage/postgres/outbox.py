"""The outbox: what is to be published, and the sequences at which it was acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import asyncpg

from optiinfra.events.envelope import Event
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.events import LINK_COLUMNS, event_of


@asynccontextmanager
async def unsent(
    database: Database, *, limit: int, older_than_s: float
) -> AsyncIterator[tuple[list[Event], dict[str, int]]]:
    """What stands in the outbox unsent for `older_than_s` seconds, oldest first.

    The events are ours alone until the block ends; what is put into the mapping by then (id to
    stream sequence) is marked as sent.
    """
    async with database.transaction() as connection:
        rows = await connection.fetch(_UNSENT, limit, older_than_s)
        sent: dict[str, int] = {}
        yield [event_in(row) for row in rows], sent
        if sent:
            await connection.execute(_SENT, list(sent), list(sent.values()))


def event_in(row: asyncpg.Record) -> Event:
    """An event of the outbox: what we said ourselves stands in the log, once."""
    if row["event"] is not None:
        return Event.model_validate_json(row["event"])
    columns = dict(row)
    del columns["event"], columns["row"]
    traceparent = columns.pop("traceparent")
    return event_of(Link(**columns), traceparent=traceparent)


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


OUTBOX_EVENTS = f"""
SELECT o.id AS row, o.event, o.traceparent, {LINK_COLUMNS}
FROM outbox o LEFT JOIN event_log USING (event_id)
"""  # noqa: S608 - constants
_UNSENT = f"""
{OUTBOX_EVENTS} WHERE o.sent_seq IS NULL AND coalesce(o.event, body) IS NOT NULL
AND o.created_at <= clock_timestamp() - make_interval(secs => $2)
ORDER BY o.id LIMIT $1 FOR UPDATE OF o SKIP LOCKED
"""
_SENT = """
UPDATE outbox SET sent_seq = n.seq FROM unnest($1::text[], $2::bigint[]) AS n(id, seq)
WHERE outbox.event_id = n.id
"""
