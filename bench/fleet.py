"""What a fleet leaves in the metric store in weeks of scraping, written by the store itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from pydantic import HttpUrl

from optiinfra.schemas.deployment import Deployment
from optiinfra.storage import clickhouse_rollups as rollups
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.setup import declare

SCRAPE_S = 10
HOUR_S = 3_600
FOLDED_S = 6 * HOUR_S
PER_DEPLOYMENT = 10
AHEAD = timedelta(minutes=15)
"""So much is there already of what is measured while the benchmark runs."""
HISTOGRAMS = timedelta(days=8)
"""How far back histograms go: longer ones cannot be asked for at once. Levels go all the way."""
EDGES = ("0.0", "0.05", "0.1", "0.25", "0.5", "1.0", "inf")
LOADS = ("requests_running", "requests_waiting")
RATES = (
    "requests_per_s", "errors_per_s", "prompt_tokens_per_s", "generation_tokens_per_s",
    "preemptions_per_s",
)  # fmt: skip
FRACTIONS = ("kv_usage_fraction", "prefix_cache_hit_fraction")
LATENCIES = ("ttft_s", "tpot_s")
_WINDOW = f"toString({SCRAPE_S} + (cityHash64(second, replica) % 10000) / 1e6)"
"""No two scrapes are equally far apart."""


def deployments(replicas: int) -> tuple[str, ...]:
    """Their names; ten replicas each."""
    return tuple(f"chat-{number}" for number in range(-(-replicas // PER_DEPLOYMENT)))


async def declare_fleet(database: Database, tenant: str, replicas: int) -> None:
    declared = [
        Deployment(id=name, tenant=tenant, model="8b", gateway_url=HttpUrl("http://127.0.0.1:9"))
        for name in deployments(replicas)
    ]
    await declare(database, tenant, declared)


async def fill_metrics(folder: Path, tenant: str, replicas: int, days: float) -> int:
    """`days` of scrapes up to a little after now, or what is missing of them; the rows there are.

    Hours that are over are folded, as the collector does.
    """
    store = MetricStore(f"chdb://{folder}")
    try:
        await store.migrate()
    finally:
        await store.aclose()
    until = datetime.now(UTC).replace(microsecond=0) + AHEAD
    settings = {"max_threads": 2, "max_insert_threads": 1, "min_insert_block_size_rows": 8 << 20}
    client = clickhouse_connect.get_client(
        interface="chdb", path=str(folder), database="optiinfra", settings=settings
    )
    try:
        for number, name in enumerate(deployments(replicas)):
            since = _newest(client, name) or until - timedelta(days=days)
            for begin, end in _pieces(since, until):
                client.command(_scrapes(tenant, number, replicas, begin, end))
            _touch(client, tenant, name, since, until)
            _fold(client, tenant, name)
        return _number(client, "SELECT count() FROM metrics")
    finally:
        client.close()


def _newest(client: Client, deployment: str) -> datetime | None:
    """The newest time of a deployment; None where it has none."""
    newest_s = _number(
        client,
        "SELECT toUnixTimestamp(max(ts)) FROM metrics "
        f"WHERE deployment = '{deployment}' AND metric = 'requests_running'",
    )
    return datetime.fromtimestamp(newest_s, UTC) if newest_s else None


def _number(client: Client, question: str, named: dict[str, Any] | None = None) -> int:
    ((number,),) = client.query(question, named).result_rows
    return int(number)


def _pieces(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Days, then hours, then minutes: a live table has been merged the more the older it is."""
    steps = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=5))
    while since < until:
        step = next((one for one in steps if until - since > 1.2 * one), until - since)
        end = min(until, since + step)
        yield since, end
        since = end


