"""Facts: what has happened, in the past tense; each is the body of one event."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, TypeAdapter

from optiinfra.events.commands import (
    ControlRequested,
    ExecutionRequested,
    GateRequested,
    RollbackRequested,
    VoteRequested,
)
from optiinfra.events.decided import Decided
from optiinfra.events.snoozes import RecommendationSnoozed as RecommendationSnoozed
from optiinfra.events.snoozes import RecommendationWoken as RecommendationWoken
from optiinfra.events.tenant_facts import AgentHeartbeat as AgentHeartbeat
from optiinfra.events.tenant_facts import AgentLost as AgentLost
from optiinfra.events.tenant_facts import AgentRegistered as AgentRegistered
from optiinfra.events.tenant_facts import AgentStatus as AgentStatus
from optiinfra.events.tenant_facts import PolicyChanged as PolicyChanged
from optiinfra.events.tenant_facts import SwitchTurned as SwitchTurned
from optiinfra.events.timers import TimerFired as TimerFired
from optiinfra.events.timers import TimerName as TimerName
from optiinfra.events.timers import TimerSet as TimerSet
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.ids import ChangeId, DeploymentId, TenantId, Token
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rollout import Arms, GateAnswer, SequentialEvidence, Step, StepResult
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Sample
from optiinfra.schemas.vote import AgentName, Vote


class MetricsMeasured(Value):
    """Readings of one collector in one interval; ids come from the envelope."""

    kind: Literal["metrics.measured"] = "metrics.measured"
    tenant: TenantId
    deployment: DeploymentId
    family: Literal["performance", "resource", "cost", "quality"]
    samples: tuple[Sample, ...] = Field(min_length=1)


class AnswerSampled(Value):
    kind: Literal["sample.answer"] = "sample.answer"
    sample: AnswerSample


class TelemetryGap(Value):
    """A metric that a contract promises is missing or renamed; what depends on it is on hold."""

    kind: Literal["telemetry.gap"] = "telemetry.gap"
    tenant: TenantId
    deployment: DeploymentId
    replica: str | None = None
    metrics: tuple[str, ...] = Field(min_length=1)
    engine: str
    engine_version: str | None = None
    detail: str
    at: AwareDatetime


class RecommendationProposed(Value):
    kind: Literal["recommendation.proposed"] = "recommendation.proposed"
    recommendation: Recommendation


class RecommendationSuperseded(Decided):
    kind: Literal["recommendation.superseded"] = "recommendation.superseded"
    change: ChangeId
    by: ChangeId
    reason: str


class RecommendationExpired(Decided):
    kind: Literal["recommendation.expired"] = "recommendation.expired"
    change: ChangeId
    reason: str


class VoteCast(Value):
    kind: Literal["vote.cast"] = "vote.cast"
    vote: Vote


class ApprovalRequested(Decided):
    kind: Literal["approval.requested"] = "approval.requested"
    change: ChangeId
    version_hash: str
    risk: Risk
    expires_at: AwareDatetime
    needed: int = Field(default=1, ge=1)
    """How many different people must say yes."""
    reason: str = ""
    """Why people are asked, in words."""


class ApprovalGranted(Decided):
    kind: Literal["approval.granted"] = "approval.granted"
    approval: Approval


class ApprovalDenied(Value):
    kind: Literal["approval.denied"] = "approval.denied"
    approval: Approval


class ChangeOpened(Value):
    kind: Literal["change.opened"] = "change.opened"
    change: ChangeId
    deployment: DeploymentId
    rules_version: str


class ChangeDeferred(Decided):
    """The change waits for its turn; it is voted on afresh when the turn comes."""

    kind: Literal["change.deferred"] = "change.deferred"
    change: ChangeId
    behind: ChangeId | None = None
    reason: str


class ConflictResolved(Decided):
    """Two changes wanted the same: what became of `change` because of `against`, and by which rule.

    Said of the one that lost; the other one goes on.
    """

    kind: Literal["conflict.resolved"] = "conflict.resolved"
    change: ChangeId
    against: ChangeId
    verdict: Literal["waits", "yields", "superseded", "merged"]
    claim: str
    """The deployment (or the budget) that both wanted."""
    rule: str
    """What decided, in a word: `interest`, `risk`, `saving`, `age`, `urgent`, `patience`, ..."""
    reason: str


class ChangeVetoed(Decided):
    kind: Literal["change.vetoed"] = "change.vetoed"
    change: ChangeId
    by: tuple[Token, ...] = Field(min_length=1)
    reasons: tuple[str, ...] = Field(min_length=1)


class ChangeApproved(Decided):
    kind: Literal["change.approved"] = "change.approved"
    change: ChangeId
    by: str


class ChangeRejected(Decided):
    kind: Literal["change.rejected"] = "change.rejected"
    change: ChangeId
    by: str
    reason: str


class ChangePaused(Decided):
    kind: Literal["change.paused"] = "change.paused"
    change: ChangeId
    by: str
    reason: str


class ChangeResumed(Decided):
    kind: Literal["change.resumed"] = "change.resumed"
    change: ChangeId
    by: str


class ChangeCompleted(Decided):
    kind: Literal["change.completed"] = "change.completed"
    change: ChangeId
    arms: Arms


class ChangeRolledBack(Decided):
    kind: Literal["change.rolled_back"] = "change.rolled_back"
    change: ChangeId
    reason: str


class ChangeFailed(Decided):
    """The target's state could not be proved; a person is needed."""

    kind: Literal["change.failed"] = "change.failed"
    change: ChangeId
    reason: str


