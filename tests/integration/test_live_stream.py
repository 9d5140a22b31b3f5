"""The live stream on a real broker and over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.facts import SwitchTurned
from optiinfra.events.publish import Publisher
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.routes import socket as live_socket
from optiinfra.portal_api.server import running_api
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.ports import free_port
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.database import Database, open_database
from tests.factories import AT

PATIENCE_S = 20.0


@dataclass
class Live:
    """A broker with streams, a database, and who says things."""

    bus: Bus
    server: NatsServer
    database: Database
    database_url: str
    publisher: Publisher

    async def say(self, *names: str, tenant: str = "acme") -> list[int]:
        events = [
            self.publisher.event(
                SwitchTurned(tenant=tenant, stopped=True, by="ana", reason=name, at=AT),
                tenant=tenant,
            )
            for name in names
        ]
        return [await self.publisher.publish(event) for event in events]

    async def token(self, tenant: str = "acme", lasts_s: float = 600.0) -> str:
        access = AccessTokens(self.database)
        return await access.issue(tenant, "ana", Role.VIEWER, lasts_s=lasts_s)

    @asynccontextmanager
    async def api(self, port: int = 0, ring_size: int = 4096) -> AsyncIterator[str]:
        ports = api_ports(self.database, self.bus, self.publisher, ring_size=ring_size)
        async with running_api(create_app(ports), "127.0.0.1", port) as url:
            yield url


@pytest.fixture
async def live(database: str, nats_server: Callable[[], NatsServer]) -> AsyncIterator[Live]:
    server = nats_server()
    bus = await Bus.connect(server.url, name="test")
    try:
        await topology.apply(bus)
        publisher = Publisher(bus, "test", lambda: datetime.now(UTC), lambda: uuid4().hex)
        async with open_database(database) as opened:
            yield Live(bus, server, opened, database, publisher)
    finally:
        await bus.close()


class Watching(ClientConnection):
    """A client that takes messages apart: each line is a frame."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.lines: deque[str] = deque()

    async def frame(self) -> dict[str, Any]:
        if not self.lines:
            self.lines.extend(str(await self.recv()).split("\n"))
        read: dict[str, Any] = json.loads(self.lines.popleft())
        return read


@asynccontextmanager
async def watching(
    url: str, token: str, after: int | None = None, **options: Any
) -> AsyncIterator[Watching]:
    query = "" if after is None else f"?after={after}"
    address = url.replace("http", "ws", 1) + f"/api/v1/stream{query}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with connect(
        address,
        additional_headers=headers,
        compression=None,
        proxy=None,
        create_connection=Watching,
        **options,
    ) as socket:
        assert isinstance(socket, Watching)
        yield socket


async def frame(socket: Watching) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        return await socket.frame()


async def reasons(socket: Watching, count: int) -> list[str]:
    """The next `count` events, whose `prev` must join them without a gap."""
    found: list[str] = []
    prev: int | None = None
    while len(found) < count:
        one = await frame(socket)
        if one["kind"] == "event":
            assert prev in (None, one["prev"])
            prev = one["seq"]
            found.append(one["data"]["reason"])
    return found


async def closed_with(socket: ClientConnection) -> int:
    """The code that the server closes with; frames before it are passed over."""
    with suppress(ConnectionClosed):
        async with asyncio.timeout(PATIENCE_S):
            async for _ in socket:
                pass
    assert socket.close_code is not None
    return socket.close_code


async def test_a_client_is_greeted_and_hears_what_is_said(live: Live) -> None:
    await live.say("before")
    async with live.api() as url, watching(url, await live.token()) as socket:
        hello = await frame(socket)
        assert (hello["kind"], hello["v"], hello["head"], hello["oldest"]) == ("hello", 2, 1, 1)
        assert datetime.fromisoformat(hello["stream_epoch"]).tzinfo is not None
        (sequence,) = await live.say("now")
        event = await frame(socket)
    assert (event["kind"], event["seq"], event["prev"]) == ("event", sequence, 1)
    assert event["type"] == "optiinfra.switch.turned.v1"
    assert event["specversion"] == "1.0"
    assert event["data"]["reason"] == "now"


