"""Signing in at a provider: what a browser has begun there, and who comes back from it."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from optiinfra.schemas.errors import Denied
from optiinfra.schemas.ids import NewId
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import Principal, digest
from optiinfra.storage.postgres.audit import Attempt, audit
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.sessions import Pair, Sessions
from optiinfra.storage.postgres.users import NewUser, add_user, new_user_id, one_at_a_time

BEGUN_S = 600.0
"""How long a person may take at the provider."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A sign-in on its way: what only this API and the provider know of it."""

    tenant: str
    provider: str
    nonce: str
    verifier: str


@dataclass(frozen=True, slots=True)
class Vouched:
    """Whom a provider vouches for; the e-mail, in lower case, is one that it has verified."""

    provider: str
    subject: str
    email: str
    name: str


class SignIns:
    """Begins and ends them; a state is good once, in the browser that began, for 10 minutes."""

    def __init__(self, database: Database, sessions: Sessions, new_id: NewId = new_user_id) -> None:
        self._database = database
        self._sessions = sessions
        self._new_id = new_id

    async def begin(self, begun: Begun, *, state: str, browser: str) -> None:
        """Writes down what is waited for; of `state` and `browser` only digests are kept."""
        async with self._database.transaction() as connection:
            await connection.execute(_FORGET)
            await connection.execute(
                _BEGIN,
                digest(state),
                digest(browser),
                begun.tenant,
                begun.provider,
                begun.nonce,
                begun.verifier,
                BEGUN_S,
            )

    async def take(self, provider: str, *, state: str, browser: str) -> Begun | None:
        """What was begun, once; None when nothing like it was, here, lately."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_TAKE, digest(state), digest(browser), provider)
        return Begun(**dict(row)) if row is not None else None

    async def open(
        self, tenant: str, person: Vouched, *, role_if_new: Role | None, agent: str | None = None
    ) -> Pair:
        """The session of somebody who is known, declared, or (with `role_if_new`) let in as new.

        Raises `Denied`, which is audited, for everybody else.
        """
        async with self._database.transaction() as connection:
            await one_at_a_time(connection, tenant)
            found = await self._user(connection, tenant, person, role_if_new)
            if isinstance(found, str):
                await _deny(connection, tenant, person, found)
            else:
                who = _principal(found)
                await connection.execute(_SIGNED_IN, who.user_id)
                return await self._sessions.open_in(connection, who, person.provider, agent)
        raise Denied(f"{person.email} may not sign in: {found}", hint="ask an admin")

    async def _user(
        self, connection: Connection, tenant: str, person: Vouched, role_if_new: Role | None
    ) -> asyncpg.Record | str:
        """The user's row, or why there is none for this person."""
        row = await connection.fetchrow(_KNOWN, tenant, person.provider, person.subject)
        if row is None:
            found = await self._declared(connection, tenant, person, role_if_new)
            if isinstance(found, str):
                return found
            row = found
            await self._link(connection, row, person)
        return "the account is disabled" if row["disabled"] else row

    async def _declared(
        self, connection: Connection, tenant: str, person: Vouched, role_if_new: Role | None
    ) -> asyncpg.Record | str:
        row = await connection.fetchrow(_BY_EMAIL, tenant, person.email)
        if row is not None:
            other = await connection.fetchval(_LINKED, row["id"], person.provider)
            return f"another account at {person.provider} has this address" if other else row
        if role_if_new is None:
            return "nobody has declared this address"
        new = NewUser(tenant, person.email, person.name, role_if_new)
        made = await add_user(connection, self._new_id(), new)
        assert made is not None
        return made

    async def _link(self, connection: Connection, row: asyncpg.Record, person: Vouched) -> None:
        await connection.execute(_LINK, row["tenant"], person.provider, person.subject, row["id"])
        detail = {"provider": person.provider, "subject": person.subject, "role": row["role"]}
        attempt = Attempt("user.link", row["id"], detail)
        await audit(connection, _principal(row), attempt, allowed=True)


def _principal(row: asyncpg.Record) -> Principal:
    role = Role(row["role"])
    return Principal("sign-in", row["tenant"], row["email"], role, None, row["id"])


async def _deny(connection: Connection, tenant: str, person: Vouched, why: str) -> None:
    nobody = Principal("sign-in", tenant, person.email, Role.VIEWER, None)
    detail = {"provider": person.provider, "subject": person.subject, "why": why}
    await audit(connection, nobody, Attempt("session.open", person.email, detail), allowed=False)


_FORGET = "DELETE FROM sign_ins WHERE expires_at < clock_timestamp()"
_BEGIN = """
INSERT INTO sign_ins (state_sha256, browser_sha256, tenant, provider, nonce, verifier, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7))
"""
_TAKE = """
DELETE FROM sign_ins WHERE state_sha256 = $1 AND browser_sha256 = $2 AND provider = $3
AND expires_at > clock_timestamp() RETURNING tenant, provider, nonce, verifier
"""
_USER = "u.id, u.tenant, u.email, u.role, u.disabled_at IS NOT NULL AS disabled"
_KNOWN = f"""
SELECT {_USER} FROM identities i JOIN users u ON u.id = i.user_id
WHERE i.tenant = $1 AND i.provider = $2 AND i.subject = $3
"""  # noqa: S608 - a constant
_BY_EMAIL = f"SELECT {_USER} FROM users u WHERE u.tenant = $1 AND u.email = $2"  # noqa: S608 - a constant
_LINKED = "SELECT 1 FROM identities WHERE user_id = $1 AND provider = $2"
_LINK = "INSERT INTO identities (tenant, provider, subject, user_id) VALUES ($1, $2, $3, $4)"
_SIGNED_IN = "UPDATE users SET last_signed_in_at = clock_timestamp() WHERE id = $1"
