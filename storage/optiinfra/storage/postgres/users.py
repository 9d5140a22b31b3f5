"""The people of a tenant, their roles, and who may not sign in any more."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import asyncpg

from optiinfra.schemas.errors import Conflict, NotFound
from optiinfra.schemas.ids import NewId
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import AccessTokens, Principal
from optiinfra.storage.postgres.audit import Attempt, audit
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.queries import Row
from optiinfra.storage.postgres.reading import Page


@dataclass(frozen=True, slots=True)
class NewUser:
    """Somebody who may sign in; `email` is lower-case."""

    tenant: str
    email: str
    name: str
    role: Role


def new_user_id() -> str:
    return uuid4().hex


class Users:
    """Each change and its audit row are one transaction; rights end here at once, in other
    processes when they look a session up anew."""

    def __init__(
        self, database: Database, access: AccessTokens, new_id: NewId = new_user_id
    ) -> None:
        self._database = database
        self._access = access
        self._new_id = new_id

    async def page(self, tenant: str, page: Page) -> list[Row]:
        """Users by e-mail; sort key (email)."""
        after = page.after[0] if page.after else ""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_PAGE, tenant, after, page.limit)
        return [dict(row) for row in rows]

    async def by_email(self, tenant: str, email: str, *, via: str) -> Principal | None:
        """Somebody who may sign in, as one who acts `via` another door than a token's."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_BY_EMAIL, tenant, email.lower())
        if row is None:
            return None
        return Principal(via, tenant, row["email"], Role(row["role"]), None, row["id"])

    async def add(self, who: Principal, user: NewUser) -> Row:
        """Lets somebody sign in. Raises `Conflict` when the e-mail is taken."""
        detail = {"email": user.email, "role": user.role.value}
        async with self._database.transaction() as connection:
            row = await add_user(connection, self._new_id(), user)
            if row is None:
                raise Conflict(f"there is a user {user.email} already")
            await audit(connection, who, Attempt("user.add", row["id"], detail), allowed=True)
        return dict(row)

    async def change(
        self, who: Principal, user_id: str, *, role: Role | None, disabled: bool | None
    ) -> Row:
        """Another role, or no way in any more: then all sessions and keys end for good.

        Raises `NotFound`, and `Conflict` when nobody would be left to administer.
        """
        async with self._database.transaction() as connection:
            await one_at_a_time(connection, who.tenant)
            old = await connection.fetchrow(_ONE, who.tenant, user_id)
            if old is None:
                raise NotFound(f"there is no user {user_id}")
            row = await connection.fetchrow(_CHANGE, user_id, role and role.value, disabled)
            assert row is not None
            if _administers(old) and not _administers(row):
                await _require_admin(connection, who.tenant, old["email"])
            if row["disabled"]:
                await connection.execute(_END, user_id)
            detail = {"email": row["email"], "was": _rights(old), "is": _rights(row)}
            await audit(connection, who, Attempt("user.change", user_id, detail), allowed=True)
        self._access.forget()
        return dict(row)


async def one_at_a_time(connection: Connection, tenant: str) -> None:
    """Changes of a tenant's people follow one another: two admins who take each other's role at
    once would leave none, and two first sign-ins would make somebody twice."""
    await connection.execute(_ONE_AT_A_TIME, tenant)


async def add_user(connection: Connection, user_id: str, user: NewUser) -> asyncpg.Record | None:
    """The new user's row; None when the tenant has one of this e-mail."""
    return await connection.fetchrow(
        _ADD, user_id, user.tenant, user.email, user.name, user.role.value
    )


def _administers(row: asyncpg.Record) -> bool:
    return row["role"] == Role.ADMIN and not row["disabled"]


def _rights(row: asyncpg.Record) -> str:
    return "disabled" if row["disabled"] else str(row["role"])


async def _require_admin(connection: Connection, tenant: str, email: str) -> None:
    if not await connection.fetchval(_ADMINS, tenant):
        raise Conflict(
            f"{email} is the last admin", hint="make somebody else an admin before this one goes"
        )


_COLUMNS = """id, tenant, email, name, role, created_at, last_signed_in_at,
    disabled_at IS NOT NULL AS disabled"""
_PAGE = f"""
SELECT {_COLUMNS} FROM users WHERE tenant = $1 AND email > $2 ORDER BY email LIMIT $3
"""  # noqa: S608 - a constant
_BY_EMAIL = """
SELECT id, email, role FROM users WHERE tenant = $1 AND email = $2 AND disabled_at IS NULL
"""
_ADD = f"""
INSERT INTO users (id, tenant, email, name, role) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (tenant, email) DO NOTHING RETURNING {_COLUMNS}
"""  # noqa: S608 - a constant
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('users ' || $1, 0))"
_ONE = f"SELECT {_COLUMNS} FROM users WHERE tenant = $1 AND id = $2"  # noqa: S608 - a constant
_CHANGE = f"""
UPDATE users SET role = coalesce($2, role), disabled_at = CASE
    WHEN $3 THEN coalesce(disabled_at, clock_timestamp())
    WHEN NOT $3 THEN NULL
    ELSE disabled_at END
WHERE id = $1 RETURNING {_COLUMNS}
"""  # noqa: S608 - a constant
_END = """
UPDATE access_tokens SET revoked_at = clock_timestamp() WHERE user_id = $1 AND revoked_at IS NULL
"""
_ADMINS = """
SELECT count(*) FROM users WHERE tenant = $1 AND role = 'admin' AND disabled_at IS NULL
"""
