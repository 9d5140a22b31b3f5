"""The questions put to the metric tables: SQL with named parameters, never values in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from optiinfra.storage import clickhouse_rollups as rollups
from optiinfra.storage.clickhouse_schema import Retention
from optiinfra.storage.metric_rows import Resolution, SeriesQuery

COLUMNS = (
    "tenant", "deployment", "replica", "metric", "ts",
    "value", "unknown_reason", "unit", "labels", "event_id",
)  # fmt: skip
ROW = (
    "tenant, deployment, replica, metric, toUnixTimestamp64Milli(ts), "
    "value, unknown_reason, unit, labels, event_id"
)
SAME_SAMPLE = "replica, metric, ts, event_id, toString(labels)"
BETWEEN = (
    "ts >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC') "
    "AND ts < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')"
)
BEGUN_BETWEEN = (
    "ts >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC') "
    "AND ts < fromUnixTimestamp64Milli({ended_ms:Int64}, 'UTC')"
)
DEPLOYMENT = "tenant = {tenant:String} AND deployment = {deployment:String}"
SERIES = DEPLOYMENT + " AND metric = {metric:String}"
ONE_REPLICA = "({replica:String} = '' OR replica = {replica:String})"
UNIT_MS = {Resolution.RAW: 1, Resolution.HOURLY: 3_600_000, Resolution.DAILY: 86_400_000}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RAW_SPAN, HOURLY_SPAN = timedelta(days=2), timedelta(days=60)

RAW_SERIES = f"""
SELECT
    intDiv(toUnixTimestamp64Milli(ts) - {{since_ms:Int64}}, {{width_ms:Int64}}) AS step,
    avg(value), min(value), max(value),
    quantilesTDigest(0.5, 0.95, 0.99)(value), count(value), countIf(isNull(value))
FROM (
    SELECT ts, value FROM metrics WHERE {SERIES} AND {BETWEEN} AND {ONE_REPLICA}
    LIMIT 1 BY {SAME_SAMPLE}
)
GROUP BY step ORDER BY step
"""  # noqa: S608 - constants only

_STEP = "intDiv(toInt64(toUnixTimestamp(at)) * 1000 - {since_ms:Int64}, {width_ms:Int64})"
_START = "if({span:String} = 'hour', toStartOfHour(ts), toStartOfDay(ts))"

ROLLUP_SERIES = f"""
SELECT
    {_STEP} AS step,
    avgMerge(mean), min(low), max(high),
    quantilesTDigestMerge(0.5, 0.95, 0.99)(quantiles), sum(known), sum(unknown)
FROM (
    SELECT ts AS at, low, high, mean, quantiles, known, unknown
    FROM {{table:Identifier}} WHERE {SERIES} AND {BETWEEN} AND {ONE_REPLICA}
    AND ts NOT IN ({rollups.OPEN}) AND (replica, ts, rolled_at) IN (
        SELECT replica, ts, max(rolled_at) FROM {{table:Identifier}}
        WHERE {SERIES} AND {BETWEEN} AND {ONE_REPLICA} GROUP BY replica, ts
    )
    UNION ALL
    SELECT at, {rollups.STATISTICS} FROM (
        SELECT {_START} AS at, value FROM metrics
        WHERE {SERIES} AND {BEGUN_BETWEEN} AND {ONE_REPLICA} AND {_START} IN ({rollups.OPEN})
        LIMIT 1 BY {SAME_SAMPLE}
    ) GROUP BY at
)
GROUP BY step ORDER BY step
"""  # noqa: S608 - constants only


@dataclass(frozen=True)
class Question:
    """SQL text and the values of its parameters."""

    sql: str
    parameters: dict[str, Any]


def milliseconds(at: datetime) -> int:
    """Milliseconds since the epoch, exact."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def moment(ms: int) -> datetime:
    """The inverse of `milliseconds`."""
    return _EPOCH + timedelta(milliseconds=ms)