def _scrapes(tenant: str, number: int, replicas: int, begin: datetime, end: datetime) -> str:
    """One deployment's samples; a value differs by replica and time, and follows from them."""
    count = int((end - begin).total_seconds()) // SCRAPE_S
    many = min(PER_DEPLOYMENT, replicas - number * PER_DEPLOYMENT)
    samples = [*_levels(), *(_histograms() if begin > datetime.now(UTC) - HISTOGRAMS else ())]
    return f"""
    INSERT INTO metrics
    SELECT '{tenant}', 'chat-{number}', one.1, one.2,
        toDateTime64({int(begin.timestamp())} + second, 3, 'UTC'),
        one.3 * (1 + (cityHash64(replica, second) % 100) / 200), '', one.4,
        CAST(mapConcat(one.5, map('__window_s', {_WINDOW})), 'Map(LowCardinality(String), String)'),
        lower(hex(sipHash128(replica, second)))
    FROM (SELECT concat('r', toString({number * PER_DEPLOYMENT} + number)) AS replica
        FROM numbers({many}))
    ARRAY JOIN range({SCRAPE_S}, {(count + 1) * SCRAPE_S}, {SCRAPE_S}) AS second
    ARRAY JOIN [{", ".join(samples)}] AS one
    UNION ALL
    SELECT '{tenant}', 'chat-{number}', '', 'usd_per_hour',
        toDateTime64({int(begin.timestamp())} + 30 + number * 30, 3, 'UTC'), {2.0 * many}, '',
        'usd_per_hour', map()::Map(LowCardinality(String), String),
        lower(hex(sipHash128({number}, number)))
    FROM numbers({count * SCRAPE_S // 30})
    """


def _sample(metric: str, mean: float, unit: str, **labels: str) -> str:
    """Replica, metric, mean, unit and labels."""
    pairs = ", ".join(f"'{name}', '{value}'" for name, value in labels.items())
    labelled = f"map({pairs})::Map(String, String)"
    return f"(replica, '{metric}', {mean}::Float64, '{unit}', {labelled})"


def _levels() -> Iterator[str]:
    price = {"market": "spot", "instance_type": "g5.xlarge", "price_source": "list"}
    yield _sample("usd_per_hour", 2.0, "usd_per_hour", **price)
    yield _sample("scrape_window_s", SCRAPE_S, "s")
    yield from (_sample(metric, 3.0, "count") for metric in LOADS)
    yield from (_sample(metric, 4.0, "per_s") for metric in RATES)
    yield from (_sample(metric, 0.4, "fraction") for metric in FRACTIONS)


def _histograms() -> Iterator[str]:
    for metric in LATENCIES:
        for quantile, mean in (("p50", 0.1), ("p95", 0.2), ("p99", 0.3)):
            yield _sample(metric, mean, "s", quantile=quantile)
        yield _sample(f"{metric}_sum", 4.0, "s")
        for low, high in itertools.pairwise(EDGES):
            yield _sample(f"{metric}_bucket", 4.0, "count", ge=low, le=high)


def _touch(client: Client, tenant: str, deployment: str, since: datetime, until: datetime) -> None:
    """Notes the hours that were written to, as the store does with what it is given."""
    begin_s, end_s = int(since.timestamp()) // HOUR_S * HOUR_S, int(until.timestamp())
    touched = [(tenant, deployment, hour) for hour in range(begin_s, end_s, HOUR_S)]
    kept_days = 2 * ((until - since).days + 1)
    client.command(rollups.TOUCH, rollups.touch_parameters(touched, kept_days))


def _fold(client: Client, tenant: str, deployment: str) -> None:
    """From the first hour that is not folded to the last one that is over, some at a time."""
    named = {"tenant": tenant, "deployment": deployment, "span": rollups.HOUR}
    begin_s = _number(client, f"SELECT toUnixTimestamp(min(start)) FROM ({rollups.OPEN})", named)
    over_s = int(datetime.now(UTC).timestamp()) // HOUR_S * HOUR_S
    for start_s in range(begin_s or over_s, over_s, FOLDED_S):
        seconds = min(FOLDED_S, over_s - start_s)
        rolled_at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        together = rollups.Pending(rollups.HOUR, tenant, deployment, start_s, rolled_at)
        client.command(rollups.FOLD[rollups.HOUR], together.parameters() | {"seconds": seconds})
        for hour_s in range(start_s, start_s + seconds, HOUR_S):
            client.command(rollups.FOLDED, replace(together, start_s=hour_s).parameters())
