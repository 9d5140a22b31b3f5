"""Signing in with a one-time token, and out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from optiinfra.portal_api.auth import Ports, Reader, bearer
from optiinfra.portal_api.problems import SignInNeeded
from optiinfra.portal_api.views import MeView, SessionView
from optiinfra.storage.postgres.access import Purpose
from optiinfra.storage.postgres.audit import Attempt

SESSION_S = 12 * 3_600.0

router = APIRouter(tags=["session"])


@router.post("/session", status_code=201)
async def sign_in(request: Request, ports: Ports) -> SessionView:
    """Exchanges the one-time token in `Authorization` for one that lasts; works once."""
    who = await ports.access.consume(bearer(request), Purpose.SIGN_IN)
    if who is None:
        raise SignInNeeded(
            "the one-time token is unknown, expired or used", hint="start again to get a new one"
        )
    token = await ports.access.issue(who.tenant, who.name, who.role, lasts_s=SESSION_S)
    await ports.decisions.note(who, Attempt("session.open", who.name, {}), allowed=True)
    return SessionView(
        token=token, tenant=who.tenant, name=who.name, role=who.role, expires_in_s=SESSION_S
    )


@router.get("/session")
async def session(who: Reader) -> MeView:
    """Who is signed in."""
    return MeView(tenant=who.tenant, name=who.name, role=who.role, expires_at=who.expires_at)


@router.delete("/session", status_code=204)
async def sign_out(who: Reader, ports: Ports) -> Response:
    """Revokes the token of this very request."""
    await ports.access.revoke(who.tenant, who.token_id)
    await ports.decisions.note(who, Attempt("session.close", who.name, {}), allowed=True)
    return Response(status_code=204)
