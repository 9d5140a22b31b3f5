"""Signing in at Google, another OpenID provider, or GitHub."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from optiinfra.portal_api import cookies
from optiinfra.portal_api.auth import Ports, SignInRate
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.providers.port import SignInFailed, new_secret
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import NAME_PATTERN
from optiinfra.storage.postgres.sign_ins import BEGUN_S, Begun

SIGN_IN_PATH = "/api/v1/sign-in"
BROWSER = "optiinfra_signing_in"
"""Ties a sign-in to the browser that began it: nobody can make another one end it."""

router = APIRouter(tags=["session"])
Name = Annotated[str, Path(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Given = Annotated[str | None, Query(max_length=2_000)]


class ProvidersView(BaseModel):
    providers: list[str]


@router.get("/session/providers")
async def providers(ports: Ports) -> ProvidersView:
    """Where people may sign in, each at `/api/v1/sign-in/<provider>`; none: by a link alone."""
    return ProvidersView(providers=sorted(ports.providers.by_name))


@router.get(
    "/sign-in/{provider}",
    status_code=303,
    response_class=RedirectResponse,
    dependencies=[SignInRate],
)
async def begin_sign_in(
    provider: Name,
    request: Request,
    ports: Ports,
    tenant: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
) -> RedirectResponse:
    """Sends the browser to the provider."""
    there = ports.providers.named(provider)
    begun = Begun(tenant or ports.providers.tenant, provider, new_secret(), new_secret())
    state, browser = new_secret(), new_secret()
    redirect_uri = _redirect_uri(request, ports, provider)
    address = await there.address(begun, state=state, redirect_uri=redirect_uri)
    await ports.people.sign_ins.begin(begun, state=state, browser=browser)
    response = RedirectResponse(address, status_code=303)
    response.set_cookie(
        BROWSER,
        browser,
        int(BEGUN_S),
        path=SIGN_IN_PATH,
        secure=not cookies.is_loopback(request),
        httponly=True,
        samesite="lax",
    )
    return response


@router.get(
    "/sign-in/{provider}/callback",
    status_code=303,
    response_class=RedirectResponse,
    dependencies=[SignInRate],
)
async def end_sign_in(
    provider: Name,
    request: Request,
    ports: Ports,
    code: Given = None,
    state: Given = None,
    error: Given = None,
) -> RedirectResponse:
    """Where the provider sends the browser back to; sets the session's cookies."""
    there = ports.providers.named(provider)
    begun = await ports.people.sign_ins.take(
        provider, state=state or "", browser=request.cookies.get(BROWSER, "")
    )
    if begun is None:
        raise SignInFailed("this browser has not begun it, or ended it already")
    if error is not None or code is None:
        raise SignInFailed(f"{provider} says {(error or 'nothing')[:100]!r}")
    redirect_uri = _redirect_uri(request, ports, provider)
    person = await there.person(begun, code=code, redirect_uri=redirect_uri)
    role = ports.providers.role_of(begun.tenant, person.email)
    pair = await ports.people.sign_ins.open(
        begun.tenant, person, role_if_new=role, agent=cookies.agent_of(request)
    )
    response = RedirectResponse("/", status_code=303)
    response.delete_cookie(BROWSER, path=SIGN_IN_PATH, httponly=True)
    cookies.set_session(response, request, pair)
    return response


def _redirect_uri(request: Request, ports: ApiPorts, provider: str) -> str:
    """Never made from a `Host` that somebody beyond this machine has written."""
    own = ports.providers.public_url
    if own is None and not cookies.is_loopback(request):
        raise Rejected("the API does not know its own address", hint="set OPTIINFRA_PUBLIC_URL")
    base = (own or str(request.base_url)).rstrip("/")
    return f"{base}{SIGN_IN_PATH}/{provider}/callback"
