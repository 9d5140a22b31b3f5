"""An executor over fakes, for tests of what it carries out and takes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from optiinfra.agents.cost.execute import SpotMoves
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Hands
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.facts import (
    ExecutionFailed,
    ExecutionStaged,
    Fact,
    RollbackCompleted,
)
from optiinfra.schemas.deployment import Deployment, Market, Provider, Replica
from optiinfra.schemas.recommendation import Recommendation, SpotMigration, SpotReplacement
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.schemas.vote import AgentName
from tests.cost_stand import (
    DEPLOYMENT,
    POLICY,
    REGION,
    START,
    FakeActuator,
    FakeIntents,
    FakeTraffic,
    Time,
    machine,
    placement,
    pricing,
)
from tests.factories import recommendation

OLD = (machine(1), machine(2))
BUDGET_S = 600.0


@dataclass
class Stand:
    """An executor over fakes; `said` is what it published on the way."""

    replicas: Sequence[Replica] = OLD
    deployment: Deployment = DEPLOYMENT
    said: list[Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.time = Time()
        self.actuator = FakeActuator(self.replicas)
        self.traffic = FakeTraffic(self.replicas)
        self.intents = FakeIntents()
        self.fence = 0
        self.hands = Hands(
            actuators={Provider.AWS: self.actuator},
            traffic=self.traffic,
            intents=self.intents,
            pricing=pricing(self.time),
            drain_timeout_s=POLICY.drain_timeout_s,
            clock=self.time.now,
            monotonic=self.time.monotonic,
            sleep=self.time.sleep,
        )
        self.executor = Executor({("acme", "chat"): self.deployment}, self.hands, SpotMoves(POLICY))

    async def say(self, fact: Fact) -> None:
        self.said.append(fact)

    async def step(
        self,
        share: float,
        kind: StepKind = StepKind.APPLY,
        proposal: Recommendation | None = None,
        **changes: Any,
    ) -> Sequence[Fact]:
        self.fence += 1
        proposal = proposal or migration()
        values: dict[str, Any] = {
            "change": proposal.id,
            "step": Step(kind=kind, stage={0.1: 0, 0.5: 1}.get(share, 2), share=share),
            "fence": self.fence,
            "executor": AgentName.COST,
            "recommendation": proposal,
            "deadline": START,
        }
        command = ExecutionRequested(**{**values, **changes})
        return await self.executor.execute(command, BUDGET_S, self.say)

    async def rollback(
        self, proposal: Recommendation | None = None, **changes: Any
    ) -> Sequence[Fact]:
        self.fence += 1
        proposal = proposal or migration()
        values: dict[str, Any] = {
            "change": proposal.id,
            "fence": self.fence,
            "executor": AgentName.COST,
            "recommendation": proposal,
            "reason": "worse answers",
            "deadline": START,
        }
        return await self.executor.roll_back(RollbackRequested(**{**values, **changes}), BUDGET_S)


def migration(**changes: Any) -> Recommendation:
    spec = SpotMigration(replicas=("chat-1", "chat-2"), to=placement(**changes))
    return recommendation(spec=spec)


def reclaim(seconds: float = 120.0) -> Recommendation:
    to = placement(zone=f"{REGION}c", fallback_market=Market.ON_DEMAND)
    reclaim_at = START + timedelta(seconds=seconds)
    return recommendation(spec=SpotReplacement(replicas=("chat-1",), to=to, reclaim_at=reclaim_at))


def staged(facts: Sequence[Fact]) -> ExecutionStaged:
    assert len(facts) == 1
    assert isinstance(facts[0], ExecutionStaged), facts
    return facts[0]


def failed(facts: Sequence[Fact]) -> str:
    assert len(facts) == 1
    assert isinstance(facts[0], ExecutionFailed), facts
    return facts[0].reason


def undone(facts: Sequence[Fact]) -> RollbackCompleted:
    assert len(facts) == 1
    assert isinstance(facts[0], RollbackCompleted), facts
    return facts[0]
