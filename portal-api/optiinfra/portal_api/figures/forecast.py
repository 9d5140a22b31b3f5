"""What load the resource agent forecast, each time when it did, and the load that came."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from math import ceil

from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api.examples import shown_as
from optiinfra.storage.clickhouse_forecasts import Made, Recorded

FORECAST = "forecast_peak_rps"
MOST_POINTS = 120
PARTS, WATCHED = 5, 4
"""Of a horizon's fifths so many must have a known reading, or its peak is not known."""
NOT_OVER = "its time is not over"
NOT_WATCHED = "the load of its time is not known"


class ForecastPoint(BaseModel):
    """A forecast of the highest load in (made_at, due_at], and the highest that was measured.

    What is not known is null and has a reason. `held`: it stayed within the head-room.
    """

    made_at: AwareDatetime
    due_at: AwareDatetime
    expected_rps: float | None
    high_rps: float | None
    reason: str | None
    came_rps: float | None
    came_reason: str | None
    held: bool | None


class ForecastView(BaseModel):
    """`held` of `over` forecasts of the window held; points are the worst of each stretch."""

    model_config = shown_as("forecast")

    deployment: str
    since: AwareDatetime
    until: AwareDatetime
    recorded_since: AwareDatetime | None = Field(description="null: none was ever recorded")
    horizon_s: float | None
    aims_at: float | None = Field(description="the share of forecasts that are meant to hold")
    method: str | None
    forecasts: int
    over: int
    held: int
    points: list[ForecastPoint]


def forecast_view(
    deployment: str, found: Recorded, since: datetime, until: datetime
) -> ForecastView:
    """All forecasts of the window are judged; at most `MOST_POINTS` are shown."""
    points = list(_judged(found, until))
    over = [one.held for one in points if one.held is not None]
    last = next((one for one in reversed(found.made) if one.high_rps is not None), None)
    return ForecastView(
        deployment=deployment,
        since=since,
        until=until,
        recorded_since=found.first_at,
        horizon_s=last.horizon_s if last else None,
        aims_at=last.aims_at if last else None,
        method=last.method if last else None,
        forecasts=len(points),
        over=len(over),
        held=sum(over),
        points=worst(points, MOST_POINTS),
    )


def _judged(found: Recorded, until: datetime) -> Iterator[ForecastPoint]:
    times = [at for at, _ in found.came]
    for made in found.made:
        due = made.at + timedelta(seconds=made.horizon_s)
        came = found.came[bisect_right(times, made.at) : bisect_right(times, due)]
        peak = None if due > until else _peak(made, came)
        known = made.high_rps is not None
        yield ForecastPoint(
            made_at=made.at,
            due_at=due,
            expected_rps=made.expected_rps,
            high_rps=made.high_rps,
            reason=None if known else made.reason,
            came_rps=peak,
            came_reason=None if peak is not None else NOT_OVER if due > until else NOT_WATCHED,
            held=None if made.high_rps is None or peak is None else peak <= made.high_rps,
        )


def _peak(made: Made, came: Sequence[tuple[datetime, float]]) -> float | None:
    """The highest load of the horizon, if enough of it was watched."""
    part_s = made.horizon_s / PARTS
    parts = {ceil((at - made.at).total_seconds() / part_s) for at, _ in came}
    return max(load for _, load in came) if len(parts) >= WATCHED else None


def worst(points: Sequence[ForecastPoint], most: int) -> list[ForecastPoint]:
    """At most `most`, evenly spread: of each stretch the one that came nearest to its bound."""
    size = -(-len(points) // most) if points else 1
    stretches = (points[n : n + size] for n in range(0, len(points), size))
    return [max(stretch, key=_strain) for stretch in stretches]


def _strain(point: ForecastPoint) -> tuple[float, datetime]:
    """How much of the head-room was needed; of those that cannot be judged the newest."""
    if point.came_rps is None or point.high_rps is None:
        return -1.0, point.made_at
    needed = point.came_rps / point.high_rps if point.high_rps else float(point.came_rps > 0)
    return needed, point.made_at
