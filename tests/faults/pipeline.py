"""Metrics on their way to the store: what was said, the collector's process, what it then holds."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, timedelta
from pathlib import Path
from typing import NamedTuple

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
LOOK_S = 0.5
"""What a broker that dies has been asked is never answered."""


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

    async def start(self, without: str = "", slow_s: float = 0.0) -> None:
        """Without a mechanism, or with all of them, on a store that takes a while."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.faults.collector", "collect",
                str(self.folder), self.nats_url, without, str(slow_s),
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


class Position(NamedTuple):
    """How far the collector is, in the stream's sequence: up to where it has been given messages,
    up to where it has acknowledged all, and the last that there is.

    Not what the broker says is left: of a consumer that it is still making it says nothing.
    """

    given: int = 0
    floor: int = 0
    last: int = sys.maxsize


async def position_of(bus: Bus) -> Position:
    with suppress(Exception):  # the broker or the consumer is not there at the moment
        broker = bus.client.jetstream(timeout=LOOK_S)
        info = await broker.consumer_info(Stream.METRICS.value, "collector")
        given = info.delivered.stream_seq if info.delivered else 0
        floor = info.ack_floor.stream_seq if info.ack_floor else 0
        stream = await broker.stream_info(Stream.METRICS.value)
        return Position(given, floor, stream.state.last_seq)
    return Position()


async def until(bus: Bus, holds: Callable[[Position], bool], *, timeout_s: float = 90.0) -> None:
    """Until the collector is as far as wanted."""
    async with asyncio.timeout(timeout_s):
        while not holds(await position_of(bus)):  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(0.05)


async def until_taken(bus: Bus) -> None:
    """Until it has everything in hand, or has acknowledged it."""
    await until(bus, lambda at: at.given >= at.last)


async def until_drained(bus: Bus) -> None:
    await until(bus, lambda at: at.floor >= at.last)


async def until_more_is_acknowledged(bus: Bus) -> None:
    """So that a kill comes in the middle of work, if there is any."""
    before = await position_of(bus)
    with suppress(TimeoutError):
        await until(bus, lambda at: at.floor > before.floor, timeout_s=5)


@dataclass(frozen=True)
class Told:
    """What a store holds of the day: for each `metric resolution` how many samples, and their sum,
    before the hours are folded and after; and how many rows lie there."""

    before: dict[str, tuple[int, float]]
    after: dict[str, tuple[int, float]]
    rows: int


async def told_by(folder: Path) -> Told:
    """Asks the store of a collector that is dead."""
    command = ("-m", "tests.faults.collector", "tell", str(folder), DAY.isoformat(), *SERIES)
    child = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, env=child_environment()
    )
    said, _ = await child.communicate()
    return Told(**json.loads(said))


async def require_sums(folder: Path, injected: Injected) -> int:
    """Every sum, raw and rolled up, before folding and after; gives how many rows lie there."""
    told = await told_by(folder)
    for found in (told.before, told.after):
        for metric in SERIES:
            for resolution in Resolution:
                count, total = found[f"{metric} {resolution}"]
                assert count == injected.count
                assert total == pytest.approx(injected.total[metric], rel=1e-9)
    return told.rows
