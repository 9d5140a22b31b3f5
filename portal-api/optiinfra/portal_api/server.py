"""Serves the API inside any asyncio program: own socket, no signal handlers, a bounded end."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI

from optiinfra.portal_api.ports import ApiPorts
from optiinfra.schemas.errors import Rejected, Unavailable

GRACE_S = 2
WS_MAX_BYTES = 65_536


class _Server(uvicorn.Server):
    """Signals belong to the program that runs it."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def running_api(
    app: FastAPI, host: str, port: int, *, beyond_loopback: bool = False
) -> AsyncIterator[str]:
    """The API's address while it runs; port 0 takes a free one.

    Raises `Rejected` for an address that others can reach unless `beyond_loopback`, and
    `Unavailable` when the port is taken.
    """
    _require_loopback(host, beyond_loopback=beyond_loopback)
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}"
    server = _Server(_config(app))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await _started(server, serving)
        yield url
    finally:
        ports: ApiPorts = app.state.ports
        ports.hub.stop()
        server.should_exit = True
        await serving
        listening.close()


async def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    beyond_loopback: bool = False,
    started: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serves until it is cancelled; `started` is told the address."""
    async with running_api(app, host, port, beyond_loopback=beyond_loopback) as url:
        started(url)
        await asyncio.Event().wait()


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_max_size=WS_MAX_BYTES,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )


async def _started(server: uvicorn.Server, serving: asyncio.Task[None]) -> None:
    while not server.started:
        if serving.done():
            serving.result()
            raise Unavailable("the API ended while it was starting")
        await asyncio.sleep(0.01)


def _require_loopback(host: str, *, beyond_loopback: bool) -> None:
    if beyond_loopback or host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise Rejected(
            f"the API would listen on {host}, where others can reach it",
            hint="set OPTIINFRA_PORTAL_ALLOW_REMOTE=true to allow that, behind TLS",
        )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off (40 ms an answer) only where the protocol is named.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as taken:
        listening.close()
        raise Unavailable(
            f"the API cannot listen on {host}:{port}: {taken.strerror}",
            hint="stop what uses the port, or choose another with OPTIINFRA_PORTAL_PORT",
        ) from taken
    return listening
