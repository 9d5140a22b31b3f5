"""A recommendation's card: all that a person decides on, in the order in which it is read."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures.configuration import configuration_diff
from optiinfra.portal_api.figures.seen import Seen, emulated_in
from optiinfra.portal_api.measures import SCRAPES, SPEND
from optiinfra.portal_api.views import ApprovalView
from optiinfra.schemas.approval import Snooze
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.money import HOURS_PER_MONTH, Interval, PriceSource
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.telemetry import Reading
from optiinfra.schemas.tuning import TuningTrial
from optiinfra.schemas.vote import Evidence, Verdict, Vote

_DISSENT = {Verdict.REJECT: 0, Verdict.ABSTAIN: 1, Verdict.APPROVE: 2}
METRICS = (SPEND, SCRAPES)
"""What this reads of the replicas."""
CONFIRMED_FROM = Risk.HIGH
"""From this risk on the target's name is typed."""


class Header(BaseModel):
    title: str
    deployment: str
    kind: str
    proposer: str
    proposed_at: AwareDatetime
    age_s: float
    expires_at: AwareDatetime | None
    urgent_until: AwareDatetime | None
    version_hash: str


class TrackRecord(BaseModel):
    """How completed changes of this kind turned out; sums are over those with both numbers."""

    kind: str
    finished: int
    known: int
    predicted_usd_per_month: float | None
    realised_usd_per_month: float | None
    within: int = Field(description="realised within the predicted range")
    deployments: list[str] = Field(description="on which they were")


class Money(BaseModel):
    """The range is never above what is spent now."""

    saving_usd_per_month: Interval | None
    spend_usd_per_hour: float | None
    spend_usd_per_month: float | None
    price_source: PriceSource | None
    track_record: TrackRecord


class RiskView(BaseModel):
    level: Risk
    reasons: list[str]


class StageExposure(BaseModel):
    share: float
    exposure_s: float = Field(description="share of traffic × rollback seconds")


class BlastRadius(BaseModel):
    model: str | None
    replicas: list[str]
    stages: list[StageExposure]
    exposure_s: float = Field(description="of the widest stage")


class Similar(BaseModel):
    """A finished change of the same kind."""

    id: str
    title: str | None
    deployment: str
    terminal: ChangeState
    predicted_usd_per_month: Interval | None
    realised_usd_per_month: Reading
    at: AwareDatetime


class EvidenceView(BaseModel):
    rows: list[Evidence]
    curve: list[TuningTrial]
    similar: list[Similar]


class ChangedValue(BaseModel):
    """`before` is null where the proposal does not tell it."""

    name: str
    before: Any
    after: Any


class ChangeValues(BaseModel):
    values: list[ChangedValue]
    spec: dict[str, Any]
    diff: str = Field(
        description="unified diff of the whole configuration; what is not known says `unknown`"
    )


class PlannedStage(BaseModel):
    share: float
    soak_s: float
    hold_limit_s: float


class Rollout(BaseModel):
    stages: list[PlannedStage]
    gates: list[str] = Field(description="who is asked at the end of each stage")
    look_every_s: float
    apply_timeout_s: float


class Rollback(BaseModel):
    seconds: float
    cannot_be_undone: list[str]


class DecisionView(BaseModel):
    """`type_to_confirm` is what a person types where the risk is high; `reason` says why nothing
    can be decided now."""

    awaited: bool
    asked_because: str | None = Field(description="why a person is asked; null: nobody is")
    approvals: list[ApprovalView]
    approvals_needed: int
    approvals_left: int
    type_to_confirm: str | None
    reason: str | None
    snoozed: Snooze | None = Field(description="who has put it off; it is not approved meanwhile")


class CardView(BaseModel):
    model_config = shown_as("card")

    id: str
    state: ChangeState
    header: Header
    money: Money
    risk: RiskView
    blast_radius: BlastRadius
    votes: list[Vote] = Field(description="dissent first")
    evidence: EvidenceView
    change: ChangeValues
    rollout: Rollout
    rollback: Rollback
    decision: DecisionView
    simulated: list[str] | None = Field(
        description="deployments of the fleet that run on emulated replicas: all their figures are"
        " simulated; null where telemetry cannot be read"
    )
    unknown: dict[str, str] = Field(description="what is null above, and why")