def resolution_for(query: SeriesQuery, retention: Retention, now: datetime) -> Resolution:
    """The finest table that still holds the window's beginning and can be read quickly."""
    span, age = query.until - query.since, now - query.since
    if span > HOURLY_SPAN or age > timedelta(days=retention.hourly_days):
        return Resolution.DAILY
    if span > RAW_SPAN or age > timedelta(days=retention.raw_days):
        return Resolution.HOURLY
    return Resolution.RAW


def steps(query: SeriesQuery, resolution: Resolution) -> tuple[int, int]:
    """Where the first step begins and how long a step is, in milliseconds.

    Rollups begin at the whole hour or day that holds the window's beginning, and their steps are
    whole hours or days; there are at most `points` steps.
    """
    unit_ms = UNIT_MS[resolution]
    first_ms = milliseconds(query.since) // unit_ms * unit_ms
    span_ms = milliseconds(query.until) - first_ms
    return first_ms, max(1, -(-span_ms // (query.points * unit_ms))) * unit_ms


def series(query: SeriesQuery, resolution: Resolution) -> Question:
    """Statistics of each step of a series."""
    first_ms, width_ms = steps(query, resolution)
    parameters: dict[str, Any] = {
        "tenant": query.tenant,
        "deployment": query.deployment,
        "metric": query.metric,
        "replica": query.replica or "",
        "since_ms": first_ms,
        "until_ms": milliseconds(query.until),
        "width_ms": width_ms,
    }
    if resolution is Resolution.RAW:
        return Question(RAW_SERIES, parameters)
    span, unit_ms = rollups.SPAN[resolution], UNIT_MS[resolution]
    parameters |= {
        "span": span,
        "table": rollups.TABLE[span],
        "ended_ms": -(-parameters["until_ms"] // unit_ms) * unit_ms,
    }
    return Question(ROLLUP_SERIES, parameters)


def window(
    *,
    tenant: str,
    deployment: str,
    metric: str,
    since: datetime,
    until: datetime,
    replicas: Sequence[str] | None,
    labels: Mapping[str, str] | None,
    limit: int,
) -> Question:
    """All samples of a metric in [since, until), oldest first, one more than `limit` at most."""
    conditions = [SERIES, BETWEEN]
    parameters: dict[str, Any] = {
        "tenant": tenant,
        "deployment": deployment,
        "metric": metric,
        "since_ms": milliseconds(since),
        "until_ms": milliseconds(until),
        "most": limit + 1,
    }
    if replicas is not None:
        conditions.append("replica IN {replicas:Array(String)}")
        parameters["replicas"] = list(replicas)
    for number, (name, wanted) in enumerate(sorted((labels or {}).items())):
        conditions.append(f"labels[{{name_{number}:String}}] = {{wanted_{number}:String}}")
        parameters |= {f"name_{number}": name, f"wanted_{number}": wanted}
    where = " AND ".join(conditions)
    sql = (
        f"SELECT {ROW} FROM metrics WHERE {where} ORDER BY ts, replica, event_id "  # noqa: S608
        f"LIMIT 1 BY {SAME_SAMPLE} LIMIT {{most:UInt64}}"
    )
    return Question(sql, parameters)


def latest(
    tenant: str, deployment: str, since: datetime, metrics: Sequence[str] | None
) -> Question:
    """The newest sample of each metric, replica and set of labels, not older than `since`."""
    sql = (
        f"SELECT {ROW} FROM metrics WHERE {DEPLOYMENT} "  # noqa: S608
        "AND (empty({metrics:Array(String)}) OR metric IN {metrics:Array(String)}) "
        "AND ts >= fromUnixTimestamp64Milli({since_ms:Int64}, 'UTC') "
        "ORDER BY ts DESC, event_id DESC LIMIT 1 BY metric, replica, toString(labels)"
    )
    parameters = {
        "tenant": tenant,
        "deployment": deployment,
        "metrics": list(metrics or ()),
        "since_ms": milliseconds(since),
    }
    return Question(sql, parameters)
