"""One valid fact or command for every row of the subject table."""

from __future__ import annotations

from datetime import timedelta

from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.change import ChangeState, ControlVerb
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.money import Interval
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Risk
from optiinfra.schemas.rollout import Arms, SequentialEvidence, Step, StepKind
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.tenant import person
from optiinfra.schemas.vote import VOTERS, AgentName
from tests.factories import AT, gate_answer, recommendation, step_result, vote

PROPOSAL = recommendation()
CHANGE = PROPOSAL.id
LATER = AT + timedelta(minutes=1)
STEP = Step(kind=StepKind.APPLY, stage=0, share=0.1)
APPROVAL = Approval(
    change=CHANGE, granted=True, by=person("ada"), version_hash=PROPOSAL.version_hash, at=AT
)
SAMPLES = (
    Sample(metric="ttft_p95", unit=Unit.SECONDS, reading=Known(value=0.2, error=0.01), at=AT),
    Sample(
        metric="kv_usage",
        unit=Unit.FRACTION,
        reading=Unknown(reason=UnknownReason.MISSING, detail="no such line"),
        at=AT,
        replica="chat-1",
    ),
)
ANSWER = AnswerSample(
    id=derived_id("sample"),
    tenant="acme",
    deployment="chat",
    replica="chat-1",
    unit="session-1",
    prompt="2+2?",
    answer="4",
    ok=True,
    route_version=1,
    at=AT,
)
UNKNOWN = Unknown(reason=UnknownReason.NO_TRAFFIC)
OUTCOME = Outcome(
    change=CHANGE,
    deployment="chat",
    kind="spot_migration",
    terminal=ChangeState.COMPLETED,
    predicted_usd_per_month=Interval(low=1.0, mid=2.0, high=3.0),
    realised_usd_per_month=Known(value=2.1),
    usd_per_hour_before=Known(value=4.0),
    usd_per_hour_after=Known(value=2.0),
    ttft_p95_s=UNKNOWN,
    tpot_p95_s=UNKNOWN,
    quality_mean=UNKNOWN,
    features={"replicas": 2.0},
    at=AT,
)
EVIDENCE = SequentialEvidence(
    pairs=10, e_rollback=30.0, e_promote=0.1, alpha=0.05, beta=0.1, margin=0.05
)


def _measured(family: str) -> f.MetricsMeasured:
    return f.MetricsMeasured.model_validate(
        {"tenant": "acme", "deployment": "chat", "family": family, "samples": SAMPLES}
    )


