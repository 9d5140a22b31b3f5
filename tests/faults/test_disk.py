"""The broker on a small file system that fills up."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from optiinfra.events import topology
from optiinfra.events.publish import Publisher
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.storage.embedded.nats import NatsServer
from tests.factories import vote
from tests.faults.stand import Stand, opened, playing

DISK_MIB = 96
_MIB = 1 << 20
SMALL = topology.TopologyLimits(
    metrics_bytes=4 * _MIB,
    samples_bytes=2 * _MIB,
    changes_bytes=16 * _MIB,
    timers_bytes=4 * _MIB,
    dlq_bytes=2 * _MIB,
    advisory_bytes=1 * _MIB,
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; only root may have one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
    mounted = shutil.which("mount") and subprocess.run(mounting, capture_output=True, check=False)
    if os.geteuid() != 0 or not mounted or mounted.returncode != 0:
        pytest.skip("no small file system: mounting one takes root and its rights")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
async def on_small_disk(
    disk: Path, database: str, tmp_path: Path, seed: int
) -> AsyncIterator[Stand]:
    server = NatsServer(disk / "nats")
    await asyncio.to_thread(server.start)
    try:
        async with opened(server, database, tmp_path, seed, limits=SMALL) as made:
            yield made
    finally:
        await asyncio.to_thread(server.kill)


async def test_a_full_disk_is_said_and_costs_nothing_that_was_acknowledged(
    on_small_disk: Stand, disk: Path
) -> None:
    stand = on_small_disk
    roles = (stand.role("coordinator", drifted=True), stand.role("agents"))
    async with playing(*roles):
        await stand.propose(4, soak_s=1.0)
        await stand.staged(2)
        ballast = filled(disk)
        with pytest.raises(Unavailable):
            await tell_until_refused(stand)
        ballast.unlink()
        await asyncio.to_thread(stand.nats.kill)
        await asyncio.to_thread(stand.nats.start)
        await stand.propose(4)
        await stand.all_completed()


def filled(disk: Path) -> Path:
    """A file that takes what is left, to the last byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (_MIB, 4096, 1):
            while True:
                try:
                    if file.write(b"x" * size) < size:
                        break
                except OSError:
                    break
    return ballast


async def tell_until_refused(stand: Stand) -> None:
    publisher = Publisher(stand.bus, "cost", now, new_id, give_up_after_s=3.0)
    async with asyncio.timeout(60):
        for number in range(10_000):
            fact = vote(derived_id("none", number), "cost")
            await publisher.publish(publisher.event(fact, tenant="acme"))
