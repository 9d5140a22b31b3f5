"""The data plane: takes a request, finds its backend, streams the answer through."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from pydantic_core import to_json

from optiinfra.gateway.exchange import NO_BACKEND, Exchange, Ports
from optiinfra.gateway.headers import REQUEST_ID, usable_request_id
from optiinfra.gateway.inbound import Inbound, read_inbound
from optiinfra.gateway.refusal import Refusal, refuse
from optiinfra.gateway.routes import Route, Routes
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import NewId


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take."""

    body_bytes: int
    body_s: float


class Proxy:
    """Handles every request of the data port; counts those that are open."""

    def __init__(self, ports: Ports, limits: Limits, new_id: NewId) -> None:
        self._ports = ports
        self._limits = limits
        self._new_id = new_id
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_requests(self) -> int:
        return self._open

    async def wait_idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = usable_request_id(request.headers.get(REQUEST_ID)) or self._new_id()
        with self._counted():
            try:
                response = await self._answer(request, request_id)
            except Refusal as refusal:
                response = refusal.problem.response(request_id)
            if self._ports.stopping():
                response.force_close()
            return response

    async def _answer(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        inbound = await read_inbound(
            request,
            request_id,
            limit_bytes=self._limits.body_bytes,
            timeout_s=self._limits.body_s,
        )
        if inbound.method == "GET" and _is_models(inbound.path) and not inbound.deployment:
            return _models(inbound, self._ports.routes())
        route = _route(inbound, self._ports.routes())
        return await Exchange(self._ports, request, inbound, route.key).run()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._open += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()


def _route(inbound: Inbound, routes: Routes) -> Route:
    """The route asked for; refuses unknown names, telling the known ones.

    Before the first replica serves, no name is known: then clients are told to come again.
    """
    if not routes.tables:
        raise Refusal(NO_BACKEND)
    known = ", ".join(routes.models) or "none"
    if inbound.deployment is not None:
        try:
            route = routes.by_name(inbound.deployment)
        except Rejected as error:
            raise refuse(400, "deployment_ambiguous", str(error)) from error
        what, code = f"deployment {inbound.deployment!r}", "deployment_not_found"
    else:
        route = routes.by_model(inbound.model)
        what, code = f"model {inbound.model!r}", "model_not_found"
    if route is None:
        raise refuse(404, code, f"{what[:200]} does not exist; known models: {known}", "model")
    return route


def _is_models(path: str) -> bool:
    return path == "/v1/models" or path.startswith("/v1/models/")


def _models(inbound: Inbound, routes: Routes) -> web.Response:
    rows = {
        table.model: {
            "id": table.model,
            "object": "model",
            "created": 0,
            "owned_by": table.tenant,
        }
        for table in routes.tables
    }
    name = inbound.path.removeprefix("/v1/models").removeprefix("/")
    if name and name not in rows:
        known = ", ".join(routes.models) or "none"
        message = f"model {name[:200]!r} does not exist; known models: {known}"
        raise refuse(404, "model_not_found", message, "model")
    body = rows[name] if name else {"object": "list", "data": list(rows.values())}
    return web.Response(
        body=to_json(body),
        content_type="application/json",
        headers={REQUEST_ID: inbound.request_id},
    )


def data_server(proxy: Proxy, body_bytes: int) -> web.Server:
    """The HTTP server of the data port: a client that leaves cancels its request."""
    loop = asyncio.get_running_loop()

    def request_of(
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, loop, client_max_size=body_bytes
        )

    return web.Server(proxy, request_factory=request_of, handler_cancellation=True, access_log=None)
