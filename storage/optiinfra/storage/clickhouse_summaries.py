"""What a window holds of many metrics at once, one row for each series: one statement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from optiinfra.storage import clickhouse_queries as queries
from optiinfra.storage import clickhouse_rollups as rollups
from optiinfra.storage.clickhouse_queries import Question, milliseconds, moment

MAX_ROWS = 100_000
KEYS = 4
"""So many values of a row tell series apart, and rows come in their order."""
_HOUR_S, _HOUR_MS = 3_600, 3_600_000


@dataclass(frozen=True, kw_only=True)
class SummaryQuery:
    """Metrics of a tenant's deployments (None: all) in [since, until).

    What came since `recent_since` is also counted by itself.
    """

    tenant: str
    metrics: Sequence[str]
    since: datetime
    until: datetime
    recent_since: datetime
    deployments: Sequence[str] | None = None


class Summary(NamedTuple):
    """One series in the window: when it was seen, its newest reading, and what it comes to.

    `weighted` adds up value × the time that each reading covers, `covered_s` that time alone.
    """

    deployment: str
    replica: str
    metric: str
    labels: Mapping[str, str]
    first_at: datetime
    last_at: datetime
    last: float | None
    last_reason: str
    mean: float | None
    high: float | None
    total: float
    recent: float
    weighted: float
    covered_s: float
    known: int
    unknown: int


_ASKED = (
    "tenant = {tenant:String} AND metric IN {metrics:Array(String)} "
    "AND ({all:Bool} OR deployment IN {deployments:Array(String)})"
)
_RAW = f"""
SELECT deployment, replica, metric, series, {rollups.SUMMED}, max(value) AS high,
    ifNull(sumIf(value, ts >= fromUnixTimestamp64Milli({{recent_ms:Int64}}, 'UTC')), 0) AS late,
    count(value) AS known, countIf(isNull(value)) AS unknown, uniqExact(ts) = count() AS apart
FROM %(rows)s GROUP BY deployment, replica, metric, series
"""  # noqa: S608 - constants only
_ROWS = f"metrics WHERE {_ASKED} AND {queries.BETWEEN} AND %(when)s"
_ROWS_ONCE = f"""(
    SELECT deployment, replica, metric, series, ts, value, unknown_reason, window_s
    FROM {_ROWS} LIMIT 1 BY deployment, {queries.SAME_SAMPLE}
)"""  # noqa: S608 - constants only
_WHOLE = "toDateTime({whole_s:UInt32}, 'UTC')"
_BROKEN = "toDateTime({broken_s:UInt32}, 'UTC')"
_RAGGED = f"(ts < {_WHOLE} OR ts >= {_BROKEN})"
_IN_HOURS = f"{_ASKED} AND ts >= {_WHOLE} AND ts < {_BROKEN}"
_OPEN = f"""
SELECT toString(deployment), toUnixTimestamp(start) FROM (
    SELECT deployment, start FROM metrics_touched
    WHERE tenant = {{tenant:String}} AND span = '{rollups.HOUR}'
    AND start >= {_WHOLE} AND start < {_BROKEN}
    GROUP BY deployment, start HAVING max(touched_at) > max(rolled_at)
    UNION DISTINCT
    SELECT deployment, ts AS start FROM metrics_hourly WHERE {_IN_HOURS}
    GROUP BY deployment, ts HAVING argMax(series, rolled_at) = ''
)
"""  # noqa: S608 - constants only
"""Also what a collector of a release before has folded, which knew no series."""
_THOSE = """(SELECT one.1, one.2 FROM (SELECT arrayJoin(arrayZip(
    {open_of:Array(String)}, arrayMap(s -> toDateTime(s, 'UTC'), {open_s:Array(UInt32)})
)) AS one))"""
_STILL_OPEN = f"ts >= {_WHOLE} AND ts < {_BROKEN} AND (deployment, toStartOfHour(ts)) IN {_THOSE}"
_HOURS = f"""
SELECT deployment, replica, metric, series, begun, ended, newest, reason, total, weighted,
    covered_s, high, 0 AS late, known, unknown, 1 AS apart
FROM metrics_hourly WHERE {_IN_HOURS} AND (deployment, ts) NOT IN {_THOSE}
AND (deployment, metric, replica, ts, rolled_at) IN (
    SELECT deployment, metric, replica, ts, max(rolled_at) FROM metrics_hourly
    WHERE {_IN_HOURS} GROUP BY deployment, metric, replica, ts
)
"""  # noqa: S608 - constants only
_SUMMARY = f"""
SELECT deployment, replica, metric, series,
    toUnixTimestamp64Milli(min(begun)), toUnixTimestamp64Milli(max(ended)),
    argMax(tuple(newest), ended).1, argMax(reason, ended),
    if(sum(known) = 0, NULL, sum(total) / sum(known)), max(high), sum(total), sum(late),
    sum(weighted), sum(covered_s), sum(known), sum(unknown), min(apart)
