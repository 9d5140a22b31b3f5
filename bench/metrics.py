"""Metrics into ClickHouse beside raw nats-py: the same scrapes, in turns on one machine.

Raw fetches 100 at a time and acknowledges, once reading nothing and once validating each message
with pydantic; ours is the collector as it runs: validated, written into chdb, then acknowledged.
Each round writes into a database of its own: ClickHouse drops what it has had.
Each message is one scrape of one replica, in the shape in which the performance agent says it every
10 s. CPU is that of this process: ClickHouse is in it, the broker is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import nats
import psutil
from nats.aio.client import Client

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import Event
from optiinfra.events.facts import FACT, MetricsMeasured
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.control import collecting
from optiinfra.runtime.loop import run, settle_heap
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.serving.contracts import contract_for
from optiinfra.serving.scrapes import unread
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.nats import NatsServer

BATCH = 100
WAYS = ("raw", "raw_validated", "ours")
SCRAPE_S, REPLICAS, DEPLOYMENTS = 10.0, 16, 4
PUBLISHED_AT_ONCE = 500
LOOK_EVERY_S = 0.1
PATIENCE_S = 300.0


@dataclass
class Figures:
    """Of one way: a figure for each round."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    """Before and at the highest."""

    def summary(self) -> dict[str, float]:
        return {
            "per_s": round(statistics.median(self.per_s)),
            "cpu_us": round(statistics.median(self.cpu_us), 1),
            "rss_before_mib": round(self.rss_mib[-1][0], 1),
            "rss_peak_mib": round(max(peak for _, peak in self.rss_mib), 1),
        }


def scrapes(publisher: Publisher, count: int, until: datetime) -> Iterator[Event]:
    """The newest `count` scrapes of all replicas before `until`, oldest first."""
    contract = contract_for(Engine.VLLM)
    shape = unread(contract, "r", until, Unknown(reason=UnknownReason.MISSING))
    rounds = -(-count // (REPLICAS * DEPLOYMENTS))
    for number in range(count):
        turn, one = divmod(number, REPLICAS * DEPLOYMENTS)
        at = until - timedelta(seconds=SCRAPE_S * (rounds - turn))
        samples = tuple(
            sample.model_copy(
                update={
                    "reading": Known(value=(number * 31 + index) % 997 / 100),
                    "at": at,
                    "window_s": SCRAPE_S,
                    "replica": f"chat-{one // DEPLOYMENTS}",
                }
            )
            for index, sample in enumerate(shape)
        )
        fact = MetricsMeasured(
            tenant="acme", deployment=f"d-{one % DEPLOYMENTS}", family="performance",
            samples=samples,
        )  # fmt: skip
        yield publisher.event(fact, tenant="acme", id=derived_id("scrape", number))


async def raw(client: Client, name: str, count: int, *, validated: bool) -> None:
    """Fetches and acknowledges with nats-py alone."""
    subscription = await client.jetstream().pull_subscribe(
        "metrics.*.*.*", name, Stream.METRICS.value
    )
    done = 0
    while done < count:
        messages = await subscription.fetch(BATCH, timeout=10)
        for message in messages:
            if validated:
                FACT.validate_json(message.data)
            await message.ack()
        done += len(messages)
    await client.flush()
    await subscription.unsubscribe()
    await client.jetstream().delete_consumer(Stream.METRICS.value, name)


async def ours(bus: Bus, publisher: Publisher, store: MetricStore, count: int) -> None:
    """The collector, until it has acknowledged everything."""
    consumer = collecting(bus, publisher, store)
    running = asyncio.create_task(consumer.run())
    async with asyncio.timeout(PATIENCE_S):
        while consumer.stats.acked < count:
            assert not running.done(), running.result()
            await asyncio.sleep(0.01)
    await bus.client.flush()
    running.cancel()
    await asyncio.wait({running})
    await bus.client.jetstream().delete_consumer(Stream.METRICS.value, consumer.spec.name)


@asynccontextmanager
async def memory_watched(figures: Figures) -> AsyncIterator[None]:
    """Notes this process's memory before the block and at its highest in it."""
    process = psutil.Process()
    before = peak = process.memory_info().rss

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(LOOK_EVERY_S)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        figures.rss_mib.append((before / (1 << 20), peak / (1 << 20)))


