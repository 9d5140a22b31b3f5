"""How a histogram filled over time, bin by bin: what a heat map is drawn from; one statement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from optiinfra.storage import clickhouse_queries as queries
from optiinfra.storage.clickhouse_folds import NO_TRAFFIC
from optiinfra.storage.clickhouse_queries import Question, moment
from optiinfra.storage.metric_rows import Resolution, SeriesQuery

MAX_CELLS = 20_000
_UNREAD = f"isNull(value) AND unknown_reason != '{NO_TRAFFIC}'"
_STEP = "intDiv(toUnixTimestamp64Milli(ts) - {since_ms:Int64}, {width_ms:Int64})"
_HEAT = f"""
SELECT {_STEP} AS step, metric = {{metric:String}} AS is_scrape,
    toFloat64OrZero(labels['ge']) AS low, toFloat64OrZero(labels['le']) AS high,
    if(is_scrape, toFloat64(countIf(NOT ({_UNREAD}))), sum(ifNull(value, 0))) AS counted,
    if(is_scrape, countIf({_UNREAD}), 0) AS unread, anyIf(unknown_reason, {_UNREAD}) AS reason,
    max(labels['emulated'] = 'true') AS emulated
FROM (
    SELECT ts, replica, metric, labels, value, unknown_reason FROM metrics
    WHERE {queries.DEPLOYMENT} AND {queries.BETWEEN} AND (metric = {{buckets:String}}
        OR metric = {{metric:String}} AND labels['quantile'] = 'p95')
    LIMIT 1 BY {queries.SAME_SAMPLE}
) GROUP BY step, is_scrape, low, high ORDER BY step, low, high LIMIT {MAX_CELLS}
"""  # noqa: S608 - constants only


@dataclass(frozen=True, slots=True)
class HeatBin:
    """`count` observations in (low, high], in one step, of all replicas."""

    step: int
    low: float
    high: float
    count: float


@dataclass(frozen=True, slots=True)
class HeatScrapes:
    """How many scrapes of a step could be read and how many could not, and why the latter."""

    read: int
    unread: int
    reason: str


@dataclass(frozen=True, slots=True)
class Heat:
    """Bins and scrapes by step; step `n` begins at `since` + `n` × `width_s`.

    A step without a scrape is unknown; one that was read and has no bin had no request.
    """

    since: datetime
    width_s: float
    bins: list[HeatBin] = field(default_factory=list)
    scrapes: dict[int, HeatScrapes] = field(default_factory=dict)
    emulated: bool = False


def heat(window: SeriesQuery) -> Question:
    """Each bin of a histogram in each step, and what was read at all."""
    question = queries.series(window, Resolution.RAW)
    return Question(_HEAT, question.parameters | {"buckets": f"{window.metric}_bucket"})


def heat_of(question: Question, rows: Sequence[Sequence[Any]]) -> Heat:
    """The answer to `heat`."""
    found = Heat(
        moment(question.parameters["since_ms"]),
        question.parameters["width_ms"] / 1_000,
        emulated=any(row[-1] for row in rows),
    )
    for step, is_scrape, low, high, counted, unread, reason, _ in rows:
        if is_scrape:
            found.scrapes[step] = HeatScrapes(int(counted), unread, reason)
        elif counted:
            found.bins.append(HeatBin(step, low, high, counted))
    return found
