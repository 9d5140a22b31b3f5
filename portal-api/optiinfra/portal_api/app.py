"""Puts the API together: routes, problems, the edge, and the hub's life with the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from optiinfra.portal_api import problems
from optiinfra.portal_api.edge import Edge
from optiinfra.portal_api.pages import Pages
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.remembered import Forgetting
from optiinfra.portal_api.routes import (
    charts,
    conflicts,
    deployment,
    events,
    figures,
    fleet,
    health,
    hindsight,
    keys,
    lanes,
    letters,
    notifications,
    policies,
    recommendations,
    series,
    session,
    sessions,
    sign_in,
    slack,
    stream,
    users,
    workers,
)
from optiinfra.portal_api.routes.changes import changes_router
from optiinfra.portal_api.routes.snooze import snooze_router
from optiinfra.portal_api.routes.switch import switch_router

TITLE = "OptiInfra"
VERSION = "1"
_PROBLEM = {
    "description": "What went wrong, as RFC 9457 says",
    "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def _new_id() -> str:
    return uuid4().hex


def create_app(ports: ApiPorts, *, new_id: Callable[[], str] = _new_id) -> FastAPI:
    """The API over these ports; its lifespan runs the live stream's feed."""
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        lifespan=_lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_name,
    )
    app.state.ports = ports
    problems.install(app)
    app.add_middleware(Edge, new_id=new_id)
    app.include_router(health.router)
    for router in _version_1(new_id):
        app.include_router(router, prefix="/api/v1")
    app.router.default = Pages(app.router.default)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _version_1(new_id: Callable[[], str]) -> tuple[APIRouter, ...]:
    """Side by side, since FastAPI matches a path anew at each level of routers in routers."""
    return (
        session.router,
        sessions.router,
        fleet.router,
        recommendations.router,
        snooze_router(new_id),
        changes_router(new_id),
        conflicts.router,
        series.router,
        figures.router,
        lanes.router,
        deployment.router,
        charts.router,
        workers.router,
        policies.router,
        events.router,
        hindsight.router,
        letters.router,
        notifications.router,
        switch_router(new_id),
        stream.router,
        users.router,
        keys.router,
        sign_in.router,
        slack.router,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    ports: ApiPorts = app.state.ports
    feeding = asyncio.create_task(ports.hub.run())
    forgetting = asyncio.create_task(Forgetting(ports.hub, ports.series).run())
    try:
        yield
    finally:
        ports.hub.stop()
        for task in (feeding, forgetting):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _operation_name(route: APIRoute) -> str:
    return route.name


def _openapi(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1 with the one shape that all errors have here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=TITLE, version=VERSION, routes=app.routes)
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        parts["Problem"] = problems.Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            parts.pop(unused, None)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                operation["responses"]["default"] = _PROBLEM
        app.openapi_schema = schema
    return app.openapi_schema