async def test_two_tenants_do_not_hear_each_other(live: Live) -> None:
    async with (
        live.api() as url,
        watching(url, await live.token("acme"), 0) as acme,
        watching(url, await live.token("globex"), 0) as globex,
    ):
        await live.say("a1")
        await live.say("g1", tenant="globex")
        await live.say("a2")
        await live.say("g2", tenant="globex")
        assert await reasons(acme, 2) == ["a1", "a2"]
        assert await reasons(globex, 2) == ["g1", "g2"]


async def test_a_client_resumes_after_a_restart_without_gap_or_repeat(live: Live) -> None:
    port, token = free_port(), await live.token()
    async with live.api(port) as url, watching(url, token, 0) as socket:
        await live.say("1", "2")
        assert await reasons(socket, 2) == ["1", "2"]
        socket_left = socket
    assert await closed_with(socket_left) in (1012, 1000, 1005)
    await live.say("3")
    async with live.api(port) as url:
        await live.say("4")
        async with watching(url, token, 2) as socket:
            assert await reasons(socket, 2) == ["3", "4"]


async def test_clients_are_told_to_come_back_when_the_api_stops(live: Live) -> None:
    async with AsyncExitStack() as stack:
        async with live.api() as url:
            socket = await stack.enter_async_context(watching(url, await live.token()))
            await frame(socket)
        assert await closed_with(socket) == 1012


async def _start(live: Live, port: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.integration.api_process",
        live.database_url,
        live.server.url,
        str(port),
        cwd=Path(__file__).parents[2],
    )
    async with asyncio.timeout(60), httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/readyz")
                if answer.status_code == 200:
                    return process
            except httpx.TransportError:
                assert process.returncode is None
            await asyncio.sleep(0.05)


async def test_a_client_resumes_after_kill_9_without_gap_or_repeat(live: Live) -> None:
    port, token = free_port(), await live.token()
    url = f"http://127.0.0.1:{port}"
    process = await _start(live, port)
    try:
        await live.say(*"123")
        async with watching(url, token, 0) as socket:
            assert await reasons(socket, 3) == ["1", "2", "3"]
            process.send_signal(signal.SIGKILL)
            await process.wait()
            await live.say(*"45")
        process = await _start(live, port)
        async with watching(url, token, 3) as socket:
            await live.say("6")
            assert await reasons(socket, 3) == ["4", "5", "6"]
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def test_an_old_cursor_is_served_from_the_broker_until_the_ring(live: Live) -> None:
    names = [str(number) for number in range(40)]
    await live.say(*names[:35])
    async with live.api(ring_size=8) as url, watching(url, await live.token(), 0) as socket:
        first = asyncio.create_task(reasons(socket, 40))
        await live.say(*names[35:])
        assert await first == names


async def test_what_the_stream_no_longer_keeps_is_named_as_a_gap(live: Live) -> None:
    await live.say(*"12345")
    await live.bus.js.purge_stream("CHANGES", seq=4)
    async with live.api(ring_size=1) as url, watching(url, await live.token(), 1) as socket:
        assert (await frame(socket))["oldest"] == 4
        assert await frame(socket) == {"kind": "gap", "from": 2, "to": 3}
        assert await reasons(socket, 2) == ["4", "5"]
    async with live.api() as url, watching(url, await live.token(), 99) as socket:
        await frame(socket)
        assert await frame(socket) == {"kind": "gap", "from": 6, "to": 99}


async def test_the_stream_goes_on_after_the_broker_restarts(live: Live) -> None:
    async with live.api() as url, watching(url, await live.token(), 0) as socket:
        await live.say("1")
        assert await reasons(socket, 1) == ["1"]
        live.server.kill()
        live.server.start()
        await live.say("2", "3")
        assert await reasons(socket, 2) == ["2", "3"]


async def test_a_stream_made_anew_sends_clients_back_to_the_beginning(live: Live) -> None:
    async with live.api() as url, watching(url, await live.token(), 0) as socket:
        await live.say("1")
        before = await frame(socket)
        assert await reasons(socket, 1) == ["1"]
        await live.bus.js.delete_stream("CHANGES_REPLAY")
        await live.bus.js.delete_stream("CHANGES")
        await topology.apply(live.bus)
        assert await closed_with(socket) == 1012
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with watching(url, await live.token(), 0) as again:
                    hello = await frame(again)
                    assert hello["stream_epoch"] != before["stream_epoch"]
                    await live.say("new")
                    with_new = asyncio.create_task(reasons(again, 1))
                    try:
                        assert await with_new == ["new"]
                        break
                    except ConnectionClosed:
                        continue


