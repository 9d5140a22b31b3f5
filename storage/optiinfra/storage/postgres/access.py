"""Bearer tokens: issued once, kept as SHA-256, with a purpose, an expiry and an end."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import token as checked_token
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.remembered import Remembered

SECRET_BYTES = 32
PREFIX = "oi"
REMEMBERED_S = 5.0
"""How long a checked session is taken for good without asking again, s."""
REMEMBERED_SESSIONS = 1024


class Purpose(StrEnum):
    """What a token is good for; it is part of the token's id, so it cannot be swapped."""

    SESSION = "s"
    """Calls, until it expires or is revoked."""
    SIGN_IN = "once"
    """To be exchanged for a session, one time."""
    TICKET = "tk"
    """To open one live stream, one time."""
    KEY = "k"
    """Calls of a program, within its scopes."""
    REFRESH = "r"
    """To be exchanged for the next session of a browser, one time."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is behind a token, and what may be done with it.

    `user_id` is None for whoever operates the machine itself; `scopes` are the permissions that a
    key is kept to (None: all that the role has); `family` is what a browser's tokens share.
    """

    token_id: str
    tenant: str
    name: str
    role: Role
    expires_at: datetime | None
    user_id: str | None = None
    scopes: frozenset[str] | None = None
    family: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Whose a new token is, and what may be done with it; the rest as in `Principal`."""

    tenant: str
    name: str
    role: Role
    user_id: str | None = None
    label: str | None = None
    scopes: tuple[str, ...] | None = None
    family: str | None = None
    agent: str | None = None
    """What the browser or program that signed in calls itself."""


def _new_part() -> str:
    return secrets.token_hex(8)


def _new_secret() -> str:
    return secrets.token_urlsafe(SECRET_BYTES)


class AccessTokens:
    """Issues, checks, exchanges and revokes tokens; the database's clock decides on expiry.

    Whose session a token is, is remembered for `REMEMBERED_S`: a session that is revoked here
    ends at once, one that another process revokes ends here after that time at the latest.
    """

    def __init__(
        self,
        database: Database,
        *,
        new_part: Callable[[], str] = _new_part,
        new_secret: Callable[[], str] = _new_secret,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._new_part = new_part
        self._new_secret = new_secret
        self._sessions: Remembered[Principal] = Remembered(REMEMBERED_SESSIONS, clock)

    async def issue(
        self,
        tenant: str,
        name: str,
        role: Role,
        *,
        lasts_s: float | None,
        purpose: Purpose = Purpose.SESSION,
        of: str | None = None,
    ) -> str:
        """A new token `oi_<id>_<secret>`, shown this one time.

        `lasts_s` is its life in seconds (None: until revoked); `of` is the id of the token that a
        ticket was drawn from. Raises `Rejected` when the tenant is not a valid name.
        """
        async with self._database.transaction() as connection:
            grant = Grant(tenant, name, role)
            return await self.write(connection, grant, purpose, lasts_s=lasts_s, of=of)

    async def write(
        self,
        connection: Connection,
        grant: Grant,
        purpose: Purpose,
        *,
        lasts_s: float | None,
        of: str | None = None,
    ) -> str:
        """`issue` in the caller's transaction, with all that a token can carry."""
        checked_token(grant.tenant)
        if purpose in _SINGLE_USE and lasts_s is None:
            raise Rejected("a token for one use must expire")
        token_id = "-".join(part for part in (purpose.value, of, self._new_part()) if part)
        token = f"{PREFIX}_{token_id}_{self._new_secret()}"
        await connection.execute(_FORGET)
        await connection.execute(
            _ISSUE,
            token_id,
            grant.tenant,
            grant.name,
            grant.role.value,
            digest(token),
            purpose in _SINGLE_USE,
            lasts_s,
            grant.user_id,
            grant.label,
            None if grant.scopes is None else json.dumps(grant.scopes),
            grant.family,
            grant.agent,
        )
        return token

    async def principal(self, token: str) -> Principal | None:
        """Whose session or key a token is; None when it is unknown, expired, revoked, for one
        use, or its user's account is disabled."""
        token_id, kept = id_of(token, Purpose.SESSION, Purpose.KEY), digest(token)
        if token_id is None:
            return None
        if (known := self._sessions.get(kept)) is not None:
            return known
        era = self._sessions.era
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_FIND, token_id)
            if row is None or not hmac.compare_digest(row["sha256"], kept):
                return None
            if row["stale"]:
                await connection.execute(_USED, token_id)
        who = principal_of(row)
        self._sessions.put(kept, who, min(REMEMBERED_S, row["left_s"]), era)
        return who

    async def ended(self, token: str) -> Principal | None:
        """Whose token it was that was revoked, or whose account is disabled; None of others."""
        token_id = id_of(token, Purpose.SESSION, Purpose.KEY)
        if token_id is None:
            return None
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_ENDED, token_id, digest(token))
        return principal_of(row) if row is not None else None

    async def still_valid(self, token_id: str) -> bool:
        """Whether a session has neither expired nor been revoked since it was looked at; one of a
        browser goes on as long as it can be refreshed."""
        async with self._database.connection() as connection:
            return await connection.fetchval(_STILL, token_id) is not None

    async def consume(self, token: str, purpose: Purpose) -> Principal | None:
        """Uses a token for one use up; None when it is unknown, expired or used already.

        The principal of a ticket carries the id of the session that it was drawn from.
        """
        token_id = id_of(token, purpose)
        if token_id is None:
            return None
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_CONSUME, token_id, digest(token))
        if row is None:
            return None
        named = token_id
        if purpose is Purpose.TICKET:
            named = token_id.removeprefix(f"{purpose.value}-").rpartition("-")[0]
        return Principal(
            named,
            row["tenant"],
            row["name"],
            Role(row["role"]),
            row["expires_at"],
            row["user_id"],
        )

    async def revoke(self, tenant: str, token_id: str) -> bool:
        """Ends a token of this tenant; False when there is none that could still be used."""
        async with self._database.connection() as connection:
            ended = await connection.fetchval(_REVOKE, tenant, token_id) is not None
        self.forget()
        return ended

    def forget(self) -> None:
        """Sessions are looked up anew: somebody's rights have changed."""
        self._sessions.clear()


