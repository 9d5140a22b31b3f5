"""Keys of programs: shown once, kept to scopes, never above their maker."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from optiinfra.portal_api.auth import KeyMaker, Permission, Ports, may
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.users import Label
from optiinfra.schemas.errors import Denied, Rejected
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.keys import NewKey
from optiinfra.storage.postgres.queries import Row

router = APIRouter(tags=["keys"])
KeyId = Annotated[str, Path(pattern=r"^k-[0-9a-f]{1,32}$")]


class KeyView(BaseModel):
    id: str
    label: str
    owner: str = Field(description="who made it; what it does is done in this name")
    role: Role = Field(description="its maker's when it was made; a lower one since then counts")
    scopes: list[Permission]
    created_at: AwareDatetime
    expires_at: AwareDatetime
    last_used_at: AwareDatetime | None


class KeyMade(KeyView):
    key: str = Field(description="`oi_<id>_<secret>`; nobody can show it again")


class KeyBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    label: Label
    scopes: frozenset[Permission] = Field(
        default=frozenset({Permission.READ}), min_length=1, description="what it may do"
    )
    days: int = Field(default=90, ge=1, le=365, description="how long it is good for")


@router.get("/keys")
async def keys(who: KeyMaker, ports: Ports, paging: Paged) -> PageOf[KeyView]:
    """The caller's keys, an admin sees everybody's; the newest first, without the secrets."""
    page = paging.page(datetime, str)
    rows = await ports.people.keys.page(who.tenant, _owner(who), page)
    return paging.of(rows, _view, ("created_at", "id"))


@router.post("/keys", status_code=201)
async def make_key(who: KeyMaker, ports: Ports, body: KeyBody) -> KeyMade:
    """A key with some of the caller's own permissions."""
    if Permission.KEYS in body.scopes:
        raise Rejected("a key cannot make keys", hint="leave `keys` out of the scopes")
    beyond = sorted(scope for scope in body.scopes if not may(who, scope))
    if beyond:
        raise Denied(f"a key of {who.role.value} {who.name!r} may not {', '.join(beyond)}")
    key = NewKey(body.label, tuple(sorted(body.scopes)), body.days)
    secret, row = await ports.people.keys.make(who, key)
    return KeyMade(key=secret, **row)


@router.delete("/keys/{key}", status_code=204)
async def revoke_key(key: KeyId, who: KeyMaker, ports: Ports) -> Response:
    """Ends a key of the caller's; an admin may end everybody's."""
    await ports.people.keys.revoke(who, key, owner=_owner(who))
    return Response(status_code=204)


def _owner(who: Principal) -> str | None:
    return None if may(who, Permission.USERS) else who.name


def _view(row: Row) -> KeyView:
    return KeyView.model_validate(row)
