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

NAMES = (
    "quantile", "ge", "le", "market", "instance_type", "price_source", "host", "gpu", "name",
    "source", "ok", "refusal", "emulated",
)  # fmt: skip
"""Labels that tell series apart; those of single answers (session, stratum) do not.

Rows keep what follows from these, so another list needs a column of another name.
"""

_IS_NAMED = f"name IN {NAMES} AND value != ''"
SERIES = f"""
ALTER TABLE metrics
ADD COLUMN IF NOT EXISTS series LowCardinality(String)
    MATERIALIZED toJSONString(mapSort(mapFilter((name, value) -> {_IS_NAMED}, labels))),
ADD COLUMN IF NOT EXISTS window_s Float64
    MATERIALIZED toFloat64OrZero(labels['__window_s']) CODEC(ZSTD(1))
"""
"""What summaries read of the labels, which are dear to read. Parts that were written before are
asked for their labels, until they are merged."""

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
ADD COLUMN IF NOT EXISTS series LowCardinality(String),
MODIFY ORDER BY (tenant, deployment, metric, replica, ts, rolled_at, series)
"""
"""Of a row's copies, the one that was folded last holds; 0: counted by a view of release 0.1.

Hours are kept by series; days are not.
"""

SUMMED = """
ALTER TABLE metrics_hourly
ADD COLUMN IF NOT EXISTS begun SimpleAggregateFunction(min, DateTime64(3, 'UTC')),
ADD COLUMN IF NOT EXISTS ended SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
ADD COLUMN IF NOT EXISTS newest SimpleAggregateFunction(anyLast, Nullable(Float64)),
ADD COLUMN IF NOT EXISTS reason SimpleAggregateFunction(anyLast, LowCardinality(String)),
ADD COLUMN IF NOT EXISTS total SimpleAggregateFunction(sum, Float64),
ADD COLUMN IF NOT EXISTS weighted SimpleAggregateFunction(sum, Float64),
ADD COLUMN IF NOT EXISTS covered_s SimpleAggregateFunction(sum, Float64)
"""
"""What a summary of a long window adds up."""

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

REFOLDED_H = 26
REFOLD = f"""
INSERT INTO metrics_touched (tenant, deployment, span, start, touched_at)
SELECT DISTINCT tenant, deployment, 'hour', ts, now64(6) FROM metrics_hourly
WHERE ts > now() - toIntervalHour({REFOLDED_H}) AND 0 = (
    SELECT count() FROM system.columns
    WHERE database = currentDatabase() AND table = 'metrics_hourly' AND name = 'begun'
)
"""  # noqa: S608 - constants only
"""Before an hour knew what summaries add up, it was folded without: the last day is folded anew."""

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
    yield TOUCHED
    yield TOUCHED_TTL.format(days=retention.daily_days)
    yield SERIES
    for table, days in (
        ("metrics_hourly", retention.hourly_days),
        ("metrics_daily", retention.daily_days),
    ):
        yield ROLLUP.format(table=table)
        yield f"DROP VIEW IF EXISTS {table}_view"
        yield GENERATION.format(table=table)
        yield TTL.format(table=table, days=days)
    yield REFOLD
    yield SUMMED
