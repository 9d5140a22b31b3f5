"""The gateway as a process: killed, stopped, restarted, misconfigured."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.gateway.__main__ import main
from optiinfra.gateway.app import Gateway, GatewayConfig
from optiinfra.schemas.errors import Conflict, Rejected, Unavailable
from optiinfra.schemas.routing import Backend, RouteTable
from tests.integration.gateway_stand import CHAT, TOKEN, Engine


@asynccontextmanager
async def process(
    tmp_path: Path,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, str]]]:
    """A gateway process that is up, with its two addresses."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "optiinfra.gateway", "--state-dir", str(tmp_path / "state"),
        "--token-file", str(token), "--port", "0", "--admin-port", "0", "--grace-s", "10",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running, await announced(running)
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def announced(running: asyncio.subprocess.Process) -> dict[str, str]:
    """The JSON line that tells the addresses; log lines may come before it."""
    assert running.stdout is not None
    async with asyncio.timeout(30):
        while True:
            line = await running.stdout.readline()
            assert line, "the gateway ended before it was up"
            if line.startswith(b"{"):
                addresses: dict[str, str] = json.loads(line)
                return addresses


def table(engine: Engine, version: int = 1) -> RouteTable:
    backend = Backend(replica=engine.name, url=engine.url, weight=1)
    return RouteTable(
        tenant="acme", deployment="chat", model="m", version=version, backends=(backend,)
    )


@pytest.fixture
async def red() -> AsyncIterator[Engine]:
    async with Engine("red").running() as engine:
        yield engine


async def test_routes_survive_kill_9(tmp_path: Path, red: Engine) -> None:
    async with process(tmp_path) as (running, urls):
        async with GatewayTraffic(urls["admin_url"], TOKEN) as traffic:
            await traffic.put(table(red))
        running.send_signal(signal.SIGKILL)
        await running.wait()
    async with process(tmp_path) as (_, urls), aiohttp.ClientSession() as http:
        async with GatewayTraffic(urls["admin_url"], TOKEN) as traffic:
            assert (await traffic.status("acme", "chat")).table == table(red)
        async with http.post(urls["url"] + CHAT, json={"model": "m"}) as answer:
            assert answer.status == 200


async def test_sigterm_finishes_what_has_begun_and_takes_nothing_new(
    tmp_path: Path, red: Engine
) -> None:
    red.hold.clear()
    async with process(tmp_path) as (running, urls), aiohttp.ClientSession() as http:
        async with GatewayTraffic(urls["admin_url"], TOKEN) as traffic:
            await traffic.put(table(red))
        async with http.post(urls["url"] + CHAT, json={"model": "m", "stream": True}) as answer:
            first = await answer.content.readany()
            running.terminate()
            port = int(urls["url"].rpartition(":")[2])
            async with asyncio.timeout(5):
                while await accepts(port):  # noqa: ASYNC110 another process
                    await asyncio.sleep(0.01)
            assert running.returncode is None
            red.hold.set()
            assert (first + await answer.read()).endswith(b"data: [DONE]\n\n")
        assert await asyncio.wait_for(running.wait(), 10) == 0


async def accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def config(tmp_path: Path, **changes: object) -> GatewayConfig:
    settings = {
        "state_dir": tmp_path,
        "admin_token": SecretStr(TOKEN),
        "port": 0,
        "admin_port": 0,
    }
    return GatewayConfig.model_validate(settings | changes)


