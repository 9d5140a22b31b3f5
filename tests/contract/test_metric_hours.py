"""A long window is summed up from its hours exactly as from its samples, also after an upgrade."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from optiinfra.storage import clickhouse_rollups as rollups
from optiinfra.storage import clickhouse_schema as schema
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.clickhouse_summaries import Summary, SummaryQuery
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.metric_rows import MetricRow

BEGIN = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=4)
MINUTE = timedelta(minutes=1)
SINCE, UNTIL = BEGIN + 10 * MINUTE, BEGIN + 220 * MINUTE
RECENT = UNTIL - 15 * MINUTE
WHOLE, BROKEN = BEGIN + 60 * MINUTE, BEGIN + 180 * MINUTE
"""The whole hours of the window."""
BOUNDS = ({"ge": "0.0", "le": "0.5"}, {"le": "inf", "ge": "0.5"})


def row(minutes: float, metric: str, value: float | None, **labels: str) -> MetricRow:
    return MetricRow(
        tenant="acme", deployment="chat", replica="r1", metric=metric, unit="count", value=value,
        at=BEGIN + minutes * MINUTE, event_id=str(uuid4()), labels=labels,
        unknown_reason=None if value is not None else f"dark at {minutes}",
    )  # fmt: skip


def measured() -> list[MetricRow]:
    """Every 7 minutes: a rate whose window is never the same, a histogram, and what is dark."""
    found = []
    for n in range(32):
        value = None if n % 5 == 0 else float(n)
        found.append(row(7 * n, "requests_per_s", value, __window_s=str(10 + n / 64)))
        found += [row(7 * n, "ttft_s_bucket", float(n % 3), **bounds) for bounds in BOUNDS]
    return found


def expected(rows: Iterable[MetricRow]) -> list[dict[str, Any]]:
    """What the window holds, out of the samples themselves."""
    series: dict[Any, list[MetricRow]] = {}
    for one in sorted(rows, key=lambda one: one.at):
        named = {name: value for name, value in one.labels.items() if name != "__window_s"}
        if SINCE <= one.at < UNTIL:
            series.setdefault((one.metric, tuple(sorted(named.items()))), []).append(one)
    return [_one(key, of_it) for key, of_it in sorted(series.items())]


def _one(key: Any, rows: list[MetricRow]) -> dict[str, Any]:
    known = [(one, one.value) for one in rows if one.value is not None]
    windows = [float(one.labels.get("__window_s", "0")) for one, _ in known]
    total = sum(value for _, value in known)
    return {
        "metric": key[0], "labels": dict(key[1]), "first_at": rows[0].at, "last_at": rows[-1].at,
        "last": rows[-1].value, "last_reason": rows[-1].unknown_reason or "",
        "mean": total / len(known), "high": max(value for _, value in known), "total": total,
        "recent": sum(value for one, value in known if one.at >= RECENT),
        "weighted": sum(v * s for (_, v), s in zip(known, windows, strict=True)),
        "covered_s": sum(windows), "known": len(known), "unknown": len(rows) - len(known),
    }  # fmt: skip


def told(found: list[Summary]) -> list[dict[str, Any]]:
    names = expected(measured())[0].keys()
    return [{name: getattr(one, name) for name in names} for one in found]


async def summed(store: MetricStore) -> list[dict[str, Any]]:
    return told(
        await store.summaries(
            SummaryQuery(
                tenant="acme", deployments=["chat"], metrics=["requests_per_s", "ttft_s_bucket"],
                since=SINCE, until=UNTIL, recent_since=RECENT,
            )
        )
    )  # fmt: skip


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    store = MetricStore(servers.clickhouse_url, database=f"test_{uuid4().hex}")
    yield store
    await store.drop_database()
    await store.aclose()


async def run(store: MetricStore, *statements: str) -> None:
    for statement in statements:
        await store._ask(lambda client, text=statement: client.command(text))  # type: ignore[misc]


async def folded(store: MetricStore) -> None:
    while await store.fold(quiet_s=0):
        pass


async def test_a_long_window_is_summed_up_from_its_hours_as_from_its_samples(
    store: MetricStore,
) -> None:
    await store.migrate()
    rows = measured()
    await store.insert(rows, "one")
    await store.insert(rows[40:50], "again")
    assert await summed(store) == expected(rows)
    await folded(store)
    assert await summed(store) == expected(rows)
    late = row(100.5, "requests_per_s", 512.0, __window_s="8.0")
    await store.insert([late], "late")
    assert await summed(store) == expected([*rows, late])
    await folded(store)
    whole = f"ts >= '{WHOLE:%Y-%m-%d %H:%M:%S}' AND ts < '{BROKEN:%Y-%m-%d %H:%M:%S}'"
    await run(store, f"ALTER TABLE metrics DELETE WHERE {whole} SETTINGS mutations_sync = 1")
    assert await summed(store) == expected([*rows, late])


BEFORE = """
INSERT INTO metrics_hourly (tenant, deployment, replica, metric, ts, unit, low, high, mean,
    quantiles, known, unknown, rolled_at)
SELECT tenant, deployment, replica, metric, toStartOfHour(ts) AS hour, any(unit), min(value),
    max(value), avgState(value), quantilesTDigestState(0.5, 0.95, 0.99)(value), count(value),
    countIf(isNull(value)), now64(6)
FROM metrics GROUP BY tenant, deployment, replica, metric, hour
"""
GENERATION = """
ALTER TABLE metrics_hourly ADD COLUMN IF NOT EXISTS rolled_at DateTime64(6, 'UTC'),
MODIFY ORDER BY (tenant, deployment, metric, replica, ts, rolled_at)
"""
ALL_FOLDED = """
INSERT INTO metrics_touched (tenant, deployment, span, start, rolled_at)
SELECT tenant, deployment, span, start, now64(6) FROM metrics_touched
"""


async def test_a_store_whose_hours_know_no_series_is_upgraded_in_place(store: MetricStore) -> None:
    hourly = schema.ROLLUP.format(table=rollups.TABLE[rollups.HOUR])
    await run(store, schema.RAW, hourly, GENERATION, schema.TOUCHED)
    rows = measured()
    await store.insert(rows, "one")
    await run(store, BEFORE, ALL_FOLDED)
    await store.migrate()
    assert await summed(store) == expected(rows)
    await folded(store)
    await store.migrate()
    assert await store.fold(quiet_s=0) == 0
    assert await summed(store) == expected(rows)
    await run(store, BEFORE)  # by a collector that is not upgraded yet
    assert await summed(store) == expected(rows)
