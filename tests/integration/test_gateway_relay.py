"""How an answer passes once its head has been sent: at once, in order, framed for its client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from optiinfra.gateway.measure import StreamMeter
from optiinfra.gateway.relay import Client, Relay
from optiinfra.gateway.upstream import BROKEN
from tests.integration.gateway_stand import CHAT, Bench, Engine, standing

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with standing(tmp_path / "state", idle_s=1.0) as bench:
        yield bench


@pytest.fixture
async def red() -> AsyncIterator[Engine]:
    async with Engine("red").running() as engine:
        yield engine


@asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Engine]:
    """An engine that follows `script` on each connection."""
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    async with server:
        engine = Engine("raw")
        engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield engine


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Reader:
    """A client that keeps up for as long as it is told to."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.fast = True

    def keeps_up(self) -> bool:
        return self.fast

    def send(self, data: bytes) -> None:
        self.got.append(data)


class Passing:
    """A relay whose backend says what the test says, while its task waits for the end."""

    def __init__(self, answer: aiohttp.ClientResponse, reader: Reader) -> None:
        assert answer.connection is not None
        assert answer.connection.protocol is not None
        assert answer.connection.transport is not None
        self.transport = answer.connection.transport
        self.own = answer.connection.protocol
        self.reader = reader
        self.meter = StreamMeter(1000)
        self.relay = Relay(answer, cast(Client, reader), self.meter, time.monotonic)
        self.next = asyncio.create_task(self.relay.next())

    @property
    def aside(self) -> bool:
        """Whether the client's own protocol is back, and with it its limit on silence."""
        limited = self.own.read_timeout is not None
        assert limited is (self.transport.get_protocol() is self.own)
        return limited


@pytest.fixture
async def passing() -> AsyncIterator[Passing]:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(b"first"))
        await reader.read()
        writer.close()

    async with (
        upstream(begin) as engine,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(sock_read=30)) as http,
        http.get(engine.url) as answer,
    ):
        assert await answer.content.readany() == b"first"
        passing = Passing(answer, Reader())
        await asyncio.sleep(0)
        assert not passing.aside
        yield passing
        passing.next.cancel()
        await asyncio.wait([passing.next])


async def test_a_token_has_been_sent_when_the_callback_that_brings_it_returns(
    passing: Passing,
) -> None:
    token = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n'
    passing.relay.data_received(chunk(token) + chunk(token)[:-20])
    passing.relay.data_received(chunk(token)[-20:])
    assert b"".join(passing.reader.got) == token + token
    passing.meter.finish()
    assert (passing.meter.answer.text, passing.meter.answer.output_tokens) == ("hihi", 2)
    assert not passing.next.done()


async def test_a_client_that_falls_behind_is_waited_for(passing: Passing) -> None:
    passing.relay.data_received(chunk(b"one"))
    passing.reader.fast = False
    passing.relay.data_received(chunk(b"two"))
    assert passing.aside
    assert await passing.next == b"two"
    assert passing.reader.got == [b"one"]
    assert not passing.relay.at_end()


async def test_an_ended_answer_gives_its_connection_back_at_once_and_its_last_bytes(
    passing: Passing,
) -> None:
    passing.relay.data_received(chunk(b"one"))
    passing.relay.data_received(chunk(b"last") + chunk(b""))
    assert passing.aside
    assert await passing.next == b"last"
    assert passing.reader.got == [b"one"]
    assert passing.relay.at_end()


async def test_a_cut_connection_is_broken_off(passing: Passing) -> None:
    passing.relay.data_received(chunk(b"one"))
    passing.transport.abort()
    with pytest.raises(BROKEN):
        await passing.next
    assert passing.reader.got == [b"one"]


async def test_answers_that_follow_one_another_share_a_connection(
    bench: Bench, red: Engine
) -> None:
    red.tokens, red.pace_s = 5, 0.005
    await bench.route((red, 1))
    bodies = {(await bench.ask())[1] for _ in range(4)}
    assert len(bodies) == 1
    sides = [request.transport for request in red.seen]
    assert len({side.get_extra_info("peername") for side in sides if side is not None}) == 1


async def test_an_upstream_that_falls_silent_amid_its_answer_runs_into_the_idle_limit(
    bench: Bench, red: Engine
) -> None:
    red.tokens, red.pace_s = 3, 0.4
    await bench.route((red, 1))
    status, body = await bench.ask()
    assert (status, body.endswith(b"[DONE]\n\n")) == (200, True)  # slow, but never silent for 1 s
    red.tokens = 1000
    async with bench.http.post(
        bench.gateway.url + CHAT, json={"model": "m", "stream": True}
    ) as answer:
        await answer.content.readuntil(b"red2")
        red.hold.clear()
        async with asyncio.timeout(10):
            assert b"upstream_broke" in await answer.read()
    totals = await bench.totals()
    assert (totals["served"], totals["truncated"]) == (1, 1)


async def test_very_many_small_chunks_at_once_pass_whole_and_in_order(bench: Bench) -> None:
    letters = bytes(65 + number * 7 % 26 for number in range(100_000))

    async def burst(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(b"first "))
        await asyncio.sleep(0.05)
        writer.write(b"".join(b"1\r\n%c\r\n" % letter for letter in letters))
        writer.write(chunk(b"\n\ndata: [DONE]\n\n") + chunk(b""))
        await writer.drain()
        await reader.read()
        writer.close()

    async with upstream(burst) as engine:
        await bench.route((engine, 1))
        status, body = await bench.ask()
    assert (status, body) == (200, b"first " + letters + b"\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("sized", [True, False])
async def test_a_large_body_is_framed_as_its_client_can_read_it(
    bench: Bench,
    version: str,
    sized: bool,  # noqa: FBT001
) -> None:
    """Bytes with their length, or without it; to clients of both versions of HTTP."""
    body = bytes(range(256)) * (4 << 12)
    length = b"Content-Length: %d\r\n" % len(body) if sized else b""

    async def blob(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + length + b"Connection: close\r\n\r\n")
        for start in range(0, len(body), 1 << 16):
            writer.write(body[start : start + (1 << 16)])
            await writer.drain()
        writer.close()

    async with upstream(blob) as engine:
        await bench.route((engine, 1))
        port = int(bench.gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"GET /v1/files/1 HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
            "X-OptiInfra-Deployment: chat\r\n\r\n".encode()
        )
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await writer.wait_closed()
    head, _, got = answer.partition(b"\r\n\r\n")
    if b"Transfer-Encoding: chunked" in head:
        assert (version, sized) == ("1.1", False)
        got = unchunked(got)
    assert (b"Content-Length" in head) is sized
    assert got == body


def unchunked(framed: bytes) -> bytes:
    pieces, at = [], 0
    while size := int(framed[at : (end := framed.index(b"\r\n", at))], 16):
        pieces.append(framed[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    assert framed[at:] == b"0\r\n\r\n"
    return b"".join(pieces)
