"""What our consumer costs: the same votes through it and through raw nats-py, interleaved."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.errors import TimeoutError as NothingLeft

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.envelope import Event, decode
from optiinfra.events.facts import VoteCast
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.telemetry import Known, Unit
from optiinfra.schemas.vote import Evidence, Verdict, Vote
from optiinfra.storage.embedded.nats import NatsServer

BODY_BYTES = 1000
BATCH = 100
WAYS = ("raw", "ours_batch", "ours_single")


@dataclass
class Figures:
    """Of one way: a figure for each round."""

    per_s: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        return {
            "per_s": round(statistics.median(self.per_s)),
            "cpu_us": round(statistics.median(self.cpu_us), 1),
        }


def now() -> datetime:
    return datetime.now(UTC)


def a_vote(number: int) -> VoteCast:
    """A vote with evidence, of about 1 KB."""
    evidence = Evidence(
        name="ttft_p95",
        unit=Unit.SECONDS,
        reading=Known(value=0.31, error=0.01),
        threshold=0.5,
        window_s=300.0,
        samples=120,
        source="clickhouse",
    )
    vote = Vote(
        change=derived_id("bench", number),
        agent="performance",
        round=1,
        verdict=Verdict.APPROVE,
        reasons=("the objective is kept with one replica gone",),
        evidence=(evidence,) * 4,
        cast_at=now(),
    )
    missing = BODY_BYTES - len(VoteCast(vote=vote).model_dump_json())
    return VoteCast(vote=vote.model_copy(update={"conditions": ("x" * max(missing, 0),)}))


async def raw(client: Client, name: str, count: int) -> None:
    """Fetches, validates and acknowledges with nats-py alone."""
    js = client.jetstream()
    subscription = await js.pull_subscribe("vote.cast.*.*.*", name, Stream.CHANGES.value)
    done = 0
    while done < count:
        try:
            messages = await subscription.fetch(BATCH, timeout=5)
        except NothingLeft as slow:
            raise RuntimeError("the broker does not deliver") from slow
        for message in messages:
            decode(message.subject, message.headers, message.data)
            await message.ack()
        done += len(messages)
    await client.flush()
    await subscription.unsubscribe()


async def ours(publisher: Publisher, bus: Bus, name: str, count: int, *, batch: bool) -> None:
    """The same through `Consumer`."""
    done, handled = asyncio.Event(), 0

    def note(more: int) -> None:
        nonlocal handled
        handled += more
        if handled >= count:
            done.set()

    async def handle(_event: Event) -> None:
        note(1)

    async def handle_batch(events: Sequence[Event]) -> Sequence[BaseException | None]:
        note(len(events))
        return [None] * len(events)

    consumer = Consumer(
        bus,
        ConsumerSpec(name=name, stream=Stream.CHANGES, prefixes=("vote.cast",), batch=BATCH),
        handle=None if batch else handle,
        handle_batch=handle_batch if batch else None,
        publisher=publisher,
        inbox=None,
        clock=now,
        jitter=lambda: 1.0,
    )
    running = asyncio.create_task(consumer.run())
    async with asyncio.timeout(60):
        await done.wait()
        while consumer.stats.acked < count:  # noqa: ASYNC110 - the last few acknowledgements
            await asyncio.sleep(0.001)
    await bus.client.flush()
    running.cancel()
    await asyncio.wait({running})


async def measured(work: Callable[[], Awaitable[None]], count: int, figures: Figures) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    await work()
    figures.per_s.append(count / (time.perf_counter() - began))
    figures.cpu_us.append((time.process_time() - cpu) / count * 1e6)


async def bench(url: str, count: int, rounds: int) -> dict[str, Figures]:
    figures = {way: Figures() for way in WAYS}
    bus, client = await Bus.connect(url, name="bench"), await nats.connect(url)
    try:
        await topology.apply(bus)
        publisher = Publisher(bus, "bench", now, lambda: derived_id("bench", time.monotonic_ns()))
        events = [
            publisher.event(a_vote(number), tenant="acme", id=derived_id("event", number))
            for number in range(count)
        ]
        await publisher.publish_many(events)
        del events
        gc.collect()
        for number in range(rounds):
            ways: dict[str, Callable[[], Awaitable[None]]] = {
                "raw": lambda n=number: raw(client, f"raw-{n}", count),  # type: ignore[misc]
                "ours_batch": lambda n=number: ours(  # type: ignore[misc]
                    publisher, bus, f"batch-{n}", count, batch=True
                ),
                "ours_single": lambda n=number: ours(  # type: ignore[misc]
                    publisher, bus, f"single-{n}", count, batch=False
                ),
            }
            for way in WAYS:
                await measured(ways[way], count, figures[way])
    finally:
        await client.close()
        await bus.close()
    return figures


def show(figures: dict[str, Figures]) -> None:
    results = {way: figures[way].summary() for way in WAYS}
    print(f"{'way':<12} {'events/s':>9} {'CPU µs/event':>13}")
    for way, result in results.items():
        print(f"{way:<12} {result['per_s']:>9,.0f} {result['cpu_us']:>13.1f}")
    ratio = results["ours_batch"]["cpu_us"] / results["raw"]["cpu_us"]
    print(json.dumps({"bench": "bus", **results, "ratio_cpu": round(ratio, 2)}))


def main(arguments: list[str]) -> int:
    """`python -m bench.bus [--events N] [--rounds N]`"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as home:
        server = NatsServer(Path(home) / "nats")
        server.start()
        try:
            show(asyncio.run(bench(server.url, options.events, options.rounds)))
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