class ChangeCancelled(Decided):
    kind: Literal["change.cancelled"] = "change.cancelled"
    change: ChangeId
    by: str
    reason: str


class ExecutionStarted(Value):
    """An executor has written its intent down and begins to act."""

    kind: Literal["execution.started"] = "execution.started"
    change: ChangeId
    step: Step
    fence: int = Field(ge=1)
    executor: AgentName


class ExecutionStaged(Value):
    """A step is in force: the target was read back and shows it."""

    kind: Literal["execution.staged"] = "execution.staged"
    change: ChangeId
    result: StepResult


class ExecutionFailed(Value):
    kind: Literal["execution.failed"] = "execution.failed"
    change: ChangeId
    step: Step
    fence: int = Field(ge=1)
    reason: str


class RollbackCompleted(Value):
    """The target was read back; `proved` says whether it stands as it stood before."""

    kind: Literal["rollback.completed"] = "rollback.completed"
    change: ChangeId
    fence: int = Field(ge=1)
    proved: bool
    detail: str


class GateAnswered(Value):
    kind: Literal["gate.answered"] = "gate.answered"
    answer: GateAnswer


class GateClosed(Decided):
    """The coordinator's reading of one look: all assessors' answers, or their absence."""

    kind: Literal["gate.closed"] = "gate.closed"
    change: ChangeId
    stage: int = Field(ge=0)
    look: int = Field(ge=1)
    verdict: Literal["pass", "hold", "roll_back"]
    reasons: tuple[str, ...]


class QualityAssessed(Value):
    """The stored baseline of a deployment's answers, refreshed."""

    kind: Literal["quality.assessed"] = "quality.assessed"
    tenant: TenantId
    deployment: DeploymentId
    scorer: str
    units: int = Field(ge=0)
    mean: float = Field(ge=0, le=1)
    stdev: float = Field(ge=0)
    at: AwareDatetime


class QualityRegressed(Value):
    """An alarm between two looks: the canary is worse beyond doubt; it is undone at once."""

    kind: Literal["quality.regressed"] = "quality.regressed"
    change: ChangeId
    reason: str
    evidence: SequentialEvidence | None = None


class OutcomeRecorded(Value):
    kind: Literal["outcome.recorded"] = "outcome.recorded"
    outcome: Outcome


class DeadLettered(Value):
    """A message that could not be handled, with its cause."""

    kind: Literal["dead.lettered"] = "dead.lettered"
    consumer: str
    subject: str
    stream: str
    stream_seq: int
    attempts: int
    error: str
    cause: str
    event_id: str | None = None
    body: str
    headers: dict[str, str] | None = None
    """As the message had them; None in letters of older releases, which cannot be sent again."""
    truncated: bool = False
    """The body or the headers were longer than a letter holds."""
    at: AwareDatetime


Fact = Annotated[
    MetricsMeasured
    | AnswerSampled
    | TelemetryGap
    | RecommendationProposed
    | RecommendationSuperseded
    | RecommendationExpired
    | RecommendationSnoozed
    | RecommendationWoken
    | VoteRequested
    | VoteCast
    | ApprovalRequested
    | ApprovalGranted
    | ApprovalDenied
    | ChangeOpened
    | ChangeDeferred
    | ConflictResolved
    | ChangeVetoed
    | ChangeApproved
    | ChangeRejected
    | ChangePaused
    | ChangeResumed
    | ChangeCompleted
    | ChangeRolledBack
    | ChangeFailed
    | ChangeCancelled
    | ExecutionRequested
    | ExecutionStarted
    | ExecutionStaged
    | ExecutionFailed
    | RollbackRequested
    | RollbackCompleted
    | GateRequested
    | GateAnswered
    | GateClosed
    | QualityAssessed
    | QualityRegressed
    | OutcomeRecorded
    | AgentRegistered
    | AgentHeartbeat
    | AgentLost
    | ControlRequested
    | SwitchTurned
    | PolicyChanged
    | TimerSet
    | TimerFired
    | DeadLettered,
    Field(discriminator="kind"),
]
"""Everything that can be said; the tag `kind` is also the CloudEvents type (with a version)."""

FACT: TypeAdapter[Fact] = TypeAdapter(Fact)

TERMINAL_FACTS: dict[str, ChangeState] = {
    "change.completed": ChangeState.COMPLETED,
    "change.rolled_back": ChangeState.ROLLED_BACK,
    "change.vetoed": ChangeState.VETOED,
    "change.rejected": ChangeState.REJECTED,
    "change.failed": ChangeState.FAILED,
    "change.cancelled": ChangeState.CANCELLED,
    "recommendation.expired": ChangeState.EXPIRED,
    "recommendation.superseded": ChangeState.SUPERSEDED,
}
"""Exactly one of these ends every change."""


def change_of(fact: Fact) -> ChangeId | None:
    """The change that a fact belongs to, or None when it belongs to none."""
    match fact:
        case RecommendationProposed():
            return fact.recommendation.id
        case VoteCast():
            return fact.vote.change
        case ApprovalGranted() | ApprovalDenied():
            return fact.approval.change
        case GateAnswered():
            return fact.answer.change
        case OutcomeRecorded():
            return fact.outcome.change
        case _:
            found = getattr(fact, "change", None)
            return found if isinstance(found, str) else None