async def issue_one_time_token(
    access: AccessTokens, tenant: str, name: str, *, role: Role = Role.ADMIN, lasts_s: float = 900.0
) -> str:
    """A token that `POST /api/v1/session` exchanges once, within `lasts_s` seconds."""
    return await access.issue(tenant, name, role, lasts_s=lasts_s, purpose=Purpose.SIGN_IN)


def digest(token: str) -> str:
    """What is kept of a token: SHA-256 as hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def id_of(token: str, *purposes: Purpose) -> str | None:
    """The id inside a token of one of these purposes; None when it is not of that form."""
    prefix, _, rest = token.partition("_")
    token_id, _, secret = rest.partition("_")
    fits = prefix == PREFIX and token_id.partition("-")[0] in purposes and secret
    return token_id if fits else None


def principal_of(row: asyncpg.Record) -> Principal:
    """Who a row of `WHO` is; a user has the lower of the token's role and the account's."""
    role = Role(row["role"])
    if row["user_role"] is not None and role.includes(own := Role(row["user_role"])):
        role = own
    scopes = row["scopes"]
    return Principal(
        row["id"],
        row["tenant"],
        row["name"],
        role,
        row["expires_at"],
        row["user_id"],
        None if scopes is None else frozenset(json.loads(scopes)),
        row["family"],
    )


_SINGLE_USE = (Purpose.SIGN_IN, Purpose.TICKET)
"""A used refresh token is kept instead: its second use gives a thief away."""
_VALID = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp())"
WHO = """t.id, t.tenant, t.name, t.role, t.sha256, t.expires_at, t.user_id, t.scopes, t.family,
    u.role AS user_role"""
FROM = "FROM access_tokens t LEFT JOIN users u ON u.id = t.user_id"
_ISSUE = """
INSERT INTO access_tokens (id, tenant, name, role, sha256, single_use, expires_at, user_id, label,
    scopes, family, agent)
VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7), $8, $9,
    $10::text::jsonb, $11, $12)
"""
_FORGET = """
DELETE FROM access_tokens WHERE expires_at < clock_timestamp() - interval '7 days'
OR single_use AND (revoked_at IS NOT NULL OR expires_at < clock_timestamp())
"""
_FIND = f"""
SELECT {WHO},
    last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute' AS stale,
    coalesce(extract(epoch FROM expires_at - clock_timestamp())::float8, 'infinity') AS left_s
{FROM} WHERE t.id = $1 AND NOT single_use AND {_VALID} AND u.disabled_at IS NULL
"""  # noqa: S608 - a constant
_ENDED = f"""
SELECT {WHO} {FROM} WHERE t.id = $1 AND sha256 = $2
AND (revoked_at IS NOT NULL OR u.disabled_at IS NOT NULL)
"""
_STILL = f"""
SELECT 1 {FROM} WHERE t.id = $1 AND t.revoked_at IS NULL AND u.disabled_at IS NULL
AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp() OR EXISTS (
    SELECT 1 FROM access_tokens r
    WHERE r.family = t.family AND r.id LIKE '{Purpose.REFRESH}-%'
    AND r.revoked_at IS NULL AND r.expires_at > clock_timestamp()
))
"""  # noqa: S608 - a constant
_USED = "UPDATE access_tokens SET last_used_at = clock_timestamp() WHERE id = $1"
_CONSUME = f"""
UPDATE access_tokens SET revoked_at = clock_timestamp(), last_used_at = clock_timestamp()
WHERE id = $1 AND sha256 = $2 AND single_use AND {_VALID}
RETURNING tenant, name, role, expires_at, user_id
"""  # noqa: S608 - a constant
_REVOKE = """
UPDATE access_tokens SET revoked_at = clock_timestamp()
WHERE tenant = $1 AND id = $2 AND revoked_at IS NULL RETURNING 1
"""
