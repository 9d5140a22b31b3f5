"""The collector as a process, also without a mechanism, and what its store holds.

chdb opens one folder a process.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta

from clickhouse_connect.driver.client import Client

from optiinfra.events.bus import Bus
from optiinfra.events.publish import Publisher
from optiinfra.runtime.control import collecting
from optiinfra.runtime.loop import settle_heap
from optiinfra.runtime.stores import new_id, now
from optiinfra.storage import clickhouse_rollups as rollups
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.metric_rows import Resolution, SeriesQuery, StoredRow
from optiinfra.storage.telemetry import Measured, MetricSink

ACK_WAIT_S = 1.0
COUNTED = """
CREATE MATERIALIZED VIEW IF NOT EXISTS {table}_view TO {table} AS
SELECT
    tenant, deployment, replica, metric, {start}(raw.ts) AS ts, any(raw.unit) AS unit,
    min(value) AS low, max(value) AS high, avgState(value) AS mean,
    quantilesTDigestState(0.5, 0.95, 0.99)(value) AS quantiles,
    count(value) AS known, countIf(isNull(value)) AS unknown
FROM metrics AS raw GROUP BY tenant, deployment, replica, metric, ts
"""
"""The view of release 0.1, by which a rollup was counted on the way in."""
Sums = dict[str, tuple[int, float]]
"""How many samples, and their sum, for each `metric resolution`."""


class Slow(MetricStore):
    """Takes a while over each batch before it stores it."""

    slow_s = 0.0

    async def insert_stored(self, rows: Sequence[StoredRow], dedup_token: str) -> None:
        await asyncio.sleep(self.slow_s)
        await super().insert_stored(rows, dedup_token)


class Counting(Slow):
    """Counts hours and days while it inserts, as release 0.1 did; nothing is left to be folded."""

    async def migrate(self) -> None:
        await super().migrate()
        for span, table in rollups.TABLE.items():
            view = COUNTED.format(table=table, start=rollups.START[span])
            await self._ask(lambda client, view=view: client.command(view))  # type: ignore[misc]

    def _touch(self, client: Client, hours: set[rollups.Touched]) -> None:
        """What was inserted is counted already."""


class Eager(MetricSink):
    """Says that a batch is stored, and only then stores it."""

    async def __call__(self, batch: Sequence[Measured]) -> Sequence[BaseException | None]:
        self._storing = asyncio.ensure_future(super().__call__(batch))
        return [None] * len(batch)


async def collect(folder: str, nats_url: str, without: str, slow_s: str) -> None:
    """Until it is killed; whatever the folder holds is opened again."""
    bus = await Bus.connect(nats_url, name="collector")
    store = (Counting if without == "folding" else Slow)(f"chdb://{folder}")
    store.slow_s = float(slow_s)
    await store.migrate()
    settle_heap()
    publisher = Publisher(bus, "collector", now, new_id)
    made = collecting(bus, publisher, store, ack_wait_s=ACK_WAIT_S)
    if without == "acknowledgements":
        made._handle_batch = Eager(store)
    await made.run()


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
