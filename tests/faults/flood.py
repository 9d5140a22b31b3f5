"""Far more metrics than are taken, as processes: `flood say URL PER_S` and
`flood take URL [greedily]`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.durable import DurableSpec
from optiinfra.events.envelope import Event
from optiinfra.events.facts import MetricsMeasured
from optiinfra.events.hand import Hand
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.stores import jitter, new_id, now
from tests.telemetry import steady

BATCH = 64
HANDLER_S = 1.0
TAKEN_PER_S = BATCH / HANDLER_S
NAME = "flooded"
EVERYTHING = 1_000_000


class Boundless(ConsumerSpec):
    """The broker gives as much as is asked for."""

    def durable(self) -> DurableSpec:
        return replace(super().durable(), max_ack_pending=EVERYTHING)


class Greedy(Consumer):
    """Takes into its hand whatever there is."""

    def __init__(self, bus: Bus, spec: ConsumerSpec, **rest: Any) -> None:
        super().__init__(bus, spec, **rest)
        kept = {name: rest[name] for name in ("publisher", "clock", "jitter")}
        self._hand = Hand(spec, capacity=EVERYTHING, **kept)


async def say(url: str, per_s: float) -> None:
    """Publishes `per_s` events of metrics each second, until it is ended."""
    bus = await Bus.connect(url, name="flood")
    publisher = Publisher(bus, "performance", now, new_id)
    samples = tuple(steady("chat-1", scrapes=2))
    fact = MetricsMeasured(tenant="acme", deployment="chat", family="performance", samples=samples)
    pace = asyncio.get_running_loop()
    due = pace.time()
    while True:
        await publisher.publish_many([publisher.event(fact, tenant="acme") for _ in range(BATCH)])
        due = max(due + BATCH / per_s, pace.time() - 1.0)
        await asyncio.sleep(max(0.0, due - pace.time()))


async def take(url: str, kind: type[Consumer], known: type[ConsumerSpec]) -> None:
    """Takes them in batches, one second a batch."""
    bus = await Bus.connect(url, name=NAME)

    async def handle(events: Sequence[Event]) -> Sequence[BaseException | None]:
        await asyncio.sleep(HANDLER_S)  # the slow store
        return [None] * len(events)

    spec = known(name=NAME, stream=Stream.METRICS, prefixes=("metrics.performance",), batch=BATCH)
    consumer = kind(
        bus, spec, handle=None, handle_batch=handle, publisher=Publisher(bus, NAME, now, new_id),
        inbox=None, clock=now, jitter=jitter,
    )  # fmt: skip
    await consumer.run()


if __name__ == "__main__":
    what, url, *how = sys.argv[1:]
    if what == "say":
        asyncio.run(say(url, float(how[0])))
    else:
        asyncio.run(take(url, *((Greedy, Boundless) if how else (Consumer, ConsumerSpec))))
