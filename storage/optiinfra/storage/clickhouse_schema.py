"""The metric tables of ClickHouse: raw rows, hourly and daily rollups, and their retention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

DEDUPLICATION_WINDOW_BLOCKS = 10_000

RAW = f"""
CREATE TABLE IF NOT EXISTS metrics (
    tenant LowCardinality(String),
    deployment LowCardinality(String),
    replica String,
    metric LowCardinality(String),
    ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    value Nullable(Float64) CODEC(ZSTD(1)),
    unknown_reason LowCardinality(String),
    unit LowCardinality(String),
    labels Map(LowCardinality(String), String),
    event_id String CODEC(ZSTD(1))
) ENGINE = MergeTree
PARTITION BY toYYYYMMDD(ts)
ORDER BY (tenant, deployment, metric, replica, ts)
SETTINGS non_replicated_deduplication_window = {DEDUPLICATION_WINDOW_BLOCKS}
"""

ROLLUP = """
CREATE TABLE IF NOT EXISTS {table} (
    tenant LowCardinality(String),
    deployment LowCardinality(String),
    replica String,
    metric LowCardinality(String),
    ts DateTime('UTC'),
    unit SimpleAggregateFunction(any, LowCardinality(String)),
    low SimpleAggregateFunction(min, Nullable(Float64)),
    high SimpleAggregateFunction(max, Nullable(Float64)),
    mean AggregateFunction(avg, Nullable(Float64)),
    quantiles AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), Nullable(Float64)),
    known SimpleAggregateFunction(sum, UInt64),
    unknown SimpleAggregateFunction(sum, UInt64)
) ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(ts)
ORDER BY (tenant, deployment, metric, replica, ts)
"""

GENERATION = """
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS rolled_at DateTime64(6, 'UTC'),
MODIFY ORDER BY (tenant, deployment, metric, replica, ts, rolled_at)
"""
"""Of a row's copies, the one that was folded last holds; 0: counted by a view of release 0.1."""

TOUCHED = """
CREATE TABLE IF NOT EXISTS metrics_touched (
    tenant LowCardinality(String),
    deployment LowCardinality(String),
    span LowCardinality(String),
    start DateTime('UTC'),
    touched_at SimpleAggregateFunction(max, DateTime64(6, 'UTC')),
    rolled_at SimpleAggregateFunction(max, DateTime64(6, 'UTC'))
) ENGINE = AggregatingMergeTree
ORDER BY (tenant, deployment, span, start)
"""

TTL = "ALTER TABLE {table} MODIFY TTL toDateTime(ts) + INTERVAL {days} DAY DELETE"
TOUCHED_TTL = "ALTER TABLE metrics_touched MODIFY TTL start + INTERVAL {days} DAY DELETE"


@dataclass(frozen=True, kw_only=True)
class Retention:
    """How many days each table keeps its rows."""

    raw_days: int = 30
    hourly_days: int = 90
    daily_days: int = 400

    def __post_init__(self) -> None:
        if min(self.raw_days, self.hourly_days, self.daily_days) < 1:
            raise ValueError("retention is at least one day")


def statements(retention: Retention) -> Iterator[str]:
    """Every statement that brings a database to this schema; each may be repeated."""
    yield RAW
    yield TTL.format(table="metrics", days=retention.raw_days)
    for table, days in (
        ("metrics_hourly", retention.hourly_days),
        ("metrics_daily", retention.daily_days),
    ):
        yield ROLLUP.format(table=table)
        yield f"DROP VIEW IF EXISTS {table}_view"
        yield GENERATION.format(table=table)
        yield TTL.format(table=table, days=days)
    yield TOUCHED
    yield TOUCHED_TTL.format(days=retention.daily_days)
