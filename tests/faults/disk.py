"""A small file system that a story fills up, and what can be said while it is full."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg

from optiinfra.events import topology
from optiinfra.events.publish import Publisher
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.database import LOST_CONNECTION, Database
from optiinfra.storage.testing.servers import reachable_home
from tests.factories import vote

DISK_MIB = 128
_MIB = 1 << 20
SMALL = topology.TopologyLimits(
    metrics_bytes=4 * _MIB,
    samples_bytes=2 * _MIB,
    changes_bytes=16 * _MIB,
    timers_bytes=4 * _MIB,
    dlq_bytes=2 * _MIB,
    advisory_bytes=1 * _MIB,
)


@contextmanager
def small_disk() -> Iterator[Path | None]:
    """A file system of its own; None where we may not mount one."""
    with reachable_home() as home:
        place = home / "disk"
        place.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)]
        mounted = shutil.which("mount") and subprocess.run(
            mounting, capture_output=True, check=False
        )
        if os.geteuid() != 0 or not mounted or mounted.returncode != 0:
            yield None
            return
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)


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


async def told(publisher: Publisher, most: int) -> int:
    """How many votes on nothing are acknowledged, one after the other, until one is refused."""
    for number in range(most):
        event = publisher.event(vote(derived_id("none", number), "cost"), tenant="acme")
        (result,) = await publisher.publish_many([event])
        if not isinstance(result, int):
            assert isinstance(result, Unavailable)
            return number
    return most


async def noted(database: Database, most: int) -> int:
    """How many pages of notes PostgreSQL takes, one after the other, until it refuses one."""
    for number in range(most):
        try:
            async with database.connection() as connection:
                await connection.execute(NOTE)
        except Unavailable:
            return number
    return most


async def log_filled(postgres: PostgresServer) -> None:
    """Writes to its log alone, until it can write no more and ends."""
    connection = await asyncpg.connect(postgres.url)
    with suppress(*LOST_CONNECTION):
        while True:
            await connection.execute("SELECT pg_logical_emit_message(true, '', repeat('x', 99999))")
    connection.terminate()
    async with asyncio.timeout(30):
        while postgres.pid is not None:  # noqa: ASYNC110 - a process tells nobody
            await asyncio.sleep(0.05)


NOTE = """
INSERT INTO audit (tenant, actor, action, target, allowed, detail)
SELECT 'acme', 'story', 'note', 'all', true, jsonb_build_object('text', string_agg(word, ''))
FROM (SELECT md5(random()::text) AS word FROM generate_series(1, 200)) AS words
"""
