"""Metrics under fire: collector with its store, and broker are killed, and every sum is right."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from pathlib import Path

import psutil
import pytest

from optiinfra.demo.children import child_environment
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import Event
from optiinfra.events.facts import MetricsMeasured
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.telemetry import Known, Sample, Unit
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.metric_rows import Resolution

DAY = now().astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
"""A day that is over: its hours and itself can be folded."""
SERIES = ("tokens_total", "requests_total")
REPLICAS = ("r-0", "r-1")
STEP_S = 11
BATCH = 100
FLOOD_GROWTH_MIB = 250.0


@dataclass
class Injected:
    """A counter that is raised by known amounts: what is said is what must be found."""

    count: int = 0
    total: dict[str, float] = field(default_factory=dict)

    def next(self, publisher: Publisher) -> Event:
        """Raises each series of one replica; times go through the day again and again."""
        at = DAY + timedelta(seconds=self.count * STEP_S % 86_400)
        samples = []
        for index, metric in enumerate(SERIES):
            value = float(self.count % 1_000 * (index + 1))
            self.total[metric] = self.total.get(metric, 0.0) + value
            samples.append(
                Sample(
                    metric=metric,
                    unit=Unit.COUNT,
                    reading=Known(value=value),
                    at=at,
                    replica=REPLICAS[self.count % 2],
                )
            )
        self.count += 1
        fact = MetricsMeasured(
            tenant="acme", deployment="chat", family="performance", samples=tuple(samples)
        )
        return publisher.event(fact, tenant="acme")


@dataclass
class Collector:
    """The collector's process; the store is in it, and dies with it."""

    nats_url: str
    folder: Path
    log: Path
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.faults.collector", "collect",
                str(self.folder), self.nats_url,
                stdout=log, stderr=log, env=child_environment(),
            )  # fmt: skip

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    def mib(self) -> float:
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss / (1 << 20)


@asynccontextmanager
async def publishing(server: NatsServer) -> AsyncIterator[tuple[Bus, Publisher]]:
    bus = await Bus.connect(server.url, name="said")
    await topology.apply(bus)
    try:
        yield bus, Publisher(bus, "said", now, new_id)
    finally:
        await bus.close()


@pytest.fixture
async def collector(
    nats_server: Callable[[], NatsServer], tmp_path: Path
) -> AsyncIterator[tuple[Collector, NatsServer]]:
    server = nats_server()
    made = Collector(server.url, tmp_path / "clickhouse", tmp_path / "collector.log")
    try:
        yield made, server
    finally:
        await made.kill()


async def say(publisher: Publisher, injected: Injected, count: int) -> None:
    """Publishes until the stream has acknowledged each, as agents do."""
    for _ in range(count // BATCH):
        batch = [injected.next(publisher) for _ in range(BATCH)]
        answers = await publisher.publish_many(batch)
        failed = [
            event
            for event, answer in zip(batch, answers, strict=True)
            if isinstance(answer, BaseException)
        ]
        for event in failed:
            await publisher.publish(event)


async def state_of(bus: Bus) -> tuple[int, int]:
    """What the collector has not acknowledged yet, and the bottom of what it has."""
    with suppress(Exception):  # the broker or the consumer is not there at the moment
        info = await bus.client.jetstream().consumer_info(Stream.METRICS.value, "collector")
        floor = info.ack_floor.stream_seq if info.ack_floor else 0
        return (info.num_pending or 0) + (info.num_ack_pending or 0), floor
    return sys.maxsize, 0


async def until(bus: Bus, holds: Callable[[int, int], bool], *, timeout_s: float) -> None:
    """Until the state of the collector's consumer is as wanted."""
    async with asyncio.timeout(timeout_s):
        while not holds(*await state_of(bus)):  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.05)


async def until_drained(bus: Bus) -> None:
    await until(bus, lambda left, _: left == 0, timeout_s=90)


async def until_more_is_acknowledged(bus: Bus) -> None:
    """So that a kill comes in the middle of work, if there is any."""
    _, before = await state_of(bus)
    with suppress(TimeoutError):
        await until(bus, lambda _, floor: floor > before, timeout_s=5)


async def require_sums(folder: Path, injected: Injected) -> int:
    """Every sum, raw and rolled up, before folding and after; gives how many rows lie there."""
    command = ("-m", "tests.faults.collector", "tell", str(folder), DAY.isoformat(), *SERIES)
    child = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, env=child_environment()
    )
    said, _ = await child.communicate()
    told = json.loads(said)
    for found in (told["before"], told["after"]):
        for metric in SERIES:
            for resolution in Resolution:
                count, total = found[f"{metric} {resolution}"]
                assert count == injected.count
                assert total == pytest.approx(injected.total[metric], rel=1e-9)
    return int(told["rows"])


async def test_sums_are_exact_when_collector_store_and_broker_are_killed(
    collector: tuple[Collector, NatsServer],
    seed: int,
    at_length: bool,  # noqa: FBT001 - a fixture
) -> None:
    """The store is in the collector's process; between the kills batches fall otherwise."""
    role, server = collector
    chance, injected = random.Random(seed), Injected()
    async with publishing(server) as (bus, publisher):
        await say(publisher, injected, 2_000)
        await role.start()
        for turn in range(12 if at_length else 4):
            saying = asyncio.create_task(say(publisher, injected, 1_000))
            await until_more_is_acknowledged(bus)
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            if turn % 2:
                server.kill()
                server.start()
            else:
                await role.kill()
                await role.start()
            await saying
        await until_drained(bus)
        await role.kill()
        await require_sums(role.folder, injected)


async def test_samples_that_come_again_in_other_batches_count_once(
    collector: tuple[Collector, NatsServer],
) -> None:
    """The consumer's memory is lost, so that everything comes again, batched as it falls."""
    role, server = collector
    injected = Injected()
    async with publishing(server) as (bus, publisher):
        await say(publisher, injected, 1_300)
        await role.start()
        await until_drained(bus)
        await role.kill()
        await bus.client.jetstream().delete_consumer(Stream.METRICS.value, "collector")
        await say(publisher, injected, 400)
        await role.start()
        await until_drained(bus)
        await role.kill()
        rows = await require_sums(role.folder, injected)
    assert rows > len(SERIES) * injected.count, "nothing came again: the test tests nothing"


async def test_a_flood_takes_no_more_memory_than_its_batches(
    collector: tuple[Collector, NatsServer],
    at_length: bool,  # noqa: FBT001 - a fixture
) -> None:
    role, server = collector
    injected, seen = Injected(), []
    async with publishing(server) as (bus, publisher):
        await role.start()
        await say(publisher, injected, 1_000)
        await until_drained(bus)
        quiet = role.mib()
        saying = asyncio.create_task(say(publisher, injected, 100_000 if at_length else 12_000))
        while not saying.done() or (await state_of(bus))[0] > 0:
            seen.append(role.mib())
            await asyncio.sleep(0.1)
        await saying
        await role.kill()
        assert max(seen) - quiet < FLOOD_GROWTH_MIB
        await require_sums(role.folder, injected)
