"""What a coordinator that starts must look after: commands without an answer, what was sent."""

from __future__ import annotations

from dataclasses import dataclass

from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.envelope import Event
from optiinfra.events.subjects import kind_of
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.events import LINK_COLUMNS, event_of
from optiinfra.storage.postgres.outbox import OUTBOX_EVENTS, event_in

_COMMANDS = [f"optiinfra.{kind_of(one)}.v1" for one in (ExecutionRequested, RollbackRequested)]


@dataclass(frozen=True, slots=True, order=True)
class SentRow:
    """An event, by its row in the outbox, and the sequence at which it was acknowledged."""

    row: int
    sequence: int
    event_id: str


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event of the outbox, with the number of its row."""

    row: int
    event: Event


async def rows_off_their_log(database: Database) -> list[str]:
    """Open changes whose row names another version or hash than their log ends with."""
    async with database.connection() as connection:
        return [row[0] for row in await connection.fetch(_OFF)]


async def open_commands(database: Database) -> list[Event]:
    """The last step or undo that was asked for, of each change that is being carried out."""
    async with database.connection() as connection:
        rows = await connection.fetch(_ASKED, _COMMANDS)
    return [event_of(Link(**dict(row))) for row in rows]


async def sent_rows(database: Database, first_sequence: int, samples: int) -> list[SentRow]:
    """Up to `samples` events that the stream should still hold, in the order of their rows: the
    newest, and ever fewer of older ones."""
    async with database.connection() as connection:
        newest = await connection.fetchval("SELECT max(id) FROM outbox")
        if newest is None:
            return []
        ages = [0, *(1 << power for power in range(samples - 1))]
        rows = await connection.fetch(_AT_OR_BEFORE, [newest - age for age in ages])
    found = {SentRow(row["id"], row["sent_seq"], row["event_id"]) for row in rows}
    return sorted(one for one in found if one.sequence >= first_sequence)


async def sent_from(database: Database, row: int, limit: int) -> list[SentEvent]:
    """Events of the changes' stream that were acknowledged, in the order of rows after `row`."""
    async with database.connection() as connection:
        rows = await connection.fetch(_SENT_FROM, row, limit)
    return [SentEvent(one["row"], event_in(one)) for one in rows]


_OFF = """
SELECT change_id FROM sagas
WHERE state IN ('proposed', 'deferred', 'voting', 'awaiting_approval', 'approved', 'executing',
    'rolling_back')
AND NOT EXISTS (
    SELECT 1 FROM event_log WHERE event_log.chain = sagas.change_id
    AND event_log.version = sagas.version AND event_log.hash = sagas.hash
)
"""
_ASKED = f"""
SELECT asked.* FROM sagas CROSS JOIN LATERAL (
    SELECT {LINK_COLUMNS} FROM event_log WHERE event_log.chain = sagas.change_id
    AND event_log.type = ANY($1) ORDER BY event_log.version DESC LIMIT 1
) AS asked
WHERE sagas.state IN ('executing', 'rolling_back')
"""  # noqa: S608 - constants
_AT_OR_BEFORE = """
SELECT found.* FROM unnest($1::bigint[]) AS wanted(id) CROSS JOIN LATERAL (
    SELECT outbox.id, sent_seq, event_id FROM outbox
    WHERE outbox.id <= wanted.id AND stream = 'CHANGES' AND sent_seq IS NOT NULL
    ORDER BY outbox.id DESC LIMIT 1
) AS found
"""
_SENT_FROM = f"""
{OUTBOX_EVENTS} WHERE o.id > $1 AND o.stream = 'CHANGES' AND o.sent_seq IS NOT NULL
AND coalesce(o.event, body) IS NOT NULL ORDER BY o.id LIMIT $2
"""