async def test_a_ticket_opens_one_socket(live: Live) -> None:
    async with live.api() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        token = await live.token()
        drawn = await client.post(
            "/api/v1/stream/ticket", headers={"Authorization": f"Bearer {token}"}
        )
        protocols = ["optiinfra.v1", f"ticket.{drawn.json()['ticket']}"]
        async with watching(url, "", 0, subprotocols=protocols, origin=url) as socket:
            assert socket.subprotocol == "optiinfra.v1"
            assert (await frame(socket))["kind"] == "hello"
        async with watching(url, "", 0, subprotocols=protocols) as socket:
            assert await closed_with(socket) == 4401
        used = {"Authorization": f"Bearer {drawn.json()['ticket']}"}
        assert (await client.get("/api/v1/agents", headers=used)).status_code == 401


async def test_strangers_and_foreign_pages_are_turned_away(live: Live) -> None:
    async with live.api() as url:
        async with watching(url, "oi_s-1_wrong") as socket:
            assert await closed_with(socket) == 4401
        async with watching(url, "") as socket:
            assert await closed_with(socket) == 4401
        async with watching(url, await live.token(), origin="https://evil.example") as socket:
            assert await closed_with(socket) == 4403


async def test_a_token_that_ends_closes_the_stream(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_socket, "PING_S", 0.0)
    token = await live.token()
    async with live.api() as url, watching(url, token, 0) as socket:
        await live.say("1")
        assert await reasons(socket, 1) == ["1"]
        assert await AccessTokens(live.database).revoke("acme", token.split("_")[1])
        await live.say("2", "3")
        assert await closed_with(socket) == 4401


async def test_a_client_that_does_not_read_costs_little_and_is_cut_off(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_socket, "STALLED_S", 0.2)
    async with live.api(ring_size=64) as url:
        token = await live.token()
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131_072)
        lazy.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
        reader, writer = await asyncio.open_connection(sock=lazy, limit=1024)
        writer.write(
            b"GET /api/v1/stream?after=0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Version: 13\r\nAuthorization: Bearer " + token.encode() + b"\r\n\r\n"
        )
        try:
            await reader.readuntil(b"hello")
            with capture_logs() as logged:
                before = _resident_bytes()
                await live.say(*("x" * 50_000 for _ in range(300)))
                async with asyncio.timeout(PATIENCE_S):
                    while not any(e.get("code") == 4408 for e in logged):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            assert _resident_bytes() - before < 40_000_000
        finally:
            writer.transport.abort()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_server_sent_events_resume_by_the_last_event_id(live: Live) -> None:
    await live.say(*"123")
    async with live.api() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {await live.token()}", "Last-Event-ID": "1"}
        seen: list[tuple[str, str]] = []
        async with client.stream("GET", "/api/v1/sse", headers=headers, timeout=PATIENCE_S) as sse:
            assert sse.headers["content-type"].startswith("text/event-stream")
            number = ""
            async for line in sse.aiter_lines():
                if line.startswith("id: "):
                    number = line.removeprefix("id: ")
                if line.startswith("data: ") and number:
                    seen.append((number, json.loads(line.removeprefix("data: "))["data"]["reason"]))
                if len(seen) == 2:
                    break
    assert seen == [("2", "2"), ("3", "3")]


async def test_a_snapshot_waits_for_the_log_before_it_names_a_sequence(live: Live) -> None:
    await live.say("1")
    async with live.api() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {await live.token()}"}
        (sequence,) = await live.say("2")
        async with watching(url, await live.token(), 0) as socket:
            await reasons(socket, 2)
        first = await client.get("/api/v1/agents", headers=headers)
    assert int(first.headers["x-event-seq"]) < sequence


async def test_beyond_loopback_needs_saying_so(live: Live) -> None:
    from optiinfra.schemas.errors import Rejected, Unavailable

    ports = api_ports(live.database, live.bus, live.publisher)
    with pytest.raises(Rejected, match="others can reach"):
        async with running_api(create_app(ports), "0.0.0.0", 0):
            pass
    async with live.api() as url:
        with pytest.raises(Unavailable, match="cannot listen"):
            async with running_api(create_app(ports), "127.0.0.1", int(url.rsplit(":", 1)[1])):
                pass
