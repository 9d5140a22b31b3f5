"""Far more metrics than are taken: `flood say URL PER_S` and `flood take URL` as processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.envelope import Event
from optiinfra.events.facts import MetricsMeasured
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.stores import jitter, new_id, now
from tests.telemetry import steady

BATCH = 64
HANDLER_S = 1.0
TAKEN_PER_S = BATCH / HANDLER_S
NAME = "flooded"


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


async def take(url: str) -> None:
    """Takes them in batches, one second a batch."""
    bus = await Bus.connect(url, name=NAME)

    async def handle(events: Sequence[Event]) -> Sequence[BaseException | None]:
        await asyncio.sleep(HANDLER_S)  # the slow store
        return [None] * len(events)

    spec = ConsumerSpec(
        name=NAME, stream=Stream.METRICS, prefixes=("metrics.performance",), batch=BATCH
    )
    consumer = Consumer(
        bus, spec, handle=None, handle_batch=handle, publisher=Publisher(bus, NAME, now, new_id),
        inbox=None, clock=now, jitter=jitter,
    )  # fmt: skip
    await consumer.run()


if __name__ == "__main__":
    url, rest = sys.argv[2], sys.argv[3:]
    asyncio.run(take(url) if sys.argv[1] == "take" else say(url, float(rest[0])))
