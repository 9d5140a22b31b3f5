"""What the API shows: one model for each answer, and how a row becomes it.

What `storage.postgres.documents` writes as JSON has these shapes too, without passing through them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.schemas.approval import Snooze
from optiinfra.schemas.change import ChangeState, Phase
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rollout import Arms, GateAnswer, Step, StepKind
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.vote import Vote
from optiinfra.storage.postgres.letters import LetterState
from optiinfra.storage.postgres.queries import Row


class AgentView(BaseModel):
    agent: str
    instance: str
    version: str
    capabilities: list[str]
    status: str
    busy_with: str | None
    handled: int
    failed: int
    registered_at: AwareDatetime
    last_seen_at: AwareDatetime
    silent_s: float


class DeploymentView(BaseModel):
    id: str
    deployment: Deployment
    updated_at: AwareDatetime


class ApprovalView(BaseModel):
    granted: bool
    by: str
    version_hash: str
    reason: str
    at: AwareDatetime


class RecommendationView(BaseModel):
    id: str
    state: ChangeState
    version_hash: str
    recommendation: Recommendation
    proposed_at: AwareDatetime
    updated_at: AwareDatetime
    snoozed: Snooze | None
    """Who has put it off, while it sleeps."""


class RecommendationDetail(RecommendationView):
    votes: list[Vote]
    approvals: list[ApprovalView]
    approvals_needed: int
    """How many different people must say yes, once people are asked."""


class ChangeView(BaseModel):
    id: str
    deployment: str | None
    title: str
    kind: str
    risk: Risk
    proposer: str
    state: ChangeState
    phase: Phase | None
    step: Step | None
    paused_by: str | None
    waiting: str | None
    rollback_reason: str | None
    end_reason: str | None
    version: int
    opened_at: AwareDatetime
    updated_at: AwareDatetime


class EventView(BaseModel):
    """One event of the log; `position` orders the tenant's log, `version` that of the change."""

    position: int
    id: str
    kind: str
    chain: str
    version: int
    source: str
    at: AwareDatetime
    said_at: AwareDatetime
    correlation: str | None
    causation: str | None
    hash: str
    fact: dict[str, Any]


class RelatedView(EventView):
    """An event in a tree of causes; `depth` is 0 at its middle, and its parent is `causation`."""

    depth: int


class CausesView(BaseModel):
    """An event among what caused it (depth below 0) and what it led to (above 0)."""

    items: list[RelatedView]
    causes_cut: bool
    """The chain of causes goes on further up."""
    effects_cut: bool
    """There may be more effects than were looked at."""


class LookView(BaseModel):
    """One look at a stage: what the assessors answered, and how it was read."""

    look: int
    verdict: Literal["pass", "hold", "roll_back"] | None
    reasons: list[str]
    answers: list[GateAnswer]
    asked_at: AwareDatetime | None
    closed_at: AwareDatetime | None


class StageView(BaseModel):
    stage: int
    share: float
    soak_s: float
    status: Literal["pending", "applying", "in_force", "passed", "failed"]
    requested_at: AwareDatetime | None = None
    in_force_at: AwareDatetime | None = None
    looks: list[LookView] = Field(default_factory=list)


class ExecutionView(BaseModel):
    kind: StepKind
    stage: int
    attempt: int
    fence: int
    result: dict[str, Any] | None
    begun_at: AwareDatetime
    finished_at: AwareDatetime | None


class ChangeDetail(ChangeView):
    round: int
    look: int
    arms: Arms
    recommendation: Recommendation
    version_hash: str
    votes: list[Vote]
    approvals: list[ApprovalView]
    approvals_needed: int
    """How many different people must say yes, once people are asked."""
    stages: list[StageView]
    executions: list[ExecutionView]
    timeline: list[EventView]


ConflictVerdict = Literal["waits", "yields", "superseded", "merged"]


class PartyView(BaseModel):
    """A change as its conflicts show it; what is not known of it is absent."""

    id: str
    title: str | None
    deployment: str | None
    state: ChangeState | None


class ConflictView(BaseModel):
    """What became of `change` because of `against`, which goes on, and what decided."""

    position: int
    id: str
    at: AwareDatetime
    change: PartyView
    against: PartyView
    verdict: ConflictVerdict
    claim: str
    """The deployment (or the budget) that both wanted."""
    rule: str
    """What decided, in a word, as `interest`, `risk`, `saving`, `age`."""
    reason: str
    rules_version: str | None
    """Under which policy, as `<name>@<hash>`."""


class SwitchView(BaseModel):
    """The stop switch; `by`, `reason` and `at` are absent when it was never turned."""

    stopped: bool
    by: str | None = None
    reason: str | None = None
    at: AwareDatetime | None = None


class AuditView(BaseModel):
    position: int
    at: AwareDatetime
    actor: str
    action: str
    target: str
    allowed: bool
    detail: dict[str, Any]


class LetterView(BaseModel):
    """A message that could not be handled; `number` orders the letters."""

    number: int
    id: str
    state: LetterState
    dealt_by: str | None
    reason: str | None
    consumer: str
    subject: str
    stream: str
    stream_seq: int
    attempts: int
    error: str
    cause: str
    event_id: str | None
    truncated: bool
    at: AwareDatetime


class LetterDetail(LetterView):
    body: str
    """As text; what is no text, as `base64:`."""
    headers: dict[str, str] | None


class DealtView(BaseModel):
    """What was done with a letter; `sequence` is that of the message that was sent just now."""

    number: int
    state: LetterState
    dealt_by: str
    reason: str
    at: AwareDatetime
    repeated: bool = Field(description="the same request had done it before")
    sequence: int | None


class BreakView(BaseModel):
    chain: str
    version: int
    event_id: str
    what: str
    position: int


class VerificationView(BaseModel):
    ok: bool
    chains: int
    events: int
    breaks: list[BreakView]


class AcceptedView(BaseModel):
    """A wish is written down and will be said to the coordinator."""

    event_id: str
    at: AwareDatetime
    repeated: bool = Field(description="the same request had been accepted before")


class SessionView(BaseModel):
    token: str
    tenant: str
    name: str
    role: Role
    expires_in_s: float


class LinkView(BaseModel):
    """Whoever opens it is signed in as the one who asked: show it to nobody else."""

    url: str
    expires_in_s: float


class MeView(BaseModel):
    tenant: str
    name: str
    role: Role
    expires_at: AwareDatetime | None


class TicketView(BaseModel):
    """Pass it as the sub-protocol `ticket.<ticket>` beside `optiinfra.v1`."""

    ticket: str
    expires_in_s: float


class HealthView(BaseModel):
    status: Literal["ok", "unavailable"]
    checks: dict[str, str] = Field(default_factory=dict)


def deployment_view(row: Row) -> DeploymentView:
    return DeploymentView(
        id=row["id"],
        deployment=Deployment.model_validate(row["body"]),
        updated_at=row["updated_at"],
    )


def audit_view(row: Row) -> AuditView:
    return AuditView.model_validate({name: row[name] for name in AuditView.model_fields})
