"""Who may sign in, with what role."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from optiinfra.portal_api.auth import Administrator, Ports
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.queries import Row
from optiinfra.storage.postgres.users import NewUser

router = APIRouter(tags=["users"])
UserId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
Email = Annotated[
    str,
    StringConstraints(pattern=r"^[^@\s\x00]{1,64}@[^@\s\x00]{1,190}$", to_lower=True),
]
Label = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{1,100}$", strip_whitespace=True)]


class UserView(BaseModel):
    id: str
    email: str
    name: str
    role: Role
    disabled: bool
    created_at: AwareDatetime
    last_signed_in_at: AwareDatetime | None


class UserBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: Email
    name: Label
    role: Role = Role.VIEWER


class UserChange(BaseModel):
    """What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    role: Role | None = None
    disabled: bool | None = Field(
        default=None, description="true ends all sessions and keys of this user for good"
    )


class EndedView(BaseModel):
    ended: int = Field(description="sessions that could have gone on")


@router.get("/users")
async def users(who: Administrator, ports: Ports, paging: Paged) -> PageOf[UserView]:
    """By e-mail, with those who may not sign in any more."""
    rows = await ports.people.users.page(who.tenant, paging.page(str))
    return paging.of(rows, _view, ("email",))


@router.post("/users", status_code=201)
async def add_user(who: Administrator, ports: Ports, body: UserBody) -> UserView:
    """Lets somebody sign in at a provider with this verified e-mail."""
    user = NewUser(who.tenant, body.email, body.name, body.role)
    return _view(await ports.people.users.add(who, user))


@router.patch("/users/{user}")
async def change_user(user: UserId, who: Administrator, ports: Ports, body: UserChange) -> UserView:
    """Another role, or disabled; the last admin stays one."""
    if body.role is None and body.disabled is None:
        raise Rejected("nothing is to be changed", hint="send `role` or `disabled`")
    return _view(await ports.people.users.change(who, user, role=body.role, disabled=body.disabled))


@router.delete("/users/{user}/sessions")
async def end_sessions_of(user: UserId, who: Administrator, ports: Ports) -> EndedView:
    """Ends all sessions of this user, who may sign in again; keys go on."""
    return EndedView(ended=await ports.people.sessions.end_of_user(who, user))


def _view(row: Row) -> UserView:
    return UserView.model_validate({name: row[name] for name in UserView.model_fields})
