"""Metrics over time, thinned by the store to what a screen can show."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api.auth import Needs, Permission, Ports, Reader
from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.measures import MEASURES, Agg, Measure, Plan, measure_of, plan
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.routes.times import Time
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import NAME_PATTERN
from optiinfra.schemas.telemetry import Unit
from optiinfra.storage.clickhouse_folds import PooledQuery
from optiinfra.storage.metric_rows import (
    MAX_POINTS,
    PartPoint,
    Resolution,
    SeriesQuery,
    Steps,
)

router = APIRouter(tags=["metrics"])

SETTLED = timedelta(minutes=5)
"""A range that ended so long ago gets no more samples, but for a collector that was away."""
LAST = timedelta(hours=1)


class MetricView(BaseModel):
    """What can be asked of one metric; the first of `aggs` is what is meant when none is named."""

    metric: str
    unit: Unit
    meaning: str
    aggs: list[Agg]
    by: Literal["replica", "gpu"] | None = Field(description="what it can be told apart by")
    longest_days: int


class MetricList(BaseModel):
    items: list[MetricView]


class OneSeries(BaseModel):
    """`values[i]` belongs to the step that begins at `since` + i × `step_s`; a gap is null."""

    of: str | None = Field(description="a replica or GPU; null where all are put together")
    values: list[float | None]
    unknown: list[int] = Field(description="readings of each step that were unknown")


class SeriesView(BaseModel):
    model_config = shown_as("series")

    deployment: str
    metric: str
    unit: Unit
    agg: Agg
    by: Literal["replica", "gpu"] | None
    since: AwareDatetime
    until: AwareDatetime
    step_s: float
    how: str = Field(description="how a step's value was made")
    closed: bool = Field(description="the range is over, so that asking again gives the same")
    series: list[OneSeries] = Field(description="empty where nothing was measured at all")


@router.get("/metrics", dependencies=[Depends(Needs(Permission.READ))])
async def metrics() -> MetricList:
    """All metrics that a series can be asked of. Those of machines are of deployment `host`."""
    return MetricList(
        items=[
            MetricView(
                metric=one.metric,
                unit=one.unit,
                meaning=one.meaning,
                aggs=list(one.aggs),
                by=_by(one),
                longest_days=one.longest.days,
            )
            for one in MEASURES.values()
        ]
    )


@router.get("/series")
async def series(
    who: Reader,
    ports: Ports,
    deployment: Annotated[str, Query(pattern=NAME_PATTERN, description="`host`: machines")],
    metric: Annotated[str, Query(max_length=63, description="one of `/metrics`")],
    agg: Annotated[Agg | None, Query(description="the metric's first when left out")] = None,
    by: Annotated[
        Literal["replica", "gpu"] | None, Query(description="all put together when left out")
    ] = None,
    since: Annotated[Time | None, Query(alias="from")] = None,
    until: Annotated[Time | None, Query(alias="to")] = None,
    points: Annotated[int, Query(ge=1, le=MAX_POINTS, description="steps at most")] = 300,
) -> SeriesView:
    """A metric in at most `points` steps, put together by the store; gaps stay gaps."""
    measure = measure_of(metric)
    chosen = agg or _default(measure, apart=by is not None)
    if by is not None and by != _by(measure):
        can = f"by={_by(measure)}" if measure.part else "all together"
        raise Rejected(f"{metric} is not told apart by {by}", hint=f"ask for it {can}")
    now = datetime.now(UTC)
    ends = until or now
    window = _window(who.tenant, deployment, measure, since or ends - LAST, ends, points)
    planned = plan(measure, chosen, window, apart=by is not None)
    closed = window.until <= now - SETTLED
    asked = f"{metric}:{chosen.value}:{by}:{window.since.isoformat()}:{ends.isoformat()}:{points}"
    if closed and (known := await ports.series.get(who.tenant, deployment, asked)) is not None:
        return SeriesView.model_validate(known)
    steps = await _read(ports, planned)
    found = SeriesView(
        deployment=deployment,
        metric=metric,
        unit=measure.unit,
        agg=chosen,
        by=by,
        since=steps.since,
        until=window.until,
        step_s=steps.width_s,
        how=planned.how,
        closed=closed,
        series=_dense(steps, window.until, apart=by is not None),
    )
    if closed:
        await ports.series.put(who.tenant, deployment, asked, found.model_dump(mode="json"))
    return found


def _by(measure: Measure) -> Literal["replica", "gpu"] | None:
    """The part that a caller can name."""
    match measure.part:
        case None:
            return None
        case part:
            return "gpu" if part.value == "gpu" else "replica"


def _default(measure: Measure, *, apart: bool) -> Agg:
    """A sum cannot be told apart."""
    return next(one for one in measure.aggs if not (apart and one is Agg.SUM))


def _window(
    tenant: str,
    deployment: str,
    measure: Measure,
    since: datetime,
    until: datetime,
    points: int,
) -> SeriesQuery:
    if _whole_ms(until) <= _whole_ms(since):
        raise Rejected("the range ends before it begins", hint="give `from` before `to`")
    return SeriesQuery(
        tenant=tenant,
        deployment=deployment,
        metric=measure.metric,
        since=_whole_ms(since),
        until=_whole_ms(until),
        points=points,
        resolution=None if measure.is_rolled_up else Resolution.RAW,
    )


def _whole_ms(at: datetime) -> datetime:
    """As the store keeps a time."""
    return at.replace(microsecond=at.microsecond // 1_000 * 1_000)


async def _read(ports: ApiPorts, planned: Plan) -> Steps:
    if isinstance(planned.question, PooledQuery):
        return await ports.metrics.pooled(planned.question)
    return await ports.metrics.folded(planned.question)


def _dense(steps: Steps, until: datetime, *, apart: bool) -> list[OneSeries]:
    """Every step of every part; what is absent is null."""
    count = math.ceil((until - steps.since).total_seconds() / steps.width_s)
    return [
        _one(part if apart else None, list(points), count)
        for part, points in groupby(steps.points, key=lambda point: point.part)
    ]


def _one(of: str | None, points: list[PartPoint], count: int) -> OneSeries:
    values: list[float | None] = [None] * count
    unknown = [0] * count
    for point in points:
        values[point.step], unknown[point.step] = point.value, point.unknown
    return OneSeries(of=of, values=values, unknown=unknown)
