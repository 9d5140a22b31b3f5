"""The gateway of a home: taken over while it lives, ended when its start was cut off."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from optiinfra.runtime.gateway_process import GatewayProcess
from optiinfra.schemas.errors import Unavailable

NOWHERE = "nats://127.0.0.1:9"


def gateway(home: Path) -> GatewayProcess:
    return GatewayProcess(home, host="127.0.0.1", port=0, sample_fraction=0.0)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path
    await gateway(tmp_path).stop()


async def test_it_starts_without_a_bus_and_a_second_owner_takes_it_over(home: Path) -> None:
    first = await gateway(home).ensure(NOWHERE)
    assert stat.S_IMODE((home / "gateway.json").stat().st_mode) == 0o600
    assert await gateway(home).ensure(NOWHERE) == first
    assert await gateway(home).stop() is True
    assert await gateway(home).stop() is False
    again = await gateway(home).ensure(NOWHERE)
    assert (again.url, again.admin_token) == (first.url, first.admin_token)
    assert again.pid != first.pid


async def test_another_bus_means_another_process_at_the_same_address(home: Path) -> None:
    first = await gateway(home).ensure(NOWHERE)
    second = await gateway(home).ensure("nats://127.0.0.1:10")
    assert second.pid != first.pid
    assert second.url == first.url
    assert not psutil.pid_exists(first.pid) or _is_zombie(first.pid)


async def test_a_start_that_is_cut_off_leaves_no_process(home: Path) -> None:
    starting = home / "gateway.starting"
    task = asyncio.create_task(gateway(home).ensure(NOWHERE))
    async with asyncio.timeout(20):
        while not starting.exists():  # noqa: ASYNC110 - written by another task
            await asyncio.sleep(0.005)
    pid = int(starting.read_text().split()[0])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(10):
        while psutil.pid_exists(pid) and not _is_zombie(pid):  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.01)
    fresh = await gateway(home).ensure(NOWHERE)
    assert fresh.pid != pid


async def test_one_whose_starter_was_killed_is_ended_by_the_next(home: Path) -> None:
    first = await gateway(home).ensure(NOWHERE)
    (home / "gateway.starting").write_text(f"{first.pid} {first.started}")
    (home / "gateway.json").unlink()
    second = await gateway(home).ensure(NOWHERE)
    assert second.pid != first.pid
    assert not psutil.pid_exists(first.pid) or _is_zombie(first.pid)


async def test_it_runs_on_the_fast_loop(home: Path) -> None:
    started = await gateway(home).ensure(NOWHERE)
    mapped = {Path(one.path).parent.name for one in psutil.Process(started.pid).memory_maps()}
    assert "uvloop" in mapped


async def test_a_gateway_that_cannot_start_says_why(home: Path) -> None:
    (home / "gateway").mkdir()
    (home / "gateway" / "routes.json").write_text("{")
    with pytest.raises(Unavailable, match="--reset-routes"):
        await gateway(home).ensure(NOWHERE)


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
