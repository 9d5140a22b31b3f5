"""Sessions: a browser's short ones one after another, a program's; listed, and ended by hand."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from optiinfra.schemas.errors import NotFound
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
from optiinfra.storage.postgres.queries import Row

ACCESS_S = 900.0
"""How long one session token is good for."""
SIGNED_IN_S = 7 * 86_400.0
"""How long after signing in tokens are renewed; then one signs in again."""
LINK_S = 900.0
"""How long a link waits to be opened."""
SHOWN = 100
"""So many of a person's sessions are listed; a person can end all of them at once."""
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

    async def open_for_program(self, who: Principal, agent: str | None = None) -> str:
        """A bearer token for whoever has signed in with a one-time token."""
        async with self._database.transaction() as connection:
            await audit(connection, who, Attempt("session.open", who.name, {}), allowed=True)
            grant = Grant(who.tenant, who.name, who.role, who.user_id, agent=agent)
            return await self._access.write(connection, grant, Purpose.SESSION, lasts_s=PROGRAM_S)

    async def open(self, who: Principal, agent: str | None = None) -> Pair:
        """The first pair of a browser."""
        async with self._database.transaction() as connection:
            return await self.open_in(connection, who, "one-time token", agent)

    async def open_in(
        self, connection: Connection, who: Principal, by: str, agent: str | None
    ) -> Pair:
        """`open` in the caller's transaction; `by` is what was signed in with."""
        detail = {"browser": True, "by": by}
        await audit(connection, who, Attempt("session.open", who.name, detail), allowed=True)
        family = secrets.token_hex(8)
        return await self._write(
            connection,
            Grant(who.tenant, who.name, who.role, who.user_id, family=family, agent=agent),
            SIGNED_IN_S,
        )

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
            await connection.execute(_TURN_OF_HOLDER, token_id, digest(refresh))
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
            grant = Grant(
                who.tenant, who.name, who.role, who.user_id, family=who.family, agent=row["agent"]
            )
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
            await _one_at_a_time(connection, who.tenant, who.name)
            await connection.execute(_END, who.token_id, who.family)
            await audit(connection, who, Attempt("session.close", who.name, {}), allowed=True)
        self._access.forget()

    async def of(self, who: Principal) -> list[Row]:
        """The sessions of this very person that could go on, the one used last first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_OF, who.tenant, who.name, who.user_id, SHOWN)
        here = who.family or who.token_id
        return [{**dict(row), "here": row["id"] == here} for row in rows]

    async def end(self, who: Principal, session: str) -> None:
        """Ends one of one's own sessions, here at once. Raises `NotFound` when it is none."""
        async with self._database.transaction() as connection:
            await _one_at_a_time(connection, who.tenant, who.name)
            ended = await connection.fetch(_END_ONE, who.tenant, who.name, who.user_id, session)
            if not ended:
                raise NotFound(f"there is no session {session}")
            await audit(connection, who, Attempt("session.end", session, {}), allowed=True)
        self._access.forget()

    async def end_all(self, who: Principal) -> None:
        """Ends all sessions of this person, this one too, and what could open another one."""
        async with self._database.transaction() as connection:
            ended = await _end_all(connection, who.tenant, who.name, who.user_id)
            attempt = Attempt("session.end_all", who.name, {"ended": ended})
            await audit(connection, who, attempt, allowed=True)
        self._access.forget()

    async def end_of_user(self, who: Principal, user_id: str) -> int:
        """Ends all sessions of a user; gives how many. Raises `NotFound`."""
        async with self._database.transaction() as connection:
            email = await connection.fetchval(_EMAIL, who.tenant, user_id)
            if email is None:
                raise NotFound(f"there is no user {user_id}")
            ended = await _end_all(connection, who.tenant, email, user_id)
            attempt = Attempt("user.sign_out", user_id, {"email": email, "ended": ended})
            await audit(connection, who, attempt, allowed=True)
        self._access.forget()
        return ended

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


async def _one_at_a_time(connection: Connection, tenant: str, name: str) -> None:
    """A renewal and an end of one person's sessions follow one another: a pair that is written
    while the others end would outlive them."""
    await connection.execute(_TURN, tenant, name)


async def _end_all(connection: Connection, tenant: str, name: str, user_id: str | None) -> int:
    """Ends all but keys; gives how many sessions that could have gone on."""
    await _one_at_a_time(connection, tenant, name)
    return int(await connection.fetchval(_END_ALL, tenant, name, user_id))


_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('sessions ' || $1 || ' ' || $2, 0))"
_TURN_OF_HOLDER = """
SELECT pg_advisory_xact_lock(hashtextextended('sessions ' || tenant || ' ' || name, 0))
FROM access_tokens WHERE id = $1 AND sha256 = $2
"""
_OWN = "t.tenant = $1 AND t.name = $2 AND t.user_id IS NOT DISTINCT FROM $3"
_IS_SESSION = f"(t.id LIKE '{Purpose.SESSION}-%' OR t.id LIKE '{Purpose.REFRESH}-%')"
_COULD_GO_ON = "(t.expires_at IS NULL OR t.expires_at > clock_timestamp())"
_OF = f"""
SELECT coalesce(t.family, t.id) AS id, bool_or(t.family IS NOT NULL) AS browser,
    (array_agg(t.agent ORDER BY t.created_at DESC))[1] AS agent,
    min(t.created_at) AS signed_in_at, max(coalesce(t.last_used_at, t.created_at)) AS last_used_at,
    max(t.expires_at) FILTER (WHERE t.revoked_at IS NULL) AS expires_at
FROM access_tokens t WHERE {_OWN} AND {_IS_SESSION} GROUP BY 1
HAVING bool_or(t.revoked_at IS NULL AND {_COULD_GO_ON}) ORDER BY last_used_at DESC, 1 LIMIT $4
"""  # noqa: S608 - of constants
_END_ONE = f"""
UPDATE access_tokens t SET revoked_at = clock_timestamp()
WHERE {_OWN} AND {_IS_SESSION} AND coalesce(t.family, t.id) = $4
AND t.revoked_at IS NULL RETURNING 1
"""  # noqa: S608 - of constants
_END_ALL = f"""
WITH ended AS (
    UPDATE access_tokens t SET revoked_at = clock_timestamp()
    WHERE t.tenant = $1 AND t.name = $2
    AND (t.user_id IS NOT DISTINCT FROM $3 OR t.id LIKE '{Purpose.TICKET}-%')
    AND t.id NOT LIKE '{Purpose.KEY}-%' AND t.revoked_at IS NULL RETURNING t.*
)
SELECT count(DISTINCT coalesce(t.family, t.id)) FROM ended t WHERE {_IS_SESSION} AND {_COULD_GO_ON}
"""  # noqa: S608 - of constants
_EMAIL = "SELECT email FROM users WHERE tenant = $1 AND id = $2"
_HOLDER = f"SELECT {WHO} {FROM} WHERE t.id = $1 AND t.sha256 = $2"
_LOCK = f"""
SELECT {WHO}, t.agent, t.revoked_at IS NOT NULL AS used, u.disabled_at IS NOT NULL AS disabled,
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
