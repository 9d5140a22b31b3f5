"""One deployment: how fast it is, what it runs on, how good its answers are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Response
from pydantic import AwareDatetime, BaseModel

from optiinfra.portal_api.auth import Ports, Reader
from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures import performance as speed
from optiinfra.portal_api.figures import quality as worth
from optiinfra.portal_api.figures import resources as machinery
from optiinfra.portal_api.figures.performance import PerformanceView
from optiinfra.portal_api.figures.quality import AnswerView, QualityView, answer_view
from optiinfra.portal_api.figures.resources import HOST, ResourcesView
from optiinfra.portal_api.figures.seen import Seen, look
from optiinfra.portal_api.paging import Paged, PageOf
from optiinfra.portal_api.ports import ApiPorts
from optiinfra.portal_api.routes.figures import Window
from optiinfra.portal_api.routes.snapshots import Snapshot
from optiinfra.portal_api.routes.times import Time
from optiinfra.portal_api.views import DeploymentView
from optiinfra.schemas.answers import ANSWER_SCORE
from optiinfra.schemas.ids import NAME_PATTERN
from optiinfra.schemas.rollout import GateAnswer, GateVerdict
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.clickhouse_summaries import AnswersQuery
from optiinfra.storage.metric_rows import ticks_ms
from optiinfra.storage.postgres.reports import GateFilter

router = APIRouter(prefix="/deployments/{deployment}", tags=["deployments"])

Id = Annotated[str, Path(pattern=NAME_PATTERN)]
DAY = timedelta(days=1)
BASELINE_KEPT = timedelta(days=7)


class GateView(BaseModel):
    """What an assessor answered to one look: each line with observed, threshold and window, and
    the confidence sequence of the quality test."""

    model_config = shown_as("gate")

    position: int
    id: str
    at: AwareDatetime
    change: str
    answer: GateAnswer


@router.get("", dependencies=[Snapshot])
async def deployment(deployment: Id, who: Reader, ports: Ports) -> DeploymentView:
    """What was declared."""
    return await _declared(ports, who.tenant, deployment)


@router.get("/performance")
async def performance(
    deployment: Id, who: Reader, ports: Ports, window_s: Window = 900
) -> PerformanceView:
    """Latencies, load and goodput, in the last minute and over the window, with the objectives."""
    declared = await _declared(ports, who.tenant, deployment)
    seen = await _seen(ports, who.tenant, deployment, window_s, speed.METRICS)
    return speed.performance(declared.deployment, seen)


@router.get("/resources")
async def resources(
    deployment: Id, who: Reader, ports: Ports, window_s: Window = 900
) -> ResourcesView:
    """Replicas with what they do and cost, those that idle, and the GPUs of our machines."""
    await _declared(ports, who.tenant, deployment)
    looked = await look(ports, who.tenant, window_s, machinery.METRICS, [deployment, HOST])
    return machinery.resources(looked.seen[deployment], looked.seen[HOST])


@router.get("/quality")
async def quality(
    deployment: Id, who: Reader, ports: Ports, window_s: Window = 86_400
) -> QualityView:
    """The stored baseline, and what answers of the window scored."""
    declared = await _declared(ports, who.tenant, deployment)
    seen = await _seen(ports, who.tenant, deployment, window_s, worth.METRICS)
    since = seen.span.until - BASELINE_KEPT
    baselines = await ports.metrics.latest(
        who.tenant, deployment, since=since, metrics=[worth.BASELINE]
    )
    return worth.quality(seen, declared.deployment.quality, baselines)


@router.get("/gates", response_model=PageOf[GateView], dependencies=[Snapshot])
async def gates(
    deployment: Id,
    who: Reader,
    ports: Ports,
    paging: Paged,
    response: Response,
    assessor: AgentName | None = None,
    verdict: GateVerdict | None = None,
) -> Response:
    """The latest first."""
    want = GateFilter(deployment, assessor, verdict)
    found = await ports.reports.gates(who.tenant, want, paging.page(int))
    return paging.page_of(found, response)


@router.get("/answers")
async def answers(
    deployment: Id,
    who: Reader,
    ports: Ports,
    paging: Paged,
    source: Literal["live", "golden"] | None = None,
    since: Time | None = None,
    until: Time | None = None,
) -> PageOf[AnswerView]:
    """Scored answers as they are stored, the latest first, of a day when no time is named.

    Prompts and answers themselves are not stored, so there is nothing to redact.
    """
    page, ends = paging.page(int, str), until or datetime.now(UTC)
    found = await ports.metrics.answers(
        AnswersQuery(
            tenant=who.tenant,
            deployment=deployment,
            metric=ANSWER_SCORE,
            since=(since or ends - DAY),
            until=ends,
            limit=page.limit,
            source=source,
            after=None if page.after is None else (page.after[0], page.after[1]),
        )
    )
    rows = [{"row": row, "at": ticks_ms(row.at), "id": row.event_id} for row in found]
    return paging.of(rows, lambda one: answer_view(one["row"]), ("at", "id"))


async def _declared(ports: ApiPorts, tenant: str, deployment: str) -> DeploymentView:
    return DeploymentView.model_validate(await ports.reports.deployment(tenant, deployment))


async def _seen(
    ports: ApiPorts, tenant: str, deployment: str, window_s: float, metrics: Sequence[str]
) -> Seen:
    looked = await look(ports, tenant, window_s, metrics, [deployment])
    return looked.seen[deployment]
