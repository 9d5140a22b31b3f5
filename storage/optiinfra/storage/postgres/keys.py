"""Keys of programs: made by a person, kept to scopes, listed without their secret, revoked."""

from __future__ import annotations

import json
from dataclasses import dataclass

from optiinfra.schemas.errors import NotFound
from optiinfra.storage.postgres.access import AccessTokens, Grant, Principal, Purpose, id_of
from optiinfra.storage.postgres.audit import Attempt, audit
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.queries import Row
from optiinfra.storage.postgres.reading import Page

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is for, what it may do, and for how long."""

    label: str
    scopes: tuple[str, ...]
    days: int


class Keys:
    """A key acts in its maker's name and never has more than the maker's role of the moment."""

    def __init__(self, database: Database, access: AccessTokens) -> None:
        self._database = database
        self._access = access

    async def make(self, who: Principal, key: NewKey) -> tuple[str, Row]:
        """The key itself, which is shown this one time, and how it is listed."""
        grant = Grant(
            who.tenant, who.name, who.role, who.user_id, label=key.label, scopes=key.scopes
        )
        detail = {"label": key.label, "scopes": list(key.scopes), "days": key.days}
        async with self._database.transaction() as connection:
            secret = await self._access.write(
                connection, grant, Purpose.KEY, lasts_s=key.days * DAY_S
            )
            key_id = id_of(secret, Purpose.KEY)
            row = await connection.fetchrow(_ONE, key_id)
            assert row is not None
            await audit(connection, who, Attempt("key.make", row["id"], detail), allowed=True)
        return secret, _row(dict(row))

    async def page(self, tenant: str, owner: str | None, page: Page) -> list[Row]:
        """Keys that are not revoked, the newest first, of one person or (None) of all; sort key
        (created_at, id)."""
        at, last = page.after or (None, None)
        async with self._database.connection() as connection:
            rows = await connection.fetch(_PAGE, tenant, owner, at, last, page.limit)
        return [_row(dict(row)) for row in rows]

    async def revoke(self, who: Principal, key_id: str, *, owner: str | None) -> None:
        """Ends a key, here at once. Raises `NotFound` when `owner` (None: anybody) has none."""
        async with self._database.transaction() as connection:
            label = await connection.fetchval(_REVOKE, who.tenant, owner, key_id)
            if label is None:
                raise NotFound(f"there is no key {key_id}")
            attempt = Attempt("key.revoke", key_id, {"label": label})
            await audit(connection, who, attempt, allowed=True)
        self._access.forget()


def _row(row: Row) -> Row:
    return {**row, "scopes": json.loads(row["scopes"])}


_COLUMNS = """t.id, t.label, t.name AS owner, t.role, t.scopes, t.created_at, t.expires_at,
    t.last_used_at"""
_IS_KEY = f"t.id LIKE '{Purpose.KEY}-%' AND t.revoked_at IS NULL"
_ONE = f"SELECT {_COLUMNS} FROM access_tokens t WHERE t.id = $1"  # noqa: S608 - a constant
_PAGE = f"""
SELECT {_COLUMNS} FROM access_tokens t
WHERE t.tenant = $1 AND {_IS_KEY} AND ($2::text IS NULL OR t.name = $2)
AND ($3::timestamptz IS NULL OR (t.created_at, t.id) < ($3, $4::text))
ORDER BY t.created_at DESC, t.id DESC LIMIT $5
"""  # noqa: S608 - a constant
_REVOKE = f"""
UPDATE access_tokens t SET revoked_at = clock_timestamp()
WHERE t.tenant = $1 AND ($2::text IS NULL OR t.name = $2) AND t.id = $3 AND {_IS_KEY}
RETURNING t.label
"""  # noqa: S608 - a constant
