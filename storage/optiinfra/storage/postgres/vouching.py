"""Whether what the bus says was really said: looked up where it was written down before."""

from __future__ import annotations

import json
from collections.abc import Sequence

import asyncpg

from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.envelope import Event
from optiinfra.events.facts import FACT
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.vote import VOTERS, Verdict
from optiinfra.storage.postgres.database import Connection, Database

_COORDINATOR = "coordinator"
_VOTE, _GRANT = (BY_PREFIX[prefix].type for prefix in ("vote.cast", "approval.granted"))
Command = ExecutionRequested | RollbackRequested


class PortalWords:
    """Words of persons: the portal wrote each, with its audit row, before it was said."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def refused(self, events: Sequence[Event]) -> dict[str, Rejected]:
        """By id, those of `events` that nobody said at the portal; each is audited. One query."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_WORDS, [event.id for event in events])
            written = {row["event_id"]: Event.model_validate_json(row["event"]) for row in rows}
            forged = [event for event in events if not _same(written.get(event.id), event)]
            for event in forged:
                await _audit(connection, event, "word.refused", "nobody said it at the portal")
        return {
            event.id: Rejected(f"{event.type} {event.id}: nobody said this at the portal")
            for event in forged
        }


class CommandsInLog:
    """Commands to executors: each must stand in the event log, as the coordinator said it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def require(self, event: Event) -> None:
        """Raises `Rejected`, and audits it, unless the log bears the command out.

        A step needs the approval of every voter and a grant for this very version before it; an
        undo needs only to have been said, since it can but take back. One query on two indexes.
        """
        fact = event.fact
        assert isinstance(fact, Command)
        async with self._database.connection() as connection:
            row = await connection.fetchrow(
                _COMMAND, event.id, fact.change, fact.recommendation.version_hash
            )
            reason = _doubt(row, event, fact)
            if reason is not None:
                await _audit(connection, event, "command.refused", reason)
                raise Rejected(f"{event.type} {event.id} of change {fact.change}: {reason}")


def _same(written: Event | None, event: Event) -> bool:
    return written is not None and written.fact == event.fact and written.tenant == event.tenant


def _doubt(row: asyncpg.Record | None, event: Event, fact: Command) -> str | None:
    """Why the log does not bear the command out; None when it does."""
    if row is None:
        return "it does not stand in the event log"
    if row["source"] != _COORDINATOR or row["tenant"] != event.tenant:
        return "the coordinator did not say it for this tenant"
    if FACT.validate_json(row["body"]) != fact:
        return "the event log holds another command under this id"
    if isinstance(fact, RollbackRequested):
        return None
    missing = sorted(set(VOTERS) - set(row["approving"]))
    if missing:
        return f"no approving vote of {', '.join(missing)} stands before it"
    return None if row["granted"] else "no grant for this version stands before it"


async def _audit(connection: Connection, event: Event, action: str, reason: str) -> None:
    detail = {"event": event.id, "type": event.type, "source": event.source, "reason": reason}
    await connection.execute(
        _AUDIT, event.tenant, f"bus:{event.source}", action, event.subject, json.dumps(detail)
    )


_WORDS = "SELECT event_id, event FROM outbox WHERE event_id = ANY($1) AND event IS NOT NULL"
_COMMAND = f"""
SELECT c.tenant, c.source, c.body,
    ARRAY(
        SELECT v.body::jsonb -> 'vote' ->> 'agent' FROM event_log v
        WHERE v.chain = c.chain AND v.version < c.version AND v.type = '{_VOTE}'
        AND v.body::jsonb -> 'vote' ->> 'verdict' = '{Verdict.APPROVE}'
    ) AS approving,
    EXISTS (
        SELECT 1 FROM event_log g WHERE g.chain = c.chain AND g.version < c.version
        AND g.type = '{_GRANT}'
        AND g.body::jsonb -> 'approval' ->> 'version_hash' = $3
    ) AS granted
FROM event_log c WHERE c.event_id = $1 AND c.chain = $2
"""  # noqa: S608 - a constant
_AUDIT = """
INSERT INTO audit (tenant, actor, action, target, allowed, detail)
VALUES ($1, $2, $3, $4, false, $5::text::jsonb)
"""
