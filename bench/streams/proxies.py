"""What stands between load and engine: nothing, our gateway, Caddy, nginx. Each on a free port."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.peers import install
from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.schemas.routing import Backend, RouteTable

TOKEN = "bench-only-token"
_UP_S = 10.0


@asynccontextmanager
async def process(
    *command: str, environment: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child with pipes; ended at the end."""
    running = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        limit=1 << 28,
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
        await running.wait()


@asynccontextmanager
async def module(
    *arguments: str, environment: dict[str, str] | None = None
) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """A Python module that announces its addresses as a line of JSON: its pid and the addresses."""
    command = (sys.executable, "-m", *arguments)
    async with process(*command, environment=environment) as running:
        assert running.stdout is not None
        while not (line := await running.stdout.readline()).startswith(b"{"):
            if not line:
                raise SystemExit(f"{arguments[0]} did not start")
        yield running.pid, json.loads(line)


@asynccontextmanager
async def gateway(upstreams: Sequence[str], folder: Path) -> AsyncIterator[tuple[int, str, str]]:
    """Ours as it is deployed, with a route over `upstreams`: its pid, its URL, its admin URL."""
    arguments = ("optiinfra.runtime.gateway_main", "--state-dir", str(folder), "--port", "0")
    environment = {"OPTIINFRA_GATEWAY_ADMIN_TOKEN": TOKEN, "OPTIINFRA_LOG_LEVEL": "warning"}
    async with module(*arguments, environment=environment) as (pid, told):
        backends = tuple(
            Backend(replica=f"r{number}", url=url, weight=1) for number, url in enumerate(upstreams)
        )
        table = RouteTable(
            tenant="bench", deployment="fixed", model="fixed", version=1, backends=backends
        )
        async with GatewayTraffic(told["admin_url"], TOKEN) as traffic:
            await traffic.put(table)
        yield pid, told["url"], told["admin_url"]


@asynccontextmanager
async def caddy(upstreams: Sequence[str], folder: Path) -> AsyncIterator[tuple[int, str]]:
    """Raises `NotInstalled`."""
    binary, port = install.caddy(), _free_port()
    (folder / "Caddyfile").write_text(
        "{\n admin off\n auto_https off\n persist_config off\n log {\n  level ERROR\n }\n}\n"
        f"http://127.0.0.1:{port} {{\n bind 127.0.0.1\n"
        f" reverse_proxy {' '.join(upstreams)} {{\n  lb_policy random\n }}\n}}\n"
    )
    command = (binary, "run", "--config", str(folder / "Caddyfile"))
    async with process(*command, environment={"XDG_DATA_HOME": str(folder)}) as running:
        await _listening(running, port)
        yield running.pid, f"http://127.0.0.1:{port}"


@asynccontextmanager
async def nginx(upstreams: Sequence[str], folder: Path) -> AsyncIterator[tuple[int, str]]:
    """Raises `NotInstalled`."""
    binary, port = shutil.which("nginx"), _free_port()
    if binary is None:
        raise install.NotInstalled("nginx is not on this machine")
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in upstreams)
    # in `http`: wherever else they stand, the built-in paths are made too, which takes root
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr error; worker_processes auto;\n"
        "events { worker_connections 4096; }\n"
        f"http {{ access_log off; {temporary}\n"
        f" upstream engines {{ random; {servers} keepalive 256; }}\n"
        f" server {{ listen 127.0.0.1:{port}; keepalive_requests 100000;\n"
        "  location / { proxy_pass http://engines; proxy_http_version 1.1;\n"
        '   proxy_set_header Connection ""; proxy_buffering off; } } }\n'
    )
    async with process(binary, "-p", str(folder), "-c", str(folder / "nginx.conf")) as running:
        await _listening(running, port)
        yield running.pid, f"http://127.0.0.1:{port}"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


async def _listening(running: asyncio.subprocess.Process, port: int) -> None:
    """Raise `NotInstalled` when the server does not come up."""
    try:
        async with asyncio.timeout(_UP_S):
            while running.returncode is None:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return
    except TimeoutError:
        pass
    raise install.NotInstalled(
        f"it does not listen on port {port}; it ended with {running.returncode}"
    )
