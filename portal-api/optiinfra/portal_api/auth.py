"""Who calls, and what they may do: tokens and one table of permissions."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection
from fastapi.security.utils import get_authorization_scheme_param

from optiinfra.portal_api import cookies
from optiinfra.portal_api.denials import note_denial, remember
from optiinfra.portal_api.ports import ApiPorts, ports_of
from optiinfra.portal_api.problems import SignInNeeded
from optiinfra.schemas.errors import Denied
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.rates import Bucket


class Permission(StrEnum):
    READ = "read"
    AUDIT = "audit"
    CONTROL = "control"
    SWITCH = "switch"
    LETTERS = "letters"
    DECIDE = "decide"
    KEYS = "keys"
    USERS = "users"


LEAST_ROLE: dict[Permission, Role] = {
    Permission.READ: Role.VIEWER,
    Permission.AUDIT: Role.OPERATOR,
    Permission.CONTROL: Role.OPERATOR,
    Permission.SWITCH: Role.OPERATOR,
    Permission.LETTERS: Role.OPERATOR,
    Permission.DECIDE: Role.APPROVER,
    Permission.KEYS: Role.OPERATOR,
    Permission.USERS: Role.ADMIN,
}
"""What each permission asks for; a higher role may do all that a lower one may."""


def bearer(connection: HTTPConnection) -> str:
    """The bearer token of a request. Raises `SignInNeeded` when there is none."""
    scheme, token = get_authorization_scheme_param(connection.headers.get("authorization"))
    if scheme.lower() != "bearer" or not token:
        raise SignInNeeded("a bearer token is needed", hint="send `Authorization: Bearer oi_…`")
    return token


async def spend(connection: HTTPConnection, bucket: Bucket) -> None:
    """Counts a try from the caller's address. Raises `TooMany`."""
    address = connection.client.host if connection.client else "unknown"
    await ports_of(connection).rates.spend(bucket, address)


async def principal(connection: HTTPConnection) -> Principal:
    """Whose bearer token it is, or (without one) whose session cookie.

    Raises `SignInNeeded` when it is not (or no longer) good, and `Denied` when another site's
    page acts with the cookie.
    """
    cookie = None
    if "authorization" not in connection.headers:
        cookie = connection.cookies.get(cookies.ACCESS)
    token = cookie or bearer(connection)
    access = ports_of(connection).access
    found = await access.principal(token)
    if found is None:
        await spend(connection, Bucket.REFUSED)
        remember(connection, who=await access.ended(token))
        await note_denial(connection, "revoked")
        raise SignInNeeded(
            "the token is unknown, expired or revoked",
            hint="sign in again: `optiinfra up` prints how",
        )
    remember(connection, who=found)
    if cookie is not None:
        cookies.require_own_page(connection)
    return found


def may(who: Principal, permission: Permission) -> bool:
    """Whether the role has this permission, and the key (if it is one) is not kept from it."""
    within = who.scopes is None or permission.value in who.scopes
    return within and who.role.includes(LEAST_ROLE[permission])


class Needs:
    """A dependency: the caller, who has this permission."""

    def __init__(self, permission: Permission) -> None:
        self._permission = permission

    async def __call__(
        self, connection: HTTPConnection, who: Annotated[Principal, Depends(principal)]
    ) -> Principal:
        remember(connection, asked=self._permission.value)
        if self._permission is not Permission.READ and not cookies.only_reads(connection):
            person = f"{who.tenant}/{who.name}"
            await ports_of(connection).rates.spend(Bucket.DECISIONS, person)
        if may(who, self._permission):
            return who
        least = LEAST_ROLE[self._permission]
        if who.role.includes(least):
            raise Denied(
                "this key may not do this", hint=f"it needs the scope {self._permission.value}"
            )
        raise Denied(
            f"{who.role.value} {who.name!r} may not do this",
            hint=f"it needs the role {least.value}",
        )


async def _sign_in_rate(connection: HTTPConnection) -> None:
    await spend(connection, Bucket.SIGN_IN)


async def _ports(connection: HTTPConnection) -> ApiPorts:
    """A coroutine, since FastAPI would run a plain function in a thread."""
    return ports_of(connection)


Reader = Annotated[Principal, Depends(Needs(Permission.READ))]
Auditor = Annotated[Principal, Depends(Needs(Permission.AUDIT))]
Operator = Annotated[Principal, Depends(Needs(Permission.CONTROL))]
Switcher = Annotated[Principal, Depends(Needs(Permission.SWITCH))]
LetterKeeper = Annotated[Principal, Depends(Needs(Permission.LETTERS))]
Approver = Annotated[Principal, Depends(Needs(Permission.DECIDE))]
KeyMaker = Annotated[Principal, Depends(Needs(Permission.KEYS))]
Administrator = Annotated[Principal, Depends(Needs(Permission.USERS))]
SignInRate = Depends(_sign_in_rate)
Ports = Annotated[ApiPorts, Depends(_ports)]
