"""Makes valid values for tests; each takes only what the test is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from optiinfra.events.envelope import Event
from optiinfra.events.facts import Fact, VoteCast
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import (
    Placement,
    Recommendation,
    Risk,
    RolloutPlan,
    SpotMigration,
    SpotReplacement,
    StagePlan,
)
from optiinfra.schemas.rollout import (
    Arms,
    GateAnswer,
    GateVerdict,
    Step,
    StepResult,
)
from optiinfra.schemas.vote import AgentName, Verdict, Vote

AT = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


def rollout(*shares: float, soak_s: float = 0.0, hold_limit_s: float = 60.0) -> RolloutPlan:
    stages = tuple(
        StagePlan(share=share, soak_s=soak_s, hold_limit_s=hold_limit_s)
        for share in shares or (0.1, 0.5, 1.0)
    )
    return RolloutPlan(stages=stages, look_every_s=0.1)


def recommendation(name: object = "rec", **changes: Any) -> Recommendation:
    values: dict[str, Any] = {
        "id": derived_id("recommendation", name),
        "tenant": "acme",
        "deployment": "chat",
        "proposer": AgentName.COST,
        "title": "Move chat to spot",
        "spec": SpotMigration(
            replicas=("chat-1" if name == "rec" else f"chat-{derived_id('replica', name)[:8]}",),
            to=Placement(
                provider=Provider.AWS,
                instance_type="g5.xlarge",
                region="us-east-1",
                market=Market.SPOT,
            ),
        ),
        "risk": Risk.LOW,
        "rollout": rollout(),
        "rollback_seconds": 5.0,
        "proposed_at": AT,
    }
    return Recommendation(**{**values, **changes})


def replacing(plain: Recommendation, plan: RolloutPlan, reclaim_at: datetime) -> Recommendation:
    """A migration as the replacement of a machine that goes at `reclaim_at`: without any gate."""
    assert isinstance(plain.spec, SpotMigration)
    spec = SpotReplacement(replicas=plain.spec.replicas, to=plain.spec.to, reclaim_at=reclaim_at)
    ungated = plan.model_copy(update={"gates": ()})
    return plain.model_copy(update={"spec": spec, "rollout": ungated})


def vote(change: str, agent: str, verdict: Verdict = Verdict.APPROVE, number: int = 1) -> VoteCast:
    return VoteCast(
        vote=Vote(
            change=change,
            agent=agent,
            round=number,
            verdict=verdict,
            reasons=(f"{agent} says {verdict}",),
            cast_at=AT,
        )
    )


def event(fact: Fact, *, tenant: str = "acme", name: object = None, source: str = "test") -> Event:
    """An event whose id follows from the fact, so that making it again makes a duplicate."""
    return Event(
        id=derived_id("event", fact.model_dump_json(), name),
        source=source,
        tenant=tenant,
        time=AT,
        fact=fact,
    )


def step_result(step: Step, fence: int) -> StepResult:
    return StepResult(
        step=step,
        fence=fence,
        arms=Arms(canary=("chat-new",), baseline=("chat-1",)),
        applied=True,
        at=AT,
    )


def gate_answer(
    change: str,
    assessor: AgentName,
    *,
    stage: int,
    look: int = 1,
    verdict: GateVerdict = GateVerdict.PASS,
) -> GateAnswer:
    return GateAnswer(
        change=change,
        stage=stage,
        look=look,
        assessor=assessor,
        verdict=verdict,
        reason=f"{assessor} says {verdict}",
        at=AT,
    )
