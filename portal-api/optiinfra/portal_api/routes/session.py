"""Signing in with a one-time token, going on, and out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from optiinfra.portal_api import cookies
from optiinfra.portal_api.auth import Ports, Reader, SignInRate, bearer
from optiinfra.portal_api.denials import remember
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.problems import SignInNeeded
from optiinfra.portal_api.views import LinkView, MeView, SessionView
from optiinfra.schemas.errors import Denied
from optiinfra.storage.postgres.access import Principal, Purpose
from optiinfra.storage.postgres.sessions import LINK_S, PROGRAM_S, Pair

SIGN_IN_LINK = "/api/v1/sign-in?token="
"""Where a one-time token opens a browser's session."""
router = APIRouter(tags=["session"])


@router.post("/session", status_code=201, dependencies=[SignInRate])
async def sign_in(request: Request, ports: Ports) -> SessionView:
    """Exchanges the one-time token in `Authorization` for one that lasts; works once."""
    who = await _once(ports, bearer(request))
    token = await ports.people.sessions.open_for_program(who, cookies.agent_of(request))
    return SessionView(
        token=token, tenant=who.tenant, name=who.name, role=who.role, expires_in_s=PROGRAM_S
    )


@router.post("/session/browser", status_code=201, dependencies=[SignInRate])
async def sign_in_browser(request: Request, response: Response, ports: Ports) -> MeView:
    """The same for a page: the session comes as cookies that no script can read."""
    who = await _once(ports, bearer(request))
    pair = await ports.people.sessions.open(who, cookies.agent_of(request))
    return await _kept(request, response, ports, pair)


@router.get("/sign-in", status_code=303, response_class=RedirectResponse, dependencies=[SignInRate])
async def open_sign_in_link(
    request: Request, ports: Ports, token: Annotated[str, Query(max_length=200)]
) -> RedirectResponse:
    """The link that `optiinfra up` prints: uses the one-time token up and shows the pages."""
    who = await _once(ports, token)
    pair = await ports.people.sessions.open(who, cookies.agent_of(request))
    response = RedirectResponse("/", status_code=303)
    cookies.set_session(response, request, pair)
    return response


@router.post("/session/refresh", status_code=201, dependencies=[SignInRate])
async def refresh(request: Request, response: Response, ports: Ports) -> MeView:
    """New cookies for the old. A refresh token that is used twice ends the whole session."""
    token, sessions = request.cookies.get(cookies.REFRESH, ""), ports.people.sessions
    remember(request, who=await sessions.holder(token))
    cookies.require_own_page(request)
    pair = await sessions.renew(token)
    if pair is None:
        raise _over()
    return await _kept(request, response, ports, pair)


@router.post("/session/link", status_code=201)
async def link(who: Reader, request: Request, ports: Ports) -> LinkView:
    """A link that signs the caller's browser in, once, within 15 minutes."""
    if who.scopes is not None:
        raise Denied("a key opens no browser", hint="sign in yourself")
    token = await ports.people.sessions.link(who)
    base = ports.providers.public_url or str(request.base_url)
    return LinkView(url=f"{base.rstrip('/')}{SIGN_IN_LINK}{token}", expires_in_s=LINK_S)


@router.get("/session")
async def session(who: Reader) -> MeView:
    """Who is signed in."""
    return _me(who)


@router.delete("/session", status_code=204)
async def sign_out(who: Reader, ports: Ports) -> Response:
    """Ends the session of this very request, and what its browser could go on with."""
    await ports.people.sessions.close(who)
    response = Response(status_code=204)
    cookies.clear_session(response)
    return response


async def _once(ports: ApiPorts, token: str) -> Principal:
    who = await ports.access.consume(token, Purpose.SIGN_IN)
    if who is None:
        raise SignInNeeded(
            "the one-time token is unknown, expired or used", hint="start again to get a new one"
        )
    return who


async def _kept(request: Request, response: Response, ports: ApiPorts, pair: Pair) -> MeView:
    who = await ports.access.principal(pair.access)
    if who is None:
        raise _over()
    cookies.set_session(response, request, pair)
    return _me(who)


def _over() -> SignInNeeded:
    return SignInNeeded("the session is over", hint="sign in again")


def _me(who: Principal) -> MeView:
    return MeView(tenant=who.tenant, name=who.name, role=who.role, expires_at=who.expires_at)
