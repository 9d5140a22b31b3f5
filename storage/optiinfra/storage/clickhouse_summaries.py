"""What a window holds of many metrics at once, one row for each series: one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from optiinfra.storage import clickhouse_queries as queries
from optiinfra.storage.clickhouse_queries import Question, milliseconds, moment

NAMES = (
    "quantile", "ge", "le", "market", "instance_type", "price_source", "host", "gpu", "name",
    "source", "ok", "refusal", "emulated",
)  # fmt: skip
"""Labels that tell series apart; those of single answers (session, stratum) do not."""
MAX_ROWS = 100_000
KEYS = 4
"""So many values of a row tell series apart, and rows come in their order."""


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


@dataclass(frozen=True, slots=True)
class Summary:
    """One series in the window: when it was seen, its newest reading, and what it comes to.

    `weighted` adds up value × the time that each reading covers, `covered_s` that time alone.
    """

    deployment: str
    replica: str
    metric: str
    labels: dict[str, str]
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


_SERIES = f"""
SELECT deployment, replica, metric, labels, min(ts) AS begun, max(ts) AS ended,
    argMax(tuple(value), ts).1 AS newest, argMax(unknown_reason, ts) AS reason,
    max(value) AS highest, ifNull(sum(value), 0) AS added,
    ifNull(sumIf(value, ts >= fromUnixTimestamp64Milli({{recent_ms:Int64}}, 'UTC')), 0) AS late,
    count(value) AS told, countIf(isNull(value)) AS untold,
    uniqExact(toUnixTimestamp64Milli(ts)) = count() AS apart,
    toFloat64OrZero(labels['__window_s']) AS window_s
FROM (
    SELECT deployment, replica, metric, labels, ts, value, unknown_reason FROM metrics
    WHERE tenant = {{tenant:String}} AND metric IN {{metrics:Array(String)}}
    AND ({{all:Bool}} OR deployment IN {{deployments:Array(String)}}) AND {queries.BETWEEN}
    %(once)s
)
GROUP BY deployment, replica, metric, labels
"""  # noqa: S608 - constants only
_SUMMARY = f"""
SELECT deployment, replica, metric, arrayMap(name -> labels[name], {{names:Array(String)}}) AS named,
    toUnixTimestamp64Milli(min(begun)), toUnixTimestamp64Milli(max(ended)),
    argMax(tuple(newest), ended).1, argMax(reason, ended),
    if(sum(told) = 0, NULL, sum(added) / sum(told)), max(highest), sum(added), sum(late),
    sum(added * window_s), sum(told * window_s), sum(told), sum(untold), min(apart)
FROM ({_SERIES}) GROUP BY deployment, replica, metric, named
ORDER BY deployment, replica, metric, named LIMIT {MAX_ROWS + 1}
"""  # noqa: S608, E501 - constants only
_ONCE = f"LIMIT 1 BY deployment, {queries.SAME_SAMPLE}"


def summaries(query: SummaryQuery, *, once: bool = False) -> Question:
    """One row for each series, by deployment, replica and metric; its last value says whether all
    of its readings have different times.

    Where they have, nothing was stored twice. Else ask again with `once`, which leaves out what
    came again, at some three times the work.
    """
    return Question(
        _SUMMARY % {"once": _ONCE if once else ""},
        {
            "names": list(NAMES),
            "tenant": query.tenant,
            "metrics": list(query.metrics),
            "all": query.deployments is None,
            "deployments": list(query.deployments or ()),
            "since_ms": milliseconds(query.since),
            "until_ms": milliseconds(query.until),
            "recent_ms": milliseconds(query.recent_since),
        },
    )


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
    deployment, replica, metric, named, first_ms, last_ms, *rest, _ = row
    labels = {name: value for name, value in zip(NAMES, named, strict=True) if value}
    seen = moment(first_ms), moment(last_ms)
    return Summary(deployment, replica, metric, labels, *seen, *rest)


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
