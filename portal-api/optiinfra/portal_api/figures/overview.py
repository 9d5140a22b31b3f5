"""Is anything wrong, and what is there to decide: one answer over the whole fleet."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures import objectives as slo
from optiinfra.portal_api.figures.measured import Measured, added, known, unknown
from optiinfra.portal_api.figures.objectives import Objectives, objectives
from optiinfra.portal_api.figures.seen import Seen, Span, emulated_in
from optiinfra.portal_api.figures.spending import PER_MONTH, a_month, rate
from optiinfra.portal_api.measures import SPEND
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.recommendation import Risk
from optiinfra.schemas.telemetry import Unit

METRICS = (SPEND, *slo.METRICS)
SPEND_SOURCE = "metric store: the newest usd_per_hour of each deployment as a whole"
REALISED_SOURCE = "event log: outcome.recorded of completed changes, at 730 h a month"
PENDING_SOURCE = "changes that are awaiting_approval; asked_at is when approval.requested was said"
RUNNING_SOURCE = "changes that are approved, executing or rolling_back"
SLO_SOURCE = "metric store: histogram buckets and rates of the window, all replicas together"


class SpendOf(BaseModel):
    deployment: str
    usd_per_hour: Measured


class Spend(BaseModel):
    """Unknown as soon as one deployment is; the list says which."""

    usd_per_hour: Measured
    usd_per_month: Measured
    deployments: list[SpendOf]
    source: str


class Realised(BaseModel):
    usd_per_month: Measured
    changes: int = Field(description="changes that have completed")
    unknown: int = Field(description="those of them whose saving is not known: not in the sum")
    event_position: int | None = Field(description="of the newest outcome in the log")
    deployments: list[str] = Field(description="on which they were")
    source: str


class PendingChange(BaseModel):
    id: str
    title: str
    deployment: str | None
    risk: Risk
    asked_at: AwareDatetime | None
    expires_at: AwareDatetime | None


class Pending(BaseModel):
    count: int
    snoozed: int = Field(description="put off by a person until later: not counted, nor listed")
    oldest_age_s: float | None
    items: list[PendingChange] = Field(description="the oldest ones")
    source: str


class RunningChange(BaseModel):
    id: str
    title: str
    deployment: str | None
    state: ChangeState
    phase: str | None
    paused_by: str | None


class Running(BaseModel):
    count: int
    items: list[RunningChange] = Field(description="the oldest ones")
    source: str


class Attainment(BaseModel):
    deployments: list[Objectives]
    source: str


class OverviewView(BaseModel):
    model_config = shown_as("overview")

    at: AwareDatetime
    window_s: float
    spend: Spend
    realised: Realised
    pending: Pending
    running: Running
    slo: Attainment
    simulated: list[str] = Field(
        description="deployments that run on emulated replicas: all their figures are simulated"
    )


def overview(told: Any, seen: dict[str, Seen], span: Span) -> OverviewView:
    """Out of the report of the database and what was measured of each deployment."""
    declared = [Deployment.model_validate(body) for body in told["deployments"]]
    return OverviewView(
        at=span.until,
        window_s=span.seconds,
        spend=spend([one.id for one in declared], seen, span),
        realised=Realised(
            usd_per_month=saved(told["realised"]),
            changes=told["realised"]["changes"],
            unknown=told["realised"]["changes"] - told["realised"]["known"],
            event_position=told["realised"]["event_position"],
            deployments=told["realised"]["deployments"],
            source=REALISED_SOURCE,
        ),
        pending=Pending(**told["pending"], source=PENDING_SOURCE),
        running=Running(**told["running"], source=RUNNING_SOURCE),
        slo=Attainment(
            deployments=[objectives(_of(one.id, seen, span), one.slo) for one in declared],
            source=SLO_SOURCE,
        ),
        simulated=emulated_in(seen),
    )


def spend(declared: list[str], seen: dict[str, Seen], span: Span) -> Spend:
    """What is declared, and what else is paid for."""
    undeclared = [name for name, one in seen.items() if one.of(SPEND)]
    each = [
        SpendOf(deployment=name, usd_per_hour=rate(_of(name, seen, span)))
        for name in sorted({*declared, *undeclared})
    ]
    total = added(
        [(one.deployment, one.usd_per_hour) for one in each],
        Unit.USD_PER_HOUR,
        "no deployment is declared",
    )
    return Spend(
        usd_per_hour=total, usd_per_month=a_month(total), deployments=each, source=SPEND_SOURCE
    )


def saved(told: Any) -> Measured:
    """USD a month that completed changes save, of those whose saving is known."""
    if not told["changes"]:
        return known(0.0, PER_MONTH)
    if not told["known"]:
        return unknown("of no completed change is the saving known", PER_MONTH)
    return known(told["usd_per_month"], PER_MONTH)


def _of(name: str, seen: dict[str, Seen], span: Span) -> Seen:
    return seen.get(name) or Seen(name, span)
