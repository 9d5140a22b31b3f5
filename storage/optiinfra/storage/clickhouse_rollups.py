"""Hours and days of metrics: what has changed since they were folded, and folding them again.

A view that counts while rows are inserted counts a redelivered sample again. So nothing is counted
then: an insert only notes the hours and days that it *touched*. One that has been quiet is folded
from the raw rows, each sample once, as a new generation that replaces the one before; until then
its numbers are read from the raw rows. Folding again gives the same, so a fold that was cut short
or done by two at once does no harm. What comes when its raw rows are about to go by their age (a
day before, or half of their time) is too late for rollups.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from optiinfra.storage.metric_rows import Resolution

HOUR, DAY = "hour", "day"
SPAN = {Resolution.HOURLY: HOUR, Resolution.DAILY: DAY}
TABLE = {HOUR: "metrics_hourly", DAY: "metrics_daily"}
START = {HOUR: "toStartOfHour", DAY: "toStartOfDay"}
SECONDS = {HOUR: 3_600, DAY: 86_400}
QUIET_S = 60
"""How long nothing may have come for an hour before it is folded, s."""
MOST_AT_ONCE = 20
"""An upgrade leaves many to fold, and whoever has samples to store waits for these."""
KEY = "tenant, deployment, span, start"
ONE_DEPLOYMENT = "tenant = {tenant:String} AND deployment = {deployment:String}"
SAMPLE_ONCE = "metric, replica, ts, event_id, toString(labels)"

Touched = tuple[str, str, int]
"""Tenant, deployment, and the beginning of an hour, s since the epoch."""

TOUCH = f"""
INSERT INTO metrics_touched ({KEY}, touched_at)
SELECT
    one.1 AS tenant, one.2 AS deployment, span,
    if(span = '{HOUR}', one.3, toStartOfDay(one.3, 'UTC')) AS start, now64(6) AS touched_at
FROM (
    SELECT
        arrayJoin(arrayZip(
            {{tenants:Array(String)}}, {{deployments:Array(String)}},
            arrayMap(s -> toDateTime(s, 'UTC'), {{hours:Array(UInt32)}})
        )) AS one,
        arrayJoin(['{HOUR}', '{DAY}']) AS span
)
WHERE one.3 > now() - toIntervalHour({{oldest_h:UInt32}})
"""  # noqa: S608 - constants only

OPEN = f"""
SELECT start FROM metrics_touched WHERE {ONE_DEPLOYMENT} AND span = {{span:String}}
GROUP BY start HAVING max(touched_at) > max(rolled_at)
"""  # noqa: S608 - constants only

PENDING = f"""
SELECT tenant, deployment, toUnixTimestamp(start), toString(now64(6, 'UTC'))
FROM metrics_touched WHERE span = {{span:String}}
GROUP BY tenant, deployment, start
HAVING max(touched_at) > max(rolled_at)
    AND max(touched_at) < now64(6) - toIntervalSecond({{quiet_s:UInt32}})
    AND start + toIntervalSecond({{seconds:UInt32}}) <= now()
ORDER BY start LIMIT {MOST_AT_ONCE}
"""  # noqa: S608 - constants only

_COLUMNS = (
    "tenant, deployment, replica, metric, ts, unit, low, high, mean, quantiles, known, unknown, "
    "rolled_at"
)
_WHEN = "toDateTime({start:UInt32}, 'UTC')"
_WITHIN = (
    f"ts >= {_WHEN} AND ts < {_WHEN} + toIntervalSecond({{seconds:UInt32}}) AND {ONE_DEPLOYMENT}"
)
_GENERATION = "toDateTime64({rolled_at:String}, 6, 'UTC')"

STATISTICS = """
    min(value) AS low, max(value) AS high, avgState(value) AS mean,
    quantilesTDigestState(0.5, 0.95, 0.99)(value) AS quantiles,
    count(value) AS known, countIf(isNull(value)) AS unknown
"""

SUMMED = """
    min(ts) AS begun, max(ts) AS ended, argMax(tuple(value), ts).1 AS newest,
    argMax(unknown_reason, ts) AS reason, ifNull(sum(value), 0) AS total,
    ifNull(sum(value * window_s), 0) AS weighted, sumIf(window_s, isNotNull(value)) AS covered_s
"""
"""What a summary adds up besides."""

FOLD = {
    HOUR: f"""
INSERT INTO metrics_hourly ({_COLUMNS}, series,
    begun, ended, newest, reason, total, weighted, covered_s)
SELECT
    {{tenant:String}}, {{deployment:String}}, replica, metric, toStartOfHour(ts) AS hour,
    any(unit), {STATISTICS}, {_GENERATION}, series, {SUMMED}
FROM (
    SELECT metric, replica, series, ts, unit, value, unknown_reason, window_s
    FROM metrics WHERE {_WITHIN} LIMIT 1 BY {SAMPLE_ONCE}
)
GROUP BY metric, replica, series, hour
""",  # noqa: S608 - constants only
    DAY: f"""
INSERT INTO metrics_daily ({_COLUMNS})
SELECT
    {{tenant:String}}, {{deployment:String}}, replica, metric, {_WHEN},
    any(unit), min(low), max(high), avgMergeState(mean),
    quantilesTDigestMergeState(0.5, 0.95, 0.99)(quantiles), sum(known), sum(unknown),
    {_GENERATION}
FROM metrics_hourly
WHERE {_WITHIN} AND (metric, replica, ts, rolled_at) IN (
    SELECT metric, replica, ts, max(rolled_at) FROM metrics_hourly WHERE {_WITHIN}
    GROUP BY metric, replica, ts
)
GROUP BY metric, replica
""",  # noqa: S608 - constants only
}

FOLDED = f"""
INSERT INTO metrics_touched ({KEY}, rolled_at)
SELECT {{tenant:String}}, {{deployment:String}}, {{span:String}}, {_WHEN}, {_GENERATION}
"""


@dataclass(frozen=True, slots=True)
class Pending:
    """An hour or a day of a deployment that is to be folded, and its generation (server time)."""

    span: str
    tenant: str
    deployment: str
    start_s: int
    rolled_at: str

    def parameters(self) -> dict[str, Any]:
        """What `FOLD` and `FOLDED` ask for."""
        return {
            "span": self.span,
            "tenant": self.tenant,
            "deployment": self.deployment,
            "start": self.start_s,
            "seconds": SECONDS[self.span],
            "rolled_at": self.rolled_at,
        }


def oldest_h(raw_days: int) -> int:
    """From this age, h, an hour is not folded again: its raw rows are about to go."""
    kept_h = raw_days * 24
    return kept_h - min(24, kept_h // 2)


def touch_parameters(touched: Collection[Touched], raw_days: int) -> dict[str, Any]:
    """What `TOUCH` asks for."""
    return {
        "tenants": [tenant for tenant, _, _ in touched],
        "deployments": [deployment for _, deployment, _ in touched],
        "hours": [hour for _, _, hour in touched],
        "oldest_h": oldest_h(raw_days),
    }


def pending_parameters(span: str, quiet_s: int) -> dict[str, Any]:
    """What `PENDING` asks for."""
    return {"span": span, "seconds": SECONDS[span], "quiet_s": quiet_s}
