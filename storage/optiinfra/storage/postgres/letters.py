"""What was done with dead letters: written down, with an audit row, before it is done."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from optiinfra.schemas.errors import Conflict
from optiinfra.storage.postgres.database import Connection, Database


class LetterState(StrEnum):
    NEW = "new"
    RETRIED = "retried"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Dealt:
    """Who has done what with a letter, and why."""

    state: LetterState
    by: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Order:
    """Who asks for a deed, and why.

    `request` names the request, so that repeating it changes nothing; `token` is that of the
    caller, for the audit.
    """

    by: str
    reason: str = ""
    request: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Deed:
    """What is to be done with the letter `letter` (its event id) of a tenant."""

    letter: str
    tenant: str
    state: LetterState
    subject: str
    order: Order


@dataclass(frozen=True, slots=True)
class Done:
    """A deed that is written down; `repeated` when the same request had been written before.

    `sequence` is that of the message that was sent just now.
    """

    dealt: Dealt
    repeated: bool
    sequence: int | None = None


async def dealt_with(database: Database, letters: list[str]) -> dict[str, Dealt]:
    """What was done with each of these letters; without those that nobody has touched."""
    async with database.connection() as connection:
        rows = await connection.fetch(_DEALT, letters)
    return {
        row["letter"]: Dealt(LetterState(row["state"]), row["by"], row["reason"], row["at"])
        for row in rows
    }


@asynccontextmanager
async def dealing(database: Database, deed: Deed) -> AsyncIterator[Done]:
    """Writes a deed down and audits it; both stand only if the block, which does it, succeeds.

    Raises `Conflict` when the letter was dealt with before, unless by this very request: then
    `repeated` is set, and there is nothing left to do.
    """
    order = deed.order
    async with database.transaction() as connection:
        at = await connection.fetchval(_DEAL, deed.letter, deed.state.value, order.by, order.reason)
        if at is None:
            yield await _before(connection, deed)
            return
        await connection.execute(_AUDIT, deed.tenant, order.by, *_action(deed), _detail(deed))
        yield Done(Dealt(deed.state, order.by, order.reason, at), repeated=False)


async def _before(connection: Connection, deed: Deed) -> Done:
    """What was done with the letter, if this request did it; else `Conflict`."""
    found = await connection.fetchrow(_ONE, deed.letter)
    assert found is not None
    order = deed.order
    if order.request is not None and found["state"] == deed.state:
        request = await connection.fetchval(_REQUEST, deed.tenant, order.by, *_action(deed))
        if request == order.request and found["reason"] == order.reason:
            dealt = Dealt(deed.state, found["by"], found["reason"], found["at"])
            return Done(dealt, repeated=True)
    raise Conflict(
        f"the letter was {found['state']} by {found['by']} at {found['at']:%Y-%m-%d %H:%M}"
    )


def _action(deed: Deed) -> tuple[str, str]:
    """The audit's action and its target."""
    return f"letter.{deed.state.value}", deed.letter


def _detail(deed: Deed) -> str:
    given = {"request": deed.order.request, "token": deed.order.token}
    detail = {name: value for name, value in given.items() if value is not None}
    return json.dumps({"reason": deed.order.reason, "subject": deed.subject, **detail})


_DEALT = "SELECT letter, state, by, reason, at FROM dead_letters WHERE letter = ANY($1)"
_ONE = "SELECT state, by, reason, at FROM dead_letters WHERE letter = $1"
_REQUEST = """
SELECT detail ->> 'request' FROM audit
WHERE tenant = $1 AND actor = $2 AND action = $3 AND target = $4 AND allowed
"""
_DEAL = """
INSERT INTO dead_letters (letter, state, by, reason) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING at
"""
_AUDIT = """
INSERT INTO audit (tenant, actor, action, target, allowed, detail)
VALUES ($1, $2, $3, $4, true, $5::text::jsonb)
"""
