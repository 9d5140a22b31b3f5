"""The fleet in figures: the overview, what it costs, and how finished changes turned out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import AwareDatetime, BaseModel

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures import costs as costing
from optiinfra.portal_api.figures import overview as overviewing
from optiinfra.portal_api.figures.costs import CostsView, as_csv
from optiinfra.portal_api.figures.overview import OverviewView
from optiinfra.portal_api.figures.seen import SPEND_LATEST_S, look
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.routes.recommendations import Name
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.routes.times import Time
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.outcome import Outcome
from optiinfra.storage.postgres.reports import OutcomeFilter

router = APIRouter(tags=["figures"], dependencies=[Snapshot])

Window = Annotated[
    float, Query(ge=SPEND_LATEST_S, le=86_400, description="how far to look back, s")
]
CSV = "text/csv"
_AS_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {CSV: {"schema": {"type": "string"}}}}}


class OutcomeView(BaseModel):
    """How a finished change turned out: predicted against realised."""

    model_config = shown_as("outcome")

    id: str
    title: str | None
    at: AwareDatetime
    outcome: Outcome


@router.get("/overview")
async def overview(who: Reader, ports: Ports, window_s: Window = 900) -> OverviewView:
    """Whether anything is wrong, and what there is to decide; each part names its source."""
    looked = await look(ports, who.tenant, window_s, overviewing.METRICS)
    told = await ports.reports.overview(who.tenant)
    return overviewing.overview(told, looked.seen, looked.span)


@router.get("/costs", response_model=CostsView, responses=_AS_CSV)
async def costs(
    who: Reader,
    ports: Ports,
    response: Response,
    window_s: Window = 3_600,
    deployment: Name = None,
    accept: Annotated[str, Header()] = "",
) -> Response | CostsView:
    """What each deployment costs now, for what, and per million tokens of the window.

    With `Accept: text/csv` the table; what is not known is an empty cell.
    """
    only = None if deployment is None else [deployment]
    looked = await look(ports, who.tenant, window_s, costing.METRICS, only)
    told = await ports.reports.waterfall(who.tenant)
    view = costing.costs(told, looked.seen, looked.span, deployment)
    if CSV not in accept:
        return view
    answer = Response(as_csv(view), media_type=CSV)
    answer.raw_headers.extend(response.raw_headers)
    return answer


@router.get("/outcomes", response_model=PageOf[OutcomeView])
async def outcomes(
    who: Reader,
    ports: Ports,
    paging: Paged,
    response: Response,
    deployment: Name = None,
    kind: Name = None,
    state: ChangeState | None = None,
    since: Time | None = None,
) -> Response:
    """The latest first; `state` is how the change ended."""
    want = OutcomeFilter(deployment, kind, state, since)
    found = await ports.reports.outcomes(who.tenant, want, paging.page(datetime, str))
    return paging.page_of(found, response)