FROM (%(parts)s) GROUP BY deployment, replica, metric, series
ORDER BY deployment, replica, metric, series LIMIT {MAX_ROWS + 1}
"""  # noqa: S608 - constants only


OpenHours = Sequence[tuple[str, int]]
"""Deployments and begins (s since the epoch) of hours whose rollup does not tell what they hold."""


def has_whole_hours(query: SummaryQuery) -> bool:
    """Whether there are any before `recent_since`."""
    named = _parameters(query)
    return bool(named["whole_s"] < named["broken_s"])


def open_hours(query: SummaryQuery) -> Question:
    """Which of the whole hours are open: asked before, for all parts of a summary to agree."""
    return Question(_OPEN, _parameters(query))


def summaries(query: SummaryQuery, *, open_hours: OpenHours | None, once: bool = False) -> Question:
    """One row for each series, by deployment, replica and metric; its last value says whether all
    of its readings have different times.

    Where they have, nothing was stored twice. Else ask again with `once`, which leaves out what
    came again, at some three times the work. Whole hours are read as they were folded, but for
    `open_hours`; None: all from the samples.
    """
    when = ["1"] if open_hours is None else [_RAGGED, _STILL_OPEN]
    rows = _ROWS_ONCE if once else _ROWS
    parts = [_RAW % {"rows": rows % {"when": one}} for one in when]
    if open_hours is not None:
        parts.append(_HOURS)
    opened = {
        "open_of": [deployment for deployment, _ in open_hours or ()],
        "open_s": [start_s for _, start_s in open_hours or ()],
    }
    sql = _SUMMARY % {"parts": " UNION ALL ".join(parts)}
    return Question(sql, _parameters(query) | opened)


def _parameters(query: SummaryQuery) -> dict[str, Any]:
    return {
        "tenant": query.tenant,
        "metrics": list(query.metrics),
        "all": query.deployments is None,
        "deployments": list(query.deployments or ()),
        "since_ms": milliseconds(query.since),
        "until_ms": milliseconds(query.until),
        "recent_ms": milliseconds(query.recent_since),
        "whole_s": -(-milliseconds(query.since) // _HOUR_MS) * _HOUR_S,
        "broken_s": milliseconds(query.recent_since) // _HOUR_MS * _HOUR_S,
    }


def doubtful(query: SummaryQuery, rows: Sequence[Sequence[Any]]) -> list[SummaryQuery]:
    """What is to be asked again with `once`, a deployment at a time."""
    found: dict[str, set[str]] = {}
    for deployment, _, metric, *_, apart in rows:
        if not apart:
            found.setdefault(deployment, set()).add(metric)
    return [
        replace(query, deployments=[deployment], metrics=sorted(metrics))
        for deployment, metrics in sorted(found.items())
    ]


def summary_of(*row: Any) -> Summary:
    """A row as it is answered."""
    deployment, replica, metric, series, first_ms, last_ms, *rest, _ = row
    seen = moment(first_ms), moment(last_ms)
    return Summary(deployment, replica, metric, _labels(series), *seen, *rest)


@lru_cache(4_096)
def _labels(series: str) -> Mapping[str, str]:
    """Few fleets have more series than that of one replica."""
    return MappingProxyType(json.loads(series))


@dataclass(frozen=True, kw_only=True)
class AnswersQuery:
    """Scored answers of a deployment in [since, until), the latest first; after `after`, if any.

    The sort key is (ms since the epoch, event id).
    """

    tenant: str
    deployment: str
    metric: str
    since: datetime
    until: datetime
    limit: int
    source: str | None = None
    after: tuple[int, str] | None = None


_ANSWERS = f"""
SELECT {queries.ROW} FROM metrics
WHERE {queries.SERIES} AND {queries.BETWEEN}
AND ({{source:String}} = '' OR labels['source'] = {{source:String}})
AND (toUnixTimestamp64Milli(ts), event_id) < ({{after_ms:Int64}}, {{after_id:String}})
ORDER BY ts DESC, event_id DESC LIMIT 1 BY {queries.SAME_SAMPLE} LIMIT {{limit:UInt32}}
"""  # noqa: S608 - constants only
_LAST_MS = 1 << 62


def answers(query: AnswersQuery) -> Question:
    """One page of rows."""
    after_ms, after_id = query.after or (_LAST_MS, "")
    return Question(
        _ANSWERS,
        {
            "tenant": query.tenant,
            "deployment": query.deployment,
            "metric": query.metric,
            "since_ms": milliseconds(query.since),
            "until_ms": milliseconds(query.until),
            "source": query.source or "",
            "after_ms": after_ms,
            "after_id": after_id,
            "limit": query.limit,
        },
    )
