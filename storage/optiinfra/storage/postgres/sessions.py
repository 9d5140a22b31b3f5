"""Browsers' sessions: a short one after another, until somebody signs out or steals one."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from optiinfra.storage.postgres.access import (
    FROM,
    WHO,
    AccessTokens,
    Grant,
    Principal,
    Purpose,
    digest,
    id_of,
    principal_of,
)
from optiinfra.storage.postgres.audit import Attempt, audit
from optiinfra.storage.postgres.database import Connection, Database

ACCESS_S = 900.0
"""How long one session token is good for."""
SIGNED_IN_S = 7 * 86_400.0
"""How long after signing in tokens are renewed; then one signs in again."""
LINK_S = 900.0
"""How long a link waits to be opened."""
PROGRAM_S = 12 * 3_600.0
"""How long the session of a program lasts, which renews nothing."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What a browser holds: `access` for calls, `refresh` for the next pair, within `lasts_s`."""

    access: str
    refresh: str
    lasts_s: float


class Sessions:
    """Opens, renews and closes them; each with its audit row in one transaction.

    A refresh token is used once. Its second use means that two hold it, one of them a thief: then
    all tokens of that sign-in end.
    """

    def __init__(self, database: Database, access: AccessTokens) -> None:
        self._database = database
        self._access = access

    async def open_for_program(self, who: Principal) -> str:
        """A bearer token for whoever has signed in with a one-time token."""
        async with self._database.transaction() as connection:
            await audit(connection, who, Attempt("session.open", who.name, {}), allowed=True)
            grant = Grant(who.tenant, who.name, who.role, who.user_id)
            return await self._access.write(connection, grant, Purpose.SESSION, lasts_s=PROGRAM_S)

    async def open(self, who: Principal) -> Pair:
        """The first pair of a browser."""
        async with self._database.transaction() as connection:
            return await self.open_in(connection, who, "one-time token")

    async def open_in(self, connection: Connection, who: Principal, by: str) -> Pair:
        """`open` in the caller's transaction; `by` is what was signed in with."""
        detail = {"browser": True, "by": by}
        await audit(connection, who, Attempt("session.open", who.name, detail), allowed=True)
        family = secrets.token_hex(8)
        return await self._write(
            connection, Grant(who.tenant, who.name, who.role, who.user_id, family=family),
            SIGNED_IN_S,
        )  # fmt: skip

    async def holder(self, refresh: str) -> Principal | None:
        """Whose refresh token it is, good or not; None when it is unknown."""
        token_id = id_of(refresh, Purpose.REFRESH)
        if token_id is None:
            return None
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_HOLDER, token_id, digest(refresh))
        return principal_of(row) if row is not None else None

    async def renew(self, refresh: str) -> Pair | None:
        """The next pair; None when the token is unknown, over, or was used before."""
        token_id = id_of(refresh, Purpose.REFRESH)
        if token_id is None:
            return None
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(_LOCK, token_id, digest(refresh))
            if row is None:
                return None
            who = principal_of(row)
            if row["used"]:
                await self._end_stolen(connection, who)
                return None
            if row["left_s"] <= 0 or row["disabled"]:
                return None
            await connection.execute(_USE, token_id)
            grant = Grant(who.tenant, who.name, who.role, who.user_id, family=who.family)
            return await self._write(connection, grant, row["left_s"])

    async def link(self, who: Principal) -> str:
        """A one-time token with which the same person signs in elsewhere."""
        async with self._database.transaction() as connection:
            await audit(connection, who, Attempt("session.link", who.name, {}), allowed=True)
            grant = Grant(who.tenant, who.name, who.role, who.user_id)
            return await self._access.write(connection, grant, Purpose.SIGN_IN, lasts_s=LINK_S)

    async def close(self, who: Principal) -> None:
        """Signs out: the token ends, and all others of the same browser."""
        async with self._database.transaction() as connection:
            await connection.execute(_END, who.token_id, who.family)
            await audit(connection, who, Attempt("session.close", who.name, {}), allowed=True)
        self._access.forget()

    async def _write(self, connection: Connection, grant: Grant, lasts_s: float) -> Pair:
        write, access_s = self._access.write, min(ACCESS_S, lasts_s)
        return Pair(
            await write(connection, grant, Purpose.SESSION, lasts_s=access_s),
            await write(connection, grant, Purpose.REFRESH, lasts_s=lasts_s),
            lasts_s,
        )

    async def _end_stolen(self, connection: Connection, who: Principal) -> None:
        ended = await connection.fetch(_END, who.token_id, who.family)
        attempt = Attempt("session.reuse", str(who.family), {"ended": len(ended)})
        await audit(connection, who, attempt, allowed=False)
        self._access.forget()


_HOLDER = f"SELECT {WHO} {FROM} WHERE t.id = $1 AND t.sha256 = $2"
_LOCK = f"""
SELECT {WHO}, t.revoked_at IS NOT NULL AS used, u.disabled_at IS NOT NULL AS disabled,
    extract(epoch FROM t.expires_at - clock_timestamp())::float8 AS left_s
{FROM} WHERE t.id = $1 AND t.sha256 = $2 FOR UPDATE OF t
"""  # noqa: S608 - a constant
_USE = """
UPDATE access_tokens SET revoked_at = clock_timestamp(), last_used_at = clock_timestamp()
WHERE id = $1
"""
_END = """
UPDATE access_tokens SET revoked_at = clock_timestamp()
WHERE (id = $1 OR family = $2) AND revoked_at IS NULL RETURNING 1
"""
