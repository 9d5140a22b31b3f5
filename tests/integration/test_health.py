"""The port that orchestrators probe, with clients that keep connections and that write slowly."""

from __future__ import annotations

import asyncio

import httpx

from optiinfra.runtime.health import HealthServer


async def test_a_client_that_would_keep_its_connection_is_answered_each_time() -> None:
    async with (
        HealthServer(0, lambda: True, host="127.0.0.1") as server,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as http,
    ):
        answers = [await http.get("/readyz") for _ in range(50)]
    assert {(one.status_code, one.headers["connection"]) for one in answers} == {(200, "close")}


async def test_headers_that_come_late_do_not_cost_the_answer() -> None:
    async with HealthServer(0, lambda: False, host="127.0.0.1") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /readyz HTTP/1.1\r\n")
        early = asyncio.create_task(reader.read(1))
        for _ in range(20):
            writer.write(b"X-Probe: " + b"x" * 1_000 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        assert not early.done()
        writer.write(b"\r\n")
        answer = await early + await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"not ready")
