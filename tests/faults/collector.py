"""The collector as a process, and what its store holds: chdb opens one folder a process."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta

from optiinfra.events.bus import Bus
from optiinfra.events.publish import Publisher
from optiinfra.runtime.control import collecting
from optiinfra.runtime.loop import settle_heap
from optiinfra.runtime.stores import new_id, now
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.metric_rows import Resolution, SeriesQuery

ACK_WAIT_S = 3.0
Sums = dict[str, tuple[int, float]]
"""How many samples, and their sum, for each `metric resolution`."""


async def collect(folder: str, nats_url: str) -> None:
    """Until it is killed; whatever the folder holds is opened again."""
    bus = await Bus.connect(nats_url, name="collector")
    store = MetricStore(f"chdb://{folder}")
    await store.migrate()
    settle_heap()
    publisher = Publisher(bus, "collector", now, new_id)
    await collecting(bus, publisher, store, ack_wait_s=ACK_WAIT_S).run()


async def tell(folder: str, day: str, *metrics: str) -> None:
    """Prints the sums of a day, before its hours are folded and after, and how many rows lie."""
    store, begin = MetricStore(f"chdb://{folder}"), datetime.fromisoformat(day)
    before = await sums(store, begin, metrics)
    while await store.fold(quiet_s=0):
        pass
    after = await sums(store, begin, metrics)
    rows = await store._ask(lambda c: c.query("SELECT count() FROM metrics").result_rows[0][0])
    print(json.dumps({"before": before, "after": after, "rows": rows}))
    await store.aclose()


async def sums(store: MetricStore, day: datetime, metrics: tuple[str, ...]) -> Sums:
    told: Sums = {}
    for metric in metrics:
        for resolution in Resolution:
            points = await store.series(
                SeriesQuery(
                    tenant="acme", deployment="chat", metric=metric, since=day,
                    until=day + timedelta(days=1), points=24, resolution=resolution,
                )
            )  # fmt: skip
            total = sum((point.mean or 0.0) * point.known for point in points)
            told[f"{metric} {resolution}"] = sum(point.known for point in points), total
    return told


ROLES: dict[str, Callable[..., Coroutine[None, None, None]]] = {"collect": collect, "tell": tell}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1]](*sys.argv[2:]))
