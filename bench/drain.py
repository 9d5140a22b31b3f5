"""Ten thousand proposals wait when the coordinator starts: how fast they drain, in how much memory.

The memory is that of the coordinator's process, sampled while it works; the second half of the run
is compared with the first, beside the limit of one saga in memory for each that waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import time
from typing import Any

import psutil

from bench.our_saga import Agents, agents, coordinator, prepare, servers
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events import facts as f
from optiinfra.events.publish import Publisher
from optiinfra.runtime.loop import run
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import Database, open_database

SAMPLE_S = 0.5
A_BATCH = 500


async def queue(made: Agents, publisher: Publisher, count: int) -> None:
    """Publishes proposals while nobody listens."""
    for first in range(0, count, A_BATCH):
        facts = [
            f.RecommendationProposed(recommendation=made.proposal())
            for _ in range(min(A_BATCH, count - first))
        ]
        events = [publisher.event(fact, tenant="acme") for fact in facts]
        assert all(isinstance(one, int) for one in await publisher.publish_many(events))


async def completed(database: Database) -> int:
    async with database.connection() as connection:
        found = await connection.fetchval("SELECT count(*) FROM sagas WHERE state = 'completed'")
    return int(found)


async def drained(
    database: Database, process: subprocess.Popen[bytes], count: int
) -> list[tuple[float, int, float]]:
    """(seconds, completed, MiB of the coordinator) until all have ended."""
    watched, began = psutil.Process(process.pid), time.perf_counter()
    samples = []
    while True:
        done = await completed(database)
        mib = watched.memory_info().rss / (1 << 20)
        samples.append((time.perf_counter() - began, done, mib))
        if done >= count:
            return samples
        await asyncio.sleep(SAMPLE_S)


async def measured(addresses: Addresses, count: int) -> dict[str, Any]:
    await prepare(addresses)
    async with (
        agents(addresses, gated=False) as made,
        open_database(addresses.postgres_url, connections=2) as database,
    ):
        await queue(made, made.publisher, count)
        with coordinator(addresses) as process:
            samples = await drained(database, process, count)
    half = [mib for _, done, mib in samples if done >= count / 2]
    first = [mib for _, done, mib in samples if count / 10 <= done < count / 2] or half
    growth = statistics.median(half) - statistics.median(first)
    a_saga = len(Saga(change="0" * 32, recommendation=made.proposal()).model_dump_json())
    return {
        "sagas": count,
        "per_s": count / samples[-1][0],
        "peak_mib": max(mib for *_, mib in samples),
        "growth_mib": growth,
        "growth_bytes_a_saga": growth * (1 << 20) / (count / 2),
        "one_saga_bytes": a_saga,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sagas", type=int, default=10_000)
    options = parser.parse_args()
    with servers() as addresses:
        found = run(measured(addresses, options.sagas))
    print(
        f"{found['sagas']} sagas drained at {found['per_s']:.0f}/s; coordinator peak"
        f" {found['peak_mib']:.0f} MiB, second half against first {found['growth_mib']:+.1f} MiB"
        f" ({found['growth_bytes_a_saga']:.0f} bytes a saga; one in memory is"
        f" {found['one_saga_bytes']})"
    )
    print(json.dumps({"bench": "drain", **found, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
