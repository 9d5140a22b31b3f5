"""Series of several replicas put together step by step, by the server: one statement each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from optiinfra.storage import clickhouse_queries as queries
from optiinfra.storage import clickhouse_rollups as rollups
from optiinfra.storage.clickhouse_queries import Question
from optiinfra.storage.metric_rows import MAX_POINTS, Resolution, SeriesQuery

MAX_PARTS = 64
MAX_VALUES = MAX_PARTS * MAX_POINTS
NO_TRAFFIC = "no_traffic"


class Fold(StrEnum):
    """How the parts of a step become one value; `EACH` leaves them apart.

    A sum is unknown as soon as one of its parts is.
    """

    EACH = "each"
    SUM = "sum"
    MEAN = "mean"
    MAX = "max"


class Part(StrEnum):
    """What a metric is told apart by."""

    REPLICA = "replica"
    GPU = "gpu"
    ALL = "all"
    """Not at all: every sample of a step counts alike."""


class Rows(StrEnum):
    """Which rows: all, those of the deployment as a whole, those of its replicas."""

    ALL = "all"
    WHOLE = "whole"
    REPLICAS = "replicas"


@dataclass(frozen=True, kw_only=True)
class FoldQuery:
    """A metric over a window, folded over its parts; `stat` is what becomes of a part's samples.

    `stat` is `mean`, `max` or a quantile (`p50`, …) of the values. `quantile` chooses the rows with
    that label. Only rows without such labels can be read from rollups.
    """

    window: SeriesQuery
    fold: Fold
    part: Part = Part.REPLICA
    rows: Rows = Rows.ALL
    stat: str = "mean"
    quantile: str | None = None


@dataclass(frozen=True, kw_only=True)
class PooledQuery:
    """A statistic of all observations of a histogram in a step: `p50`, `p95`, `p99`, `mean`."""

    window: SeriesQuery
    stat: str
    fold: Fold


FRACTIONS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_PARTS = {
    Part.REPLICA: "replica",
    Part.GPU: "concat(labels['host'], '/', labels['gpu'])",
    Part.ALL: "''",
}
_ROWS = {Rows.ALL: "1", Rows.WHOLE: "replica = ''", Rows.REPLICAS: "replica != ''"}
_STATS = {
    "mean": "avg(value)",
    "max": "max(value)",
    **{name: f"quantileExact({fraction})(value)" for name, fraction in FRACTIONS.items()},
}
_FOLDS = {
    Fold.SUM: "if(countIf(known = 0) > 0, NULL, sum(stat))",
    Fold.MEAN: "avg(stat)",
    Fold.MAX: "max(stat)",
}
_RAW_STEP = "intDiv(toUnixTimestamp64Milli(ts) - {since_ms:Int64}, {width_ms:Int64})"
_LIMIT = f"LIMIT {MAX_VALUES + 1}"
_RAW_PARTS = f"""
SELECT {_RAW_STEP} AS step, %(part)s AS part, %(stat)s AS stat,
    count(value) AS known, countIf(isNull(value)) AS unknown
FROM (
    SELECT ts, replica, labels, value FROM metrics
    WHERE {queries.SERIES} AND {queries.BETWEEN} AND {queries.ONE_REPLICA} AND %(rows)s
    AND ({{quantile:String}} = '' OR labels['quantile'] = {{quantile:String}})
    LIMIT 1 BY {queries.SAME_SAMPLE}
) GROUP BY step, part
"""  # noqa: S608 - constants only
_ROLLUP_STEP = "intDiv(toInt64(toUnixTimestamp(at)) * 1000 - {since_ms:Int64}, {width_ms:Int64})"
_START = "if({span:String} = 'hour', toStartOfHour(ts), toStartOfDay(ts))"
_WHERE = f"{queries.SERIES} AND {queries.BETWEEN} AND {queries.ONE_REPLICA} AND %(rows)s"
_ROLLUP_PARTS = f"""
SELECT {_ROLLUP_STEP} AS step, replica AS part, %(stat)s AS stat,
    sum(known) AS known, sum(unknown) AS unknown
