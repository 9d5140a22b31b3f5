"""Restate: its server, our service behind hypercorn, and a client that calls it over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.peers.rounds import answer_rounds, payload

READY_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(*command: str, log: Path, **environment: str) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def until_answered(client: httpx.AsyncClient, method: str, url: str, body: object) -> None:
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.request(method, url, json=body)).status_code < 300:
                    return
            await asyncio.sleep(0.2)


async def drive(admin: str, ingress: str, service: str) -> None:
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:
        await until_answered(client, "GET", f"{admin}/health", None)
        wanted = {"uri": service, "force": True}
        await until_answered(client, "POST", f"{admin}/deployments", wanted)

        async def one() -> None:
            key = {"idempotency-key": str(uuid.uuid4())}
            done = await client.post(f"{ingress}/saga/run", json=payload(), headers=key)
            assert done.json()["ok"]

        await answer_rounds(one)


def main(server: str, folder: Path) -> None:
    ports = {name: free_port() for name in ("ingress", "admin", "node", "service")}
    environment = {
        "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{ports['ingress']}",
        "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{ports['admin']}",
        "RESTATE_BIND_ADDRESS": f"127.0.0.1:{ports['node']}",
        "RESTATE_ADVERTISED_ADDRESS": f"http://127.0.0.1:{ports['node']}",
        "RESTATE_CLUSTER_NAME": "bench",
        "RESTATE_DISABLE_TELEMETRY": "true",
        "RESTATE_LISTEN_MODE": "tcp",
        "DO_NOT_TRACK": "1",
    }
    service = ("-m", "hypercorn", "-b", f"127.0.0.1:{ports['service']}")
    with (
        running(
            server, "--base-dir", str(folder / "restate"), "--node-name", "n1",
            log=folder / "restate.log", **environment,
        ),
        running(
            sys.executable, *service, "bench.peers.restate_service:app",
            log=folder / "hypercorn.log",
        ),
    ):  # fmt: skip
        asyncio.run(
            drive(
                f"http://127.0.0.1:{ports['admin']}",
                f"http://127.0.0.1:{ports['ingress']}",
                f"http://127.0.0.1:{ports['service']}",
            )
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
