"""Many streams through the gateway as it is deployed: pressure, hang-ups, changes of weights."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.runtime.gateway_process import GatewayProcess, GatewayRecord
from optiinfra.schemas.routing import Backend, BackendState, RouteTable
from optiinfra.twin.defects import Defect
from optiinfra.twin.emulator import EmulatorConfig, EmulatorServer
from tests.integration.gateway_stand import CHAT, Engine

NOWHERE = "nats://127.0.0.1:9"
FREED_S = 2.0
"""How soon an engine has to know that its client has gone."""
MIB = 1 << 20
WHOLE = 64 * MIB
PIECES = 1024
STREAMS = 200


class Flood:
    """An upstream that sends one huge answer as fast as it is taken."""

    def __init__(self) -> None:
        self.sent = 0
        self.digest = hashlib.sha256()
        self.left = asyncio.Event()
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Flood]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Connection: close\r\n\r\n")
        try:
            for number in range(PIECES + 1):
                event = b"data: [DONE]\n\n" if number == PIECES else piece(number)
                writer.write(event)
                await writer.drain()
                self.sent += len(event)
                self.digest.update(event)
        except ConnectionError:
            self.left.set()
        writer.close()


def piece(number: int) -> bytes:
    return f"data: {number:<{WHOLE // PIECES - 8}}\n\n".encode()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayRecord]:
    """A process on the loop that it is deployed on."""
    process = GatewayProcess(tmp_path, host="127.0.0.1", port=0, sample_fraction=0.0)
    try:
        yield await process.ensure(NOWHERE)
    finally:
        await process.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def route(gateway: GatewayRecord, version: int, *backends: Backend) -> None:
    table = RouteTable(
        tenant="acme", deployment="chat", model="m", version=version, backends=backends
    )
    async with GatewayTraffic(gateway.admin_url, gateway.admin_token) as traffic:
        await traffic.put(table)


def backend(name: str, url: str, weight: float = 1.0) -> Backend:
    return Backend(replica=name, url=url, weight=weight)


async def until(condition: Callable[[], bool], limit_s: float) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 another process
            await asyncio.sleep(0.01)


async def stalled(flood: Flood) -> None:
    """Until it has sent nothing for a second, at most half a minute."""
    loop = asyncio.get_running_loop()
    seen, since_s = flood.sent, loop.time()
    async with asyncio.timeout(30):
        while not seen or loop.time() - since_s < 1:
            await asyncio.sleep(0.02)
            if flood.sent != seen:
                seen, since_s = flood.sent, loop.time()


async def silent(answer: aiohttp.ClientResponse) -> None:
    """Until nothing has come for half a second, at most half a minute."""
    async with asyncio.timeout(30):
        while True:
            try:
                await asyncio.wait_for(answer.content.readany(), 0.5)
            except TimeoutError:
                return


async def test_a_slow_reader_stops_the_engine_and_costs_the_gateway_little_memory(
    gateway: GatewayRecord, http: aiohttp.ClientSession
) -> None:
    async with Flood().running() as flood:
        await route(gateway, 1, backend("flood", flood.url))
        before = psutil.Process(gateway.pid).memory_info().rss
        async with http.post(gateway.url + CHAT, json={"model": "m", "stream": True}) as answer:
            await stalled(flood)
            assert flood.sent < WHOLE / 2  # the rest of what was sent is in the kernel's buffers
            assert psutil.Process(gateway.pid).memory_info().rss - before < 8 * MIB
            got = hashlib.sha256()
            async for data in answer.content.iter_any():
                got.update(data)
        assert flood.sent > WHOLE
        assert got.digest() == flood.digest.digest()


async def test_a_slow_reader_that_leaves_frees_the_engine(
    gateway: GatewayRecord, http: aiohttp.ClientSession
) -> None:
    async with Flood().running() as flood:
        await route(gateway, 1, backend("flood", flood.url))
        answer = await http.post(gateway.url + CHAT, json={"model": "m", "stream": True})
        await stalled(flood)
        answer.close()
        await asyncio.wait_for(flood.left.wait(), FREED_S)


async def test_a_client_that_hangs_up_frees_its_slot_at_the_engine(
    gateway: GatewayRecord, http: aiohttp.ClientSession
) -> None:
    config = EmulatorConfig(card="l40s-8b-fp16-tp1", model="m", grace_s=0)
    async with EmulatorServer(config) as emulator:
        await route(gateway, 1, backend("emulator", emulator.url))
        running = emulator.endpoints.engine.scheduler.running
        body = {
            "model": "m",
            "stream": True,
            "max_tokens": 2000,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "hi"}],
        }
        stays = await http.post(gateway.url + CHAT, json=body)
        leaves = await http.post(gateway.url + CHAT, json=body)
        await leaves.content.readany()
        assert len(running) == 2
        emulator.degrade(Defect(slowdown=1000))
        await silent(leaves)  # no token comes that could tell the gateway
        leaves.close()
        await until(lambda: len(running) == 1, FREED_S)
        async with http.get(emulator.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        [gauge] = [line for line in lines if line.startswith("vllm:num_requests_running{")]
        assert float(gauge.rpartition(" ")[2]) == 1
        stays.close()


async def test_no_token_is_lost_or_reordered_while_weights_change(
    gateway: GatewayRecord, http: aiohttp.ClientSession
) -> None:
    async with Engine("red").running() as red, Engine("blue").running() as blue:
        for engine in (red, blue):
            engine.tokens, engine.pace_s = 60, 0.02
        expected = {f"{one.name}": [f"{one.name}{n} " for n in range(60)] for one in (red, blue)}
        await route(gateway, 1, backend("red", red.url), backend("blue", blue.url))
        asked = [asyncio.create_task(words(gateway, http)) for _ in range(STREAMS)]
        version = 1
        while not all(task.done() for task in asked):
            version += 1
            await route(gateway, version, *turned(version, red, blue))
        answers = [await task for task in asked]
    shares = [answer[0].removesuffix("0 ") for answer in answers]
    assert answers == [expected[share] for share in shares]
    assert {"red", "blue"} == set(shares)
    assert version > 10


def turned(version: int, red: Engine, blue: Engine) -> tuple[Backend, ...]:
    """The weights swung over, one side draining, one side gone: in turns."""
    mine, other = (red, blue) if version % 2 else (blue, red)
    kept = backend(mine.name, mine.url, 1 + version % 7)
    if version % 3 == 0:
        return (kept,)
    state = BackendState.DRAINING if version % 3 == 1 else BackendState.ACTIVE
    return kept, Backend(replica=other.name, url=other.url, weight=1, state=state)


async def words(gateway: GatewayRecord, http: aiohttp.ClientSession) -> list[str]:
    """What one stream said, token by token, to its [DONE]."""
    async with http.post(gateway.url + CHAT, json={"model": "m", "stream": True}) as answer:
        assert answer.status == 200
        events = (await answer.read()).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    deltas = (json.loads(event[6:])["choices"][0]["delta"] for event in events[:-2])
    return [delta["content"] for delta in deltas if delta]