FROM (
    SELECT ts AS at, replica, high, mean, known, unknown
    FROM {{table:Identifier}} WHERE {_WHERE}
    AND ts NOT IN ({rollups.OPEN}) AND (replica, ts, rolled_at) IN (
        SELECT replica, ts, max(rolled_at) FROM {{table:Identifier}} WHERE {_WHERE}
        GROUP BY replica, ts
    )
    UNION ALL
    SELECT at, replica, max(value) AS high, avgState(value) AS mean, count(value) AS known,
        countIf(isNull(value)) AS unknown
    FROM (
        SELECT {_START} AS at, replica, value FROM metrics
        WHERE {queries.SERIES} AND {queries.BEGUN_BETWEEN} AND {queries.ONE_REPLICA} AND %(rows)s
        AND {_START} IN ({rollups.OPEN}) LIMIT 1 BY {queries.SAME_SAMPLE}
    ) GROUP BY at, replica
) GROUP BY step, part
"""  # noqa: S608 - constants only
_ROLLUP_STATS = {"mean": "avgMerge(mean)", "max": "max(high)"}
_APART = "SELECT part, step, stat, known, unknown FROM (%(parts)s) ORDER BY part, step"
_TOGETHER = """
SELECT '' AS part, step, %(fold)s, sum(known), sum(unknown) FROM (%(parts)s)
GROUP BY step ORDER BY step
"""
_HISTOGRAM = (
    f"{queries.DEPLOYMENT} AND {queries.BETWEEN} AND {queries.ONE_REPLICA} AND metric IN "
    "({metric:String}, {buckets:String}, {sums:String})"
)
_UNREAD = (
    "countIf(metric = {metric:String} AND isNull(value) AND labels['quantile'] = 'p95' "
    f"AND unknown_reason != '{NO_TRAFFIC}')"
)
_MEANS = f"""
SELECT {_RAW_STEP} AS step, %(part)s AS part,
    sumIf(ifNull(value, 0), metric = {{buckets:String}}) AS counted,
    if(counted > 0, sumIf(ifNull(value, 0), metric = {{sums:String}}) / counted, NULL) AS stat,
    {_UNREAD} AS unread
FROM (
    SELECT ts, replica, metric, labels, value, unknown_reason FROM metrics WHERE {_HISTOGRAM}
    LIMIT 1 BY {queries.SAME_SAMPLE}
) GROUP BY step, part
"""  # noqa: S608 - constants only
_POOLED = f"""
SELECT step, part, sum(n) AS counted, sum(missed) AS unread,
    arraySort(bin -> (bin.2, bin.1), groupArrayIf((low, high, n), n > 0)) AS bins,
    arrayCumSum(bin -> bin.3, bins) AS below,
    {{fraction:Float64}} * counted AS rank,
    arrayFirstIndex(total -> total >= rank, below) AS at,
    bins[at] AS one,
    if(at = 0, NULL, if(isInfinite(one.2), one.1,
        one.1 + (rank - (below[at] - one.3)) / one.3 * (one.2 - one.1))) AS stat
FROM (
    SELECT {_RAW_STEP} AS step, %(part)s AS part,
        toFloat64OrZero(labels['ge']) AS low, toFloat64OrZero(labels['le']) AS high,
        sumIf(ifNull(value, 0), metric = {{buckets:String}}) AS n, {_UNREAD} AS missed
    FROM (
        SELECT ts, replica, metric, labels, value, unknown_reason FROM metrics
        WHERE {_HISTOGRAM} LIMIT 1 BY {queries.SAME_SAMPLE}
    ) GROUP BY step, part, low, high
) GROUP BY step, part
"""  # noqa: S608 - constants only
_OF_POOLED = "SELECT part, step, stat, toUInt64(counted), unread FROM (%(parts)s)"


def folded(query: FoldQuery, resolution: Resolution) -> Question:
    """Part, step, value, and how many readings were known and unknown; by part and step."""
    question = queries.series(query.window, resolution)
    raw = resolution is Resolution.RAW
    parts = (_RAW_PARTS if raw else _ROLLUP_PARTS) % {
        "part": _PARTS[query.part],
        "stat": (_STATS if raw else _ROLLUP_STATS)[query.stat],
        "rows": _ROWS[query.rows],
    }
    outer = _APART if query.fold is Fold.EACH else _TOGETHER
    sql = outer % {"parts": parts, "fold": _FOLDS.get(query.fold, "")}
    return Question(f"{sql} {_LIMIT}", question.parameters | {"quantile": query.quantile or ""})


def pooled(query: PooledQuery) -> Question:
    """The same of a histogram, out of its buckets; what is known counts observations."""
    question = queries.series(query.window, Resolution.RAW)
    metric = query.window.metric
    parameters: dict[str, Any] = question.parameters | {
        "buckets": f"{metric}_bucket",
        "sums": f"{metric}_sum",
        "fraction": FRACTIONS.get(query.stat, 0.0),
    }
    inner = _POOLED if query.stat in FRACTIONS else _MEANS
    parts = inner % {"part": "replica" if query.fold is Fold.EACH else "''"}
    sql = _OF_POOLED % {"parts": parts}
    return Question(f"{sql} ORDER BY part, step {_LIMIT}", parameters)
