"""What a window holds of many metrics at once, one row for each series: one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


_WINDOW = "toFloat64OrZero(labels['__window_s'])"
_SUMMARY = f"""
SELECT deployment, replica, metric, arrayMap(name -> labels[name], {{names:Array(String)}}) AS named,
    toUnixTimestamp64Milli(min(ts)), toUnixTimestamp64Milli(max(ts)),
    argMax(tuple(value), ts).1, argMax(unknown_reason, ts),
    avg(value), max(value), ifNull(sum(value), 0),
    ifNull(sumIf(value, ts >= fromUnixTimestamp64Milli({{recent_ms:Int64}}, 'UTC')), 0),
    ifNull(sum(value * {_WINDOW}), 0), sumIf({_WINDOW}, isNotNull(value)),
    count(value), countIf(isNull(value))
FROM (
    SELECT deployment, replica, metric, labels, ts, value, unknown_reason FROM metrics
    WHERE tenant = {{tenant:String}} AND metric IN {{metrics:Array(String)}}
    AND ({{all:Bool}} OR deployment IN {{deployments:Array(String)}}) AND {queries.BETWEEN}
    LIMIT 1 BY deployment, {queries.SAME_SAMPLE}
)
GROUP BY deployment, replica, metric, named
ORDER BY deployment, replica, metric, named LIMIT {MAX_ROWS + 1}
"""  # noqa: S608, E501 - constants only


def summaries(query: SummaryQuery) -> Question:
    """One row for each series, by deployment, replica and metric."""
    return Question(
        _SUMMARY,
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


def summary_of(*row: Any) -> Summary:
    """A row as it is answered."""
    deployment, replica, metric, named, first_ms, last_ms, *rest = row
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