async def test_no_request_is_lost_by_a_graceful_stop_under_load(
    tmp_path: Path, red: Engine
) -> None:
    gateway = Gateway(config(tmp_path), sink=None)
    await gateway.start()
    async with GatewayTraffic(gateway.admin_url, TOKEN) as traffic:
        await traffic.put(table(red))
    whole: list[bool] = []

    async def load() -> None:
        """Ask on a connection of one's own each time, until the port is closed."""
        async with aiohttp.ClientSession(headers={"Connection": "close"}) as http:
            while True:
                try:
                    async with http.post(
                        gateway.url + CHAT, json={"model": "m", "stream": True}
                    ) as answer:
                        whole.append((await answer.read()).endswith(b"[DONE]\n\n"))
                except aiohttp.ClientConnectorError:
                    return

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(load())
        async with asyncio.timeout(10):
            while len(whole) < 50:  # noqa: ASYNC110 filled by the load
                await asyncio.sleep(0.01)
        await gateway.stop(grace_s=5)
    assert all(whole)


async def test_a_request_beyond_the_grace_is_cut(tmp_path: Path, red: Engine) -> None:
    red.hold.clear()
    gateway = Gateway(config(tmp_path), sink=None)
    await gateway.start()
    async with GatewayTraffic(gateway.admin_url, TOKEN) as traffic:
        await traffic.put(table(red))
    body = {"model": "m", "stream": True}
    async with aiohttp.ClientSession() as http, http.post(gateway.url + CHAT, json=body) as answer:
        await answer.content.readany()
        await asyncio.wait_for(gateway.stop(grace_s=0.05), 10)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()


@pytest.mark.parametrize("content", ["", "{", '{"format": 2}', '{"tables": [{"model": "m"}]}'])
async def test_an_unreadable_state_refuses_to_start_until_reset(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "routes.json").write_text(content)
    for _ in range(2):
        with pytest.raises(Rejected, match="--reset-routes"):
            await Gateway(config(tmp_path), sink=None).start()
    assert (tmp_path / "routes.json").read_text() == content
    gateway = Gateway(config(tmp_path, reset_routes=True), sink=None)
    await gateway.start()
    await gateway.stop(grace_s=1)
    [aside] = tmp_path.glob("routes.json.corrupt-*")
    assert aside.read_text() == content


async def test_two_gateways_cannot_share_a_state(tmp_path: Path) -> None:
    first = Gateway(config(tmp_path), sink=None)
    await first.start()
    with pytest.raises(Conflict, match="another gateway"):
        await Gateway(config(tmp_path), sink=None).start()
    await first.stop(grace_s=1)


async def test_a_taken_port_is_a_clear_error_and_leaves_nothing_open(tmp_path: Path) -> None:
    first = Gateway(config(tmp_path / "a"), sink=None)
    await first.start()
    port = int(first.url.rpartition(":")[2])
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        await Gateway(config(tmp_path / "b", admin_port=port), sink=None).start()
    again = Gateway(config(tmp_path / "b"), sink=None)
    await again.start()
    await again.stop(grace_s=1)
    await first.stop(grace_s=1)


async def test_a_disk_that_refuses_leaves_the_routes_as_they_were(
    tmp_path: Path, red: Engine
) -> None:
    gateway = Gateway(config(tmp_path), sink=None)
    await gateway.start()
    async with GatewayTraffic(gateway.admin_url, TOKEN) as traffic:
        await traffic.put(table(red))
        (tmp_path / "routes.json.new").mkdir()  # even root cannot write a file there
        with pytest.raises(Unavailable, match="cannot be written"):
            await traffic.put(table(red, 2))
        assert (await traffic.status("acme", "chat")).table.version == 1
        (tmp_path / "routes.json.new").rmdir()
        await traffic.put(table(red, 2))
    await gateway.stop(grace_s=1)


def test_without_a_token_there_is_no_gateway(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Rejected, match="admin token"):
        Gateway(config(tmp_path, admin_token=SecretStr(" ")), sink=None)
    arguments = ["--state-dir", str(tmp_path), "--token-file", str(tmp_path / "none")]
    assert main(arguments) == 1
    assert "token file" in capsys.readouterr().err


def test_a_state_directory_that_cannot_be_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Rejected, match="state directory"):
        asyncio.run(Gateway(config(tmp_path / "file" / "x"), sink=None).start())
