"""Whether this process lives, and whether it can do its work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from fastapi import APIRouter, Response

from optiinfra.portal_api.auth import Ports
from optiinfra.portal_api.views import HealthView
from optiinfra.schemas.errors import OptiInfraError

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> HealthView:
    """The event loop answers."""
    return HealthView(status="ok")


@router.get("/readyz", responses={503: {"model": HealthView}})
async def readyz(ports: Ports, response: Response) -> HealthView:
    """Bus, database and live stream can be used."""

    async def stream() -> str:
        return "ok" if ports.hub.is_current else "catching up"

    checks = {
        "database": await _said(ports.queries.ready),
        "bus": await _said(ports.hub.state),
        "stream": await stream(),
    }
    ok = all(said == "ok" for said in checks.values())
    if not ok:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return HealthView(status="ok" if ok else "unavailable", checks=checks)


async def _said(check: Callable[[], Awaitable[object]]) -> str:
    """`ok`, or `unavailable`: why stands in the log, since anybody may ask."""
    try:
        await check()
    except OptiInfraError:
        return "unavailable"
    return "ok"