PAYLOADS: dict[str, f.Fact] = {
    "metrics.performance": _measured("performance"),
    "metrics.resource": _measured("resource"),
    "metrics.cost": _measured("cost"),
    "metrics.quality": _measured("quality"),
    "sample.answer": f.AnswerSampled(sample=ANSWER),
    "telemetry.gap": f.TelemetryGap(
        tenant="acme", deployment="chat", metrics=("ttft",), engine="vllm", detail="gone", at=AT
    ),
    "recommendation.proposed": f.RecommendationProposed(recommendation=PROPOSAL),
    "recommendation.superseded": f.RecommendationSuperseded(
        change=CHANGE, by=derived_id("newer"), reason="cheaper"
    ),
    "recommendation.expired": f.RecommendationExpired(change=CHANGE, reason="nobody answered"),
    "recommendation.snoozed": f.RecommendationSnoozed(
        change=CHANGE, version_hash="0" * 16, by="person:ada", until=LATER, reason="peak", at=AT
    ),
    "recommendation.woken": f.RecommendationWoken(
        change=CHANGE, version_hash="0" * 16, by="person:ada", at=AT
    ),
    "vote.requested": c.VoteRequested(
        change=CHANGE, round=1, agents=tuple(VOTERS), recommendation=PROPOSAL, deadline=LATER
    ),
    "vote.cast": vote(CHANGE, "performance"),
    "approval.requested": f.ApprovalRequested(
        change=CHANGE, version_hash="0" * 16, risk=Risk.LOW, expires_at=LATER
    ),
    "approval.granted": f.ApprovalGranted(approval=APPROVAL),
    "approval.denied": f.ApprovalDenied(approval=APPROVAL),
    "change.opened": f.ChangeOpened(change=CHANGE, deployment="chat", rules_version="1"),
    "change.deferred": f.ChangeDeferred(change=CHANGE, reason="another has the target"),
    "conflict.resolved": f.ConflictResolved(
        change=CHANGE,
        against="e" * 32,
        verdict="waits",
        claim="chat",
        rule="interest",
        reason="the other one goes first",
    ),
    "change.vetoed": f.ChangeVetoed(change=CHANGE, by=("resource",), reasons=("no room",)),
    "change.approved": f.ChangeApproved(change=CHANGE, by="person:ada"),
    "change.rejected": f.ChangeRejected(change=CHANGE, by="person:ada", reason="not now"),
    "change.paused": f.ChangePaused(change=CHANGE, by="person:ada", reason="lunch"),
    "change.resumed": f.ChangeResumed(change=CHANGE, by="person:ada"),
    "change.completed": f.ChangeCompleted(change=CHANGE, arms=Arms(canary=("chat-new",))),
    "change.rolled_back": f.ChangeRolledBack(change=CHANGE, reason="worse answers"),
    "change.failed": f.ChangeFailed(change=CHANGE, reason="not proved"),
    "change.cancelled": f.ChangeCancelled(change=CHANGE, by="person:ada", reason="no"),
    "execution.requested": c.ExecutionRequested(
        change=CHANGE,
        step=STEP,
        fence=1,
        executor=AgentName.COST,
        recommendation=PROPOSAL,
        deadline=LATER,
    ),
    "execution.started": f.ExecutionStarted(
        change=CHANGE, step=STEP, fence=1, executor=AgentName.COST
    ),
    "execution.staged": f.ExecutionStaged(change=CHANGE, result=step_result(STEP, 1)),
    "execution.failed": f.ExecutionFailed(change=CHANGE, step=STEP, fence=1, reason="no capacity"),
    "rollback.requested": c.RollbackRequested(
        change=CHANGE,
        fence=2,
        executor=AgentName.COST,
        recommendation=PROPOSAL,
        reason="gate",
        deadline=LATER,
    ),
    "rollback.completed": f.RollbackCompleted(
        change=CHANGE, fence=2, proved=True, detail="as before"
    ),
    "gate.requested": c.GateRequested(
        change=CHANGE,
        deployment="chat",
        stage=0,
        stages=3,
        look=1,
        assessors=(AgentName.PERFORMANCE,),
        arms=Arms(),
        share=0.1,
        since=AT,
        rollout_since=AT,
        recommendation=PROPOSAL,
        deadline=LATER,
    ),
    "gate.answered": f.GateAnswered(answer=gate_answer(CHANGE, AgentName.APPLICATION, stage=0)),
    "gate.closed": f.GateClosed(change=CHANGE, stage=0, look=1, verdict="pass", reasons=()),
    "quality.assessed": f.QualityAssessed(
        tenant="acme", deployment="chat", scorer="exact", units=3, mean=0.9, stdev=0.1, at=AT
    ),
    "quality.regressed": f.QualityRegressed(change=CHANGE, reason="worse", evidence=EVIDENCE),
    "outcome.recorded": f.OutcomeRecorded(outcome=OUTCOME),
    "agent.registered": f.AgentRegistered(
        tenant="acme", agent="cost", instance="i-1", version="1", capabilities=("spot",), at=AT
    ),
    "agent.lost": f.AgentLost(tenant="acme", agent="cost", instance="i-1", last_seen_at=AT),
    "agent.heartbeat": f.AgentHeartbeat(
        tenant="acme", agent="cost", instance="i-1", version="1", capabilities=(), at=AT
    ),
    "control.requested": c.ControlRequested(change=CHANGE, verb=ControlVerb.PAUSE, by="person:ada"),
    "policy.changed": f.PolicyChanged(
        tenant="acme",
        number=2,
        version="default@0123456789ab",
        previous="default@ba9876543210",
        sha256="0" * 64,
        policy={"name": "default", "max_moving": 1},
        by="file:policy.yaml",
        written_at=LATER,
        at=LATER,
    ),
    "switch.turned": f.SwitchTurned(
        tenant="acme", stopped=True, by="person:ada", reason="incident", at=AT
    ),
    "timer.set": f.TimerSet(change=CHANGE, name=f.TimerName.SOAK, key="0", fire_at=LATER),
    "timer.fired": f.TimerFired(change=CHANGE, name=f.TimerName.SOAK, key="0"),
    "dlq": f.DeadLettered(
        consumer="cost",
        subject="change.opened.acme.x",
        stream="CHANGES",
        stream_seq=7,
        attempts=6,
        error="no",
        cause="ValueError",
        body="{}",
        at=AT,
    ),
}