async def measured(work: Callable[[], Awaitable[None]], count: int, figures: Figures) -> None:
    async with memory_watched(figures):
        began, cpu = time.perf_counter(), time.process_time()
        await work()
        figures.per_s.append(count / (time.perf_counter() - began))
        figures.cpu_us.append((time.process_time() - cpu) / count * 1e6)


async def merged(store: MetricStore) -> None:
    """Waits for what ClickHouse still does of the round before, lest it slow raw down."""
    running = "SELECT count() FROM system.merges"
    async with asyncio.timeout(PATIENCE_S):
        while await store._ask(lambda client: client.command(running)):  # noqa: ASYNC110, SLF001
            await asyncio.sleep(LOOK_EVERY_S)


async def publish(publisher: Publisher, count: int) -> tuple[int, int]:
    """Publishes all scrapes; gives the samples and the bytes of one."""
    batch: list[Event] = []
    for event in scrapes(publisher, count, now()):
        batch.append(event)
        if len(batch) == PUBLISHED_AT_ONCE:
            await publisher.publish_many(batch)
            batch = []
    await publisher.publish_many(batch)
    assert isinstance(event.fact, MetricsMeasured)
    return len(event.fact.samples), len(event.body)


async def bench(url: str, folder: Path, count: int, rounds: int) -> dict[str, object]:
    figures = {way: Figures() for way in WAYS}
    bus, client = await Bus.connect(url, name="bench"), await nats.connect(url)
    stores = [MetricStore(f"chdb://{folder}", database=f"round_{n}") for n in range(rounds)]
    try:
        await topology.apply(bus)
        publisher = Publisher(bus, "bench", now, new_id)
        samples, size = await publish(publisher, count)
        for store in stores:
            await store.migrate()
        settle_heap()  # as the collector's process does; raw has the good of it too
        for number, store in enumerate(stores):
            await merged(store)
            for way in WAYS[:2]:
                name, validated = f"{way}-{number}", way == "raw_validated"
                await measured(
                    lambda n=name, v=validated: raw(client, n, count, validated=v),  # type: ignore[misc]
                    count,
                    figures[way],
                )
            await measured(
                lambda s=store: ours(bus, publisher, s, count),  # type: ignore[misc]
                count,
                figures["ours"],
            )
    finally:
        for store in stores:
            await store.aclose()
        await client.close()
        await bus.close()
    told: dict[str, object] = {way: figures[way].summary() for way in WAYS}
    ratio = statistics.median(
        mine / theirs
        for mine, theirs in zip(figures["ours"].per_s, figures["raw_validated"].per_s, strict=True)
    )
    return told | {"samples": samples, "bytes": size, "ratio": round(ratio, 2)}


def show(told: dict[str, object]) -> None:
    print(f"scrapes of {told['samples']} samples, {told['bytes']} bytes")
    print(f"{'way':<14} {'scrapes/s':>9} {'CPU µs each':>12} {'RSS before':>11} {'peak MiB':>9}")
    for way in WAYS:
        found = told[way]
        assert isinstance(found, dict)
        print(
            f"{way:<14} {found['per_s']:>9,.0f} {found['cpu_us']:>12.1f}"
            f" {found['rss_before_mib']:>11.0f} {found['rss_peak_mib']:>9.0f}"
        )
    print(f"ours is {told['ratio']} of raw with validation, a median over rounds side by side")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scrapes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as home:
        server = NatsServer(Path(home) / "nats")
        server.start()
        try:
            folder = Path(home) / "clickhouse"
            told = run(bench(server.url, folder, options.scrapes, options.rounds))
        finally:
            server.stop()
    show(told)
    print(json.dumps({"bench": "metrics", **told, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
