"""A log of a million events: folding one change, verifying all of it, starting a coordinator on it.

Beside the verification stands its limit, in the same run: reading the same rows from PostgreSQL and
hashing the same bytes, and nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import resource
import statistics
import time
from typing import Any

from bench.event_log import RULES, fill, proposal
from bench.our_saga import ports_on, servers
from optiinfra.coordinator.process import Coordinator
from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.events import LINK_COLUMNS, log_of_chain
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.postgres.verification import CHUNK, verify
from optiinfra.storage.redis import RegistryCache

LEAST = 50_000


async def folding(database: Database, changes: int) -> dict[str, float]:
    """Reads and folds one change after the other, ms."""
    took = []
    for number in range(0, changes * 7, 7):
        change = proposal(number).id
        began = time.perf_counter()
        log = await log_of_chain(database, change)
        saga = fold(Saga(change=change), [(event.fact, at) for event, at in log])
        took.append((time.perf_counter() - began) * 1e3)
        assert saga.state.is_terminal
    took.sort()
    return {
        "p50_ms": statistics.median(took),
        "p99_ms": took[min(len(took) - 1, int(len(took) * 0.99))],
    }


async def limit(database: Database) -> float:
    """Rows a second when they are only read and their bytes hashed."""
    began, rows_read = time.perf_counter(), 0

    def hashed(rows: list[Any]) -> None:
        for row in rows:
            hashlib.sha256(row["body"].encode()).hexdigest()

    async with database.transaction() as connection:
        cursor = await connection.cursor(
            f"SELECT {LINK_COLUMNS} FROM event_log ORDER BY chain, version"
        )
        while rows := await cursor.fetch(CHUNK):
            rows_read += len(rows)
            await asyncio.to_thread(hashed, rows)
    return rows_read / (time.perf_counter() - began)


async def starting(addresses: Addresses, database: Database) -> float:
    """Seconds until a coordinator has recovered and takes new work."""
    bus = await Bus.connect(addresses.nats_url, name="bench")
    await topology.apply(bus)
    cache = RegistryCache(addresses.redis_url)
    began = time.perf_counter()
    task = asyncio.create_task(Coordinator(ports_on(bus, database, cache, RULES)).run())
    while True:
        try:
            info = await bus.js.consumer_info("CHANGES", "coordinator")
        except Exception:  # noqa: BLE001 - not there yet
            info = None
        if info is not None and info.num_waiting:
            break
        assert not task.done(), task
        await asyncio.sleep(0.01)
    took = time.perf_counter() - began
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await cache.aclose()
    await bus.close()
    return took


async def measured(addresses: Addresses, events: int) -> dict[str, Any]:
    await upgrade(addresses.postgres_url)
    async with open_database(addresses.postgres_url, connections=4) as database:
        began = time.perf_counter()
        count = await fill(database, events)
        print(f"{count:,} events written in {time.perf_counter() - began:.0f} s")
        found: dict[str, Any] = {"events": count, "folding": await folding(database, 300)}
        rates: dict[str, list[float]] = {"verify": [], "limit": []}
        for _ in range(2):
            began = time.perf_counter()
            verified = await verify(database)
            rates["verify"].append(verified.events / (time.perf_counter() - began))
            assert verified.ok, verified.breaks
            rates["limit"].append(await limit(database))
        found["verify_per_s"], found["read_and_hash_per_s"] = map(max, rates.values())
        found["ratio"] = found["verify_per_s"] / found["read_and_hash_per_s"]
        found["start_s"] = await starting(addresses, database)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.events < LEAST:
        parser.error(f"--events: at least {LEAST:,}, of which the changes that are folded are made")
    with servers() as addresses:
        found = asyncio.run(measured(addresses, options.events))
    print(f"folding one change   p50 {found['folding']['p50_ms']:.2f} ms (bound 10)")
    print(
        f"verifying            {found['verify_per_s']:,.0f} events/s (bound 50,000);"
        f" read and hash alone {found['read_and_hash_per_s']:,.0f}, ratio {found['ratio']:.2f}"
    )
    print(f"starting             {found['start_s']:.2f} s (bound 5)")
    print(json.dumps({"bench": "log", **found, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
