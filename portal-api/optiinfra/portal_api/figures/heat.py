"""How fast requests were answered over time: how many of them fell into which latency bucket."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from math import ceil, isinf

from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures.seen import NOTHING
from optiinfra.schemas.deployment import Deployment
from optiinfra.storage.clickhouse_heat import Heat, HeatBin

METRIC = "ttft_s"
COLUMNS, ROWS = 60, 24
COLUMN_S = 30.0
"""Columns are no narrower than that: engines are scraped every few seconds."""
HOW = (
    "requests of all replicas, by the engine's own histogram buckets; each counts in the column in"
    " which its engine was scraped next"
)
Interval = tuple[float, float]


class HeatRow(BaseModel):
    """Latencies in (over_s, up_to_s]; null: without an end."""

    over_s: float
    up_to_s: float | None


class HeatColumn(BaseModel):
    """`counts[i]` requests in row `i`; null where nothing could be read, and `reason` says why."""

    at: AwareDatetime = Field(description="when it begins")
    counts: list[int] | None
    unread: int = Field(description="scrapes that failed: with some, `counts` is not all")
    reason: str | None


class HeatView(BaseModel):
    model_config = shown_as("ttft")

    deployment: str
    model: str
    metric: str
    since: AwareDatetime
    until: AwareDatetime
    column_s: float
    objective_s: float
    simulated: bool = Field(description="part of the telemetry comes from an emulator")
    how: str
    rows: list[HeatRow] = Field(description="lowest first; empty where no request was answered")
    columns: list[HeatColumn]


def columns_in(window_s: float) -> int:
    """How many columns a window is shown in."""
    return max(1, min(COLUMNS, int(window_s / COLUMN_S)))


def heat_view(deployment: Deployment, found: Heat, until: datetime) -> HeatView:
    """The map of one deployment; bins that do not fit are put together, never cut apart."""
    objective = deployment.slo.ttft_p95_s
    rows = merged(reaching(rows_of(found.bins), objective), found.bins, ROWS)
    count = ceil((until - found.since).total_seconds() / found.width_s)
    return HeatView(
        deployment=deployment.id,
        model=deployment.model,
        metric=METRIC,
        since=found.since,
        until=until,
        column_s=found.width_s,
        objective_s=objective,
        simulated=found.emulated,
        how=HOW,
        rows=[HeatRow(over_s=low, up_to_s=None if isinf(high) else high) for low, high in rows],
        columns=[_column(found, rows, step) for step in range(count)],
    )


def rows_of(bins: Iterable[HeatBin]) -> list[Interval]:
    """Rows without a gap such that each bin lies in one of them as a whole, lowest first.

    Bins that overlap, as those of engines of two versions do, become one row. Between bins lie
    buckets in which nothing was observed.
    """
    rows: list[Interval] = []
    for low, high in sorted({(one.low, one.high) for one in bins}):
        if rows and low < rows[-1][1]:
            rows[-1] = (rows[-1][0], max(rows[-1][1], high))
            continue
        if rows and low > rows[-1][1]:
            rows.append((rows[-1][1], low))
        rows.append((low, high))
    return rows


def reaching(rows: Sequence[Interval], limit: float) -> list[Interval]:
    """The rows, and where all lie on one side of `limit` what lies between: nothing is there."""
    if not rows:
        return []
    low, high = rows[0][0], rows[-1][1]
    before = [(0.0, low)] if limit < low else []
    after = [(high, limit)] if high < limit else []
    return [*before, *rows, *after]


def merged(rows: Sequence[Interval], bins: Iterable[HeatBin], most: int) -> list[Interval]:
    """At most `most` rows: neighbours with the fewest observations are put together."""
    found = list(rows)
    totals = _totals(found, bins)
    while len(found) > most:
        at = min(range(len(found) - 1), key=lambda i: totals[i] + totals[i + 1])
        found[at : at + 2] = [(found[at][0], found[at + 1][1])]
        totals[at : at + 2] = [totals[at] + totals[at + 1]]
    return found


def _totals(rows: Sequence[Interval], bins: Iterable[HeatBin]) -> list[float]:
    totals = [0.0] * len(rows)
    for one in bins:
        totals[_row(rows, one)] += one.count
    return totals


def _row(rows: Sequence[Interval], one: HeatBin) -> int:
    return next(i for i, (low, high) in enumerate(rows) if low <= one.low and one.high <= high)


def _column(found: Heat, rows: Sequence[Interval], step: int) -> HeatColumn:
    at = found.since + timedelta(seconds=step * found.width_s)
    scrapes = found.scrapes.get(step)
    if scrapes is None or not scrapes.read:
        reason = scrapes.reason if scrapes is not None else NOTHING
        unread = scrapes.unread if scrapes is not None else 0
        return HeatColumn(at=at, counts=None, unread=unread, reason=reason)
    here = [one for one in found.bins if one.step == step]
    counts = [round(total) for total in _totals(rows, here)]
    return HeatColumn(at=at, counts=counts, unread=scrapes.unread, reason=None)
