"""Where one is signed in, and signing out there: one's own sessions, all at once or one by one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response
from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api import cookies
from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.paging import PageOf
from optiinfra.schemas.errors import Denied
from optiinfra.storage.postgres.access import Principal

router = APIRouter(tags=["session"])
SessionId = Annotated[str, Path(pattern=r"^(s-)?[0-9a-f]{16}$")]


class SignedInView(BaseModel):
    id: str
    browser: bool = Field(description="a browser's, which is renewed while it is used")
    agent: str | None = Field(description="what it called itself when it signed in; null: nothing")
    signed_in_at: AwareDatetime
    last_used_at: AwareDatetime = Field(description="to within a minute")
    expires_at: AwareDatetime | None = Field(description="null: never by itself")
    here: bool = Field(description="whether this very request came with it")


async def _myself(who: Reader) -> Principal:
    """A key acts in somebody's name, but it is not where they signed in."""
    if who.scopes is not None:
        raise Denied("a key has no sessions", hint="sign in yourself")
    return who


Myself = Annotated[Principal, Depends(_myself)]


@router.get("/sessions")
async def sessions(who: Myself, ports: Ports) -> PageOf[SignedInView]:
    """The caller's own, the one used last first; keys are listed apart."""
    rows = await ports.people.sessions.of(who)
    return PageOf[SignedInView](items=[SignedInView.model_validate(row) for row in rows])


@router.delete("/sessions", status_code=204)
async def sign_out_everywhere(who: Myself, ports: Ports) -> Response:
    """Ends all sessions of the caller, this one too, and links that were made but not opened.
    Nothing is renewed from then on; keys go on."""
    await ports.people.sessions.end_all(who)
    response = Response(status_code=204)
    cookies.clear_session(response)
    return response


@router.delete("/sessions/{session}", status_code=204)
async def end_session(session: SessionId, who: Myself, ports: Ports) -> Response:
    """Ends one of the caller's own."""
    await ports.people.sessions.end(who, session)
    response = Response(status_code=204)
    if session == (who.family or who.token_id):
        cookies.clear_session(response)
    return response
