"""The admin plane: routes by compare-and-set, counters, health and metrics."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aiohttp import web
from pydantic import ValidationError
from pydantic_core import to_json

from optiinfra.gateway.metrics import CONTENT_TYPE
from optiinfra.gateway.routes import RouteKey, StaleRoutes
from optiinfra.gateway.store import RouteBook
from optiinfra.gateway.tally import BOUNDS_S, Counted, Latency, Outcome, Tallies
from optiinfra.gateway.tap import Tap
from optiinfra.schemas.errors import NotFound, OptiInfraError, Rejected, Unavailable
from optiinfra.schemas.routing import RouteStatus, RouteTable

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class AdminPorts:
    """What the admin plane shows and changes."""

    book: RouteBook
    tallies: Tallies
    tap: Tap
    metrics: Callable[[], bytes]
    stopping: Callable[[], bool]
    clock: Callable[[], datetime]
    token: str


class Admin:
    """Handlers of the admin port; all under /admin/ need the bearer token."""

    def __init__(self, ports: AdminPorts) -> None:
        self._ports = ports

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._edge])
        one = "/admin/routes/{tenant}/{deployment}"
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
                web.get("/admin/routes", self._tables),
                web.get("/admin/counters", self._counters),
                web.get(one, self._status),
                web.put(one, self._put),
                web.delete(one, self._delete),
            ]
        )
        return app

    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/admin") and not self._authorized(request):
            headers = {"WWW-Authenticate": "Bearer"}
            return _problem(401, "a valid bearer token is needed", headers=headers)
        try:
            return await handler(request)
        except StaleRoutes as error:
            return _problem(409, str(error), current_version=error.current_version)
        except NotFound as error:
            key = _key(request)
            return _problem(404, str(error), current_version=self._ports.book.routes.version(key))
        except Rejected as error:
            return _problem(422, str(error))
        except Unavailable as error:
            return _problem(503, str(error), headers={"Retry-After": f"{error.retry_after_s:.0f}"})
        except OptiInfraError as error:
            return _problem(500, str(error))
        except web.HTTPException as error:
            return _problem(error.status, error.reason)

    def _authorized(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        offered = token.strip().encode(errors="surrogateescape")
        matches = hmac.compare_digest(offered, self._ports.token.encode())
        return matches and scheme.lower() == "bearer"

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        """Ready once routes are loaded (the port opens after that) and until the stop begins."""
        if self._ports.stopping():
            return _problem(503, "the gateway is stopping")
        return _json({"status": "ready", "deployments": len(self._ports.book.routes.tables)})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._ports.metrics(), headers={"Content-Type": CONTENT_TYPE})

    async def _tables(self, _request: web.Request) -> web.Response:
        tables = [table.model_dump(mode="json") for table in self._ports.book.routes.tables]
        return _json({"tables": tables})

    async def _status(self, request: web.Request) -> web.Response:
        return self._status_of(_key(request))

    async def _put(self, request: web.Request) -> web.Response:
        try:
            table = RouteTable.model_validate_json(await request.read())
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            raise Rejected(f"the body is no route table: {to_json(faults).decode()}") from error
        key = _key(request)
        if key != (table.tenant, table.deployment):
            raise Rejected("tenant and deployment of path and body differ")
        await self._ports.book.put(table)
        return self._status_of(key)

    async def _delete(self, request: web.Request) -> web.Response:
        expected = request.query.get("version")
        if expected is not None and not expected.isdecimal():
            raise Rejected("version must be a whole number")
        await self._ports.book.remove(_key(request), None if expected is None else int(expected))
        return web.Response(status=204)

    async def _counters(self, request: web.Request) -> web.Response:
        since = _since(request.query.get("since"))
        reached, rows = self._ports.tallies.since(since)
        tap = self._ports.tap
        body = {
            "at": self._ports.clock(),
            "since": reached,
            "bounds_s": BOUNDS_S,
            "totals": _outcomes(rows),
            "deployments": [_deployment(key, rows) for key in dict.fromkeys(r.key for r in rows)],
            "samples": {
                "delivered": tap.delivered,
                "dropped": tap.dropped,
                "oversized": tap.oversized,
                "waiting": tap.waiting,
            },
        }
        return _json(body)

    def _status_of(self, key: RouteKey) -> web.Response:
        route = self._ports.book.routes.get(key)
        if route is None:
            raise NotFound(f"there are no routes of {key.tenant}/{key.deployment}")
        counters = self._ports.tallies.counters(key)
        status = RouteStatus(table=route.table, counters=counters)
        return web.Response(body=status.model_dump_json().encode(), content_type="application/json")


def _deployment(key: RouteKey, rows: list[Counted]) -> dict[str, Any]:
    mine = [row for row in rows if row.key == key]
    return {
        "tenant": key.tenant,
        "deployment": key.deployment,
        **_outcomes(mine),
        "replicas": [
            {"replica": row.replica, **_outcomes([row]), "latency": _latency(row)}
            for row in mine
            if row.replica is not None
        ],
    }


def _outcomes(rows: list[Counted]) -> dict[str, int]:
    counts = {
        outcome.value: sum(row.reading.outcomes[at] for row in rows)
        for at, outcome in enumerate(Outcome)
    }
    retried = sum(row.reading.retried for row in rows)
    return {**counts, "retried": retried, "in_flight": sum(row.in_flight for row in rows)}


def _latency(row: Counted) -> dict[str, Any]:
    reading = row.reading
    return {
        kind.value: {"counts": reading.counts[at], "sum_s": reading.sums_s[at]}
        for at, kind in enumerate(Latency)
    }


def _since(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        since = datetime.fromisoformat(value)
    except ValueError as error:
        raise Rejected("since must be an ISO 8601 time") from error
    if since.tzinfo is None:
        raise Rejected("since must name its time zone")
    return since


def _key(request: web.Request) -> RouteKey:
    info = request.match_info
    return RouteKey(info.get("tenant", ""), info.get("deployment", ""))


def _json(body: Any) -> web.Response:
    return web.Response(body=to_json(body), content_type="application/json")


def _problem(
    status: int,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    current_version: int | None = None,
) -> web.Response:
    """An RFC 9457 problem."""
    body: dict[str, Any] = {"type": "about:blank", "status": status, "detail": detail}
    if current_version is not None:
        body["current_version"] = current_version
    return web.Response(
        status=status,
        body=to_json(body),
        content_type="application/problem+json",
        headers=headers,
    )
