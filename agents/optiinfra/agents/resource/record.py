"""Records a forecast of each deployment's load when it is made, to be held against what came."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.resource.forecast import LoadForecast, LoadPoint, forecast_load
from optiinfra.agents.resource.policy import FORECAST, OFFERED, ResourcePolicy
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown

_LATE = timedelta(minutes=10)
"""So late may a reading reach the store and still count."""


class ForecastRecord:
    """At most one forecast for each step of the load's history, and none for the past.

    The history is kept in memory, since reading days of it each minute is dear; losing it costs
    one reading.
    """

    def __init__(self, telemetry: Telemetry, policy: ResourcePolicy) -> None:
        self._telemetry = telemetry
        self._policy = policy
        self._histories: dict[str, list[LoadPoint]] = {}
        self._steps: dict[str, int] = {}

    async def made(self, deployment: Deployment, now: datetime) -> list[Sample]:
        """The forecast of now, unless this step has one. Raises `Unavailable`."""
        step = int(now.timestamp() // self._policy.forecast.bin_s)
        if self._steps.get(deployment.id) == step:
            return []
        points = await self._history(deployment, now)
        found = await asyncio.to_thread(
            forecast_load, points, now.timestamp(), self._policy.forecast
        )
        self._steps[deployment.id] = step
        return [_sample(found, now, self._policy)]

    async def _history(self, deployment: Deployment, now: datetime) -> list[LoadPoint]:
        oldest = now - timedelta(seconds=self._policy.history_s)
        known = self._histories.get(deployment.id, [])
        since = max(oldest, now - _LATE) if known else oldest
        news = await self._telemetry.window(
            deployment.tenant, deployment.id, OFFERED, since=since, until=now
        )
        kept = [one for one in known if oldest.timestamp() <= one.at_s < since.timestamp()]
        kept += [
            LoadPoint(s.at.timestamp(), s.reading.value)
            for s in news
            if isinstance(s.reading, Known)
        ]
        self._histories[deployment.id] = kept
        return kept


def _sample(found: LoadForecast | Unknown, now: datetime, policy: ResourcePolicy) -> Sample:
    """The head-room as the value, and as its error how far that is beyond what is expected."""
    horizon = {"horizon_s": repr(policy.forecast.horizon_s)}
    reading: Reading
    if isinstance(found, Unknown):
        reading, labels = found, horizon
    else:
        reading = Known(value=found.high_rps, error=found.high_rps - found.mid_rps)
        aims_at = {"method": found.method, "aims_at": repr(policy.forecast.quantile)}
        labels = horizon | aims_at
    return Sample(metric=FORECAST, unit=Unit.PER_SECOND, reading=reading, at=now, labels=labels)
