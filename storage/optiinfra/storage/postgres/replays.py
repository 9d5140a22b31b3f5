"""Reads whole chains of the changes that were open in a stretch of time, to be folded again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optiinfra.schemas.change import TERMINAL_STATES
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.reading import EventFilter, Page

MOST_EVENTS = 5_000
"""Changes are taken until their chains have so many events; at least one is."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A change and its events up to the end of the stretch: position, event_id, chain, at, fact.

    Sort key (opened_at, change).
    """

    change: str
    title: str | None
    opened_at: datetime
    events: list[dict[str, Any]]


async def chains_open(
    database: Database, tenant: str, want: EventFilter, page: Page
) -> tuple[list[Chain], bool]:
    """The changes that were open at some time in the range, oldest first; whether more follow.

    `want.kind` is not looked at. Raises `Unavailable` without server.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(
            _OPEN, tenant, want.since, want.until, want.change,
            [state.value for state in TERMINAL_STATES], *(page.after or (None, None)), page.limit,
        )  # fmt: skip
        taken = rows[: _fitting([row["version"] for row in rows], page.limit - 1)]
        names = [row["change_id"] for row in taken]
        events = await connection.fetch(_EVENTS, names, want.until)
    of_change: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for one in events:
        of_change[one["chain"]].append({**one, "fact": json.loads(one["fact"])})
    chains = [
        Chain(row["change_id"], row["title"], row["opened_at"], of_change[row["change_id"]])
        for row in taken
    ]
    return chains, len(rows) > len(taken)


def _fitting(sizes: list[int], most: int) -> int:
    """How many of the first have at most `MOST_EVENTS` together, but one at least."""
    left, count = MOST_EVENTS, 0
    for size in sizes[:most]:
        left -= size
        if count and left < 0:
            break
        count += 1
    return count


_OPEN = """
SELECT s.change_id, r.body ->> 'title' AS title, s.opened_at, s.version
FROM sagas s LEFT JOIN recommendations r ON r.id = s.change_id
WHERE s.tenant = $1
    AND ($2::timestamptz IS NULL OR s.updated_at >= $2 OR s.state <> ALL($5::text[]))
    AND ($3::timestamptz IS NULL OR s.opened_at < $3)
    AND ($4::text IS NULL OR s.change_id = $4)
    AND ($6::timestamptz IS NULL OR (s.opened_at, s.change_id) > ($6, $7::text))
ORDER BY s.opened_at, s.change_id LIMIT $8
"""
_EVENTS = """
SELECT position, event_id, chain, to_json(at) #>> '{}' AS at, body AS fact FROM event_log
WHERE chain = ANY($1::text[]) AND ($2::timestamptz IS NULL OR at < $2)
ORDER BY chain, version
"""