def card(told: Any, seen: dict[str, Seen] | None) -> CardView:
    """Out of what the database tells of a recommendation, and telemetry (None: unreadable)."""
    proposal = Recommendation.model_validate(told["recommendation"])
    declared = told["deployment"]
    deployment = None if declared is None else Deployment.model_validate(declared)
    model = None if deployment is None else deployment.model
    replicas = None if seen is None else seen.get(proposal.deployment)
    values = _values(proposal)
    return CardView(
        id=told["id"],
        state=told["state"],
        header=_header(proposal, told),
        money=_money(proposal, told),
        risk=RiskView(level=proposal.risk, reasons=list(proposal.risk_reasons)),
        blast_radius=_blast(proposal, model),
        votes=_dissent_first(told["votes"]),
        evidence=EvidenceView(
            rows=list(proposal.evidence),
            curve=list(proposal.curve),
            similar=[Similar.model_validate(one) for one in told["similar"]],
        ),
        change=ChangeValues(
            values=values,
            spec=proposal.spec.model_dump(mode="json"),
            diff=configuration_diff(proposal, deployment, replicas),
        ),
        rollout=Rollout(
            stages=[PlannedStage(**stage.model_dump()) for stage in proposal.rollout.stages],
            gates=[gate.value for gate in proposal.rollout.gates],
            look_every_s=proposal.rollout.look_every_s,
            apply_timeout_s=proposal.rollout.apply_timeout_s,
        ),
        rollback=Rollback(
            seconds=proposal.rollback_seconds,
            cannot_be_undone=list(proposal.cannot_be_undone),
        ),
        decision=_decision(proposal, told),
        simulated=None if seen is None else emulated_in(seen),
        unknown=_unknown(proposal, told, model, values)
        | ({"simulated": "telemetry cannot be read now"} if seen is None else {}),
    )


def _header(proposal: Recommendation, told: Any) -> Header:
    age = datetime.fromisoformat(told["now"]) - proposal.proposed_at
    return Header(
        title=proposal.title,
        deployment=proposal.deployment,
        kind=proposal.spec.kind,
        proposer=proposal.proposer.value,
        proposed_at=proposal.proposed_at,
        age_s=max(age, timedelta()).total_seconds(),
        expires_at=(told["asked"] or {}).get("expires_at"),
        urgent_until=proposal.urgent_until,
        version_hash=told["version_hash"],
    )


def _money(proposal: Recommendation, told: Any) -> Money:
    spend = proposal.spend_usd_per_hour
    return Money(
        saving_usd_per_month=proposal.saving_usd_per_month,
        spend_usd_per_hour=spend,
        spend_usd_per_month=None if spend is None else spend * HOURS_PER_MONTH,
        price_source=proposal.price_source,
        track_record=TrackRecord(kind=proposal.spec.kind, **told["record"]),
    )


def _blast(proposal: Recommendation, model: str | None) -> BlastRadius:
    stages = [
        StageExposure(share=stage.share, exposure_s=stage.share * proposal.rollback_seconds)
        for stage in proposal.rollout.stages
    ]
    return BlastRadius(
        model=model,
        replicas=list(getattr(proposal.spec, "replicas", ())),
        stages=stages,
        exposure_s=max(stage.exposure_s for stage in stages),
    )


def _dissent_first(told: Any) -> list[Vote]:
    """Within a verdict the newest round comes first."""
    votes = [Vote.model_validate(one) for one in told]
    return sorted(votes, key=lambda vote: (_DISSENT[vote.verdict], -vote.round, vote.agent))


def _values(proposal: Recommendation) -> list[ChangedValue]:
    """What the change sets; before is what the proposal itself tells of the present."""
    spec = proposal.spec.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
    present = proposal.curve[0].knobs if proposal.curve else {}
    before = {name.removeprefix("from_"): spec[name] for name in spec if name.startswith("from_")}
    return [
        ChangedValue(
            name=(plain := name.removeprefix("to_")),
            before=before.get(plain, present.get(plain)),
            after=after,
        )
        for name, after in spec.items()
        if not name.startswith("from_")
    ]


def _decision(proposal: Recommendation, told: Any) -> DecisionView:
    approvals = [ApprovalView.model_validate(one) for one in told["approvals"]]
    people = {
        one.by
        for one in approvals
        if one.granted and one.version_hash == told["version_hash"] and one.by[:7] == "person:"
    }
    awaited = told["state"] == ChangeState.AWAITING_APPROVAL
    needed = told["approvals_needed"]
    return DecisionView(
        awaited=awaited,
        asked_because=told["asked"]["reason"] if awaited else None,
        approvals=approvals,
        approvals_needed=needed,
        approvals_left=max(0, needed - len(people)) if awaited else 0,
        type_to_confirm=(
            proposal.deployment if proposal.risk.rank >= CONFIRMED_FROM.rank else None
        ),
        reason=None if awaited else _why_not(told),
        snoozed=told["snoozed"],
    )


def _why_not(told: Any) -> str:
    said = told["end_reason"] or told["waiting"]
    return f"it is {told['state']}: {said}" if said else f"it is {told['state']}"


def _unknown(
    proposal: Recommendation, told: Any, model: str | None, values: list[ChangedValue]
) -> dict[str, str]:
    record = told["record"]
    reasons = {
        "header.expires_at": (told["asked"], "no person has been asked"),
        "money.saving_usd_per_month": (
            proposal.saving_usd_per_month, "the proposer gave no forecast",
        ),
        "money.spend_usd_per_hour": (
            proposal.spend_usd_per_hour, "the proposer did not know what is spent",
        ),
        "money.price_source": (proposal.price_source, "the proposer named none"),
        "money.track_record": (
            record["known"] or None,
            "of no completed change of this kind both forecast and saving are known",
        ),
        "blast_radius.model": (model, "the deployment is not declared any more"),
    }  # fmt: skip
    found = {name: why for name, (value, why) in reasons.items() if value is None}
    if any(one.before is None for one in values):
        found["change.values.before"] = "the proposal tells what it sets, not what is set now"
    return found
