"""Charts of one deployment over time that no single series tells."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.figures import heat as heating
from optiinfra.portal_api.figures.forecast import FORECAST, ForecastView, forecast_view
from optiinfra.portal_api.figures.heat import HeatView, columns_in, heat_view
from optiinfra.portal_api.measures import OFFERED, RAW_DAYS
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.routes.deployment import Id
from optiinfra.portal_api.routes.figures import Window
from optiinfra.schemas.deployment import Deployment
from optiinfra.storage.clickhouse_forecasts import ForecastQuery
from optiinfra.storage.metric_rows import Resolution, SeriesQuery

router = APIRouter(prefix="/deployments/{deployment}", tags=["deployments"])

LongWindow = Annotated[
    float, Query(ge=60, le=RAW_DAYS * 86_400, description="how far to look back, s")
]


@router.get("/ttft")
async def ttft(deployment: Id, who: Reader, ports: Ports, window_s: LongWindow = 3_600) -> HeatView:
    """How many requests got their first token how fast, over time: a heat map.

    At most 60 columns and 24 rows. The same map is drawn once in a few seconds.
    """
    declared = await _declared(ports, who.tenant, deployment)

    async def read() -> HeatView:
        until = _now()
        window = SeriesQuery(
            tenant=who.tenant,
            deployment=deployment,
            metric=heating.METRIC,
            since=until - timedelta(seconds=window_s),
            until=until,
            points=columns_in(window_s),
            resolution=Resolution.RAW,
        )
        return heat_view(declared, await ports.metrics.heat(window), until)

    return await ports.looks.get(("ttft", who.tenant, deployment, window_s), read)


@router.get("/forecast")
async def forecast(
    deployment: Id, who: Reader, ports: Ports, window_s: Window = 3_600
) -> ForecastView:
    """Each forecast of offered load as it was recorded when it was made, and the load that came."""
    await _declared(ports, who.tenant, deployment)

    async def read() -> ForecastView:
        until = _now()
        query = ForecastQuery(
            tenant=who.tenant,
            deployment=deployment,
            forecast=FORECAST,
            came=OFFERED,
            since=until - timedelta(seconds=window_s),
            until=until,
        )
        found = await ports.metrics.forecasts(query)
        return forecast_view(deployment, found, query.since, until)

    return await ports.looks.get(("forecast", who.tenant, deployment, window_s), read)


async def _declared(ports: ApiPorts, tenant: str, deployment: str) -> Deployment:
    """Raises `NotFound`."""
    told = await ports.reports.deployment(tenant, deployment)
    return Deployment.model_validate(told["deployment"])


def _now() -> datetime:
    """In whole milliseconds, as the store keeps a time."""
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1_000 * 1_000)
