"""Wires the cost agent: it watches spend, proposes spot moves and carries approved ones out."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from optiinfra.agents.base.agent import Say
from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.cost.execute import SpotMoves
from optiinfra.agents.cost.experience import with_experience
from optiinfra.agents.cost.graph import Senses, build
from optiinfra.agents.cost.outcome import outcome
from optiinfra.agents.memory import OutcomeMemory
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Hands
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.envelope import Event
from optiinfra.events.facts import ChangeCompleted, ChangeRolledBack, Fact, RecommendationProposed
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.vote import AgentName

_log = structlog.get_logger()


class CostAgent:
    """See `optiinfra.agents.base.agent.Agent`. It proposes and executes; it does not vote."""

    def __init__(
        self,
        senses: Senses,
        hands: Hands,
        telemetry: Telemetry,
        *,
        memory: OutcomeMemory | None = None,
        sense_every_s: float = 30.0,
    ) -> None:
        self._graph = build(senses)
        self._hands = hands
        self._telemetry = telemetry
        self._memory = memory
        self._sense_every_s = sense_every_s
        self._deployments = {(d.tenant, d.id): d for d in senses.deployments}
        self._executor = Executor(self._deployments, hands, SpotMoves(senses.policy))

    @property
    def name(self) -> AgentName:
        return AgentName.COST

    @property
    def capabilities(self) -> tuple[str, ...]:
        return (
            "propose:spot_migration",
            "propose:spot_replacement",
            "execute:spot_migration",
            "execute:spot_replacement",
        )

    @property
    def hears(self) -> tuple[str, ...]:
        return (
            "execution.requested",
            "rollback.requested",
            "change.completed",
            "change.rolled_back",
        )

    @property
    def sense_every_s(self) -> float:
        return self._sense_every_s

    async def sense(self) -> Sequence[Fact]:
        """Spend of every deployment, and what follows from it."""
        facts: list[Fact] = (await self._graph.ainvoke({}))["facts"]
        return [await self._experienced(fact) for fact in facts]

    async def _experienced(self, fact: Fact) -> Fact:
        """What hurries is not held up by a memory that may be slow."""
        if self._memory is None or not isinstance(fact, RecommendationProposed):
            return fact
        if fact.recommendation.urgent_until is not None:
            return fact
        enriched = await with_experience(fact.recommendation, self._memory)
        return RecommendationProposed(recommendation=enriched)

    async def handle(self, event: Event, say: Say) -> Sequence[Fact]:
        """Errors as the protocol says. The time left is counted from the sender's own clock."""
        match event.fact:
            case ExecutionRequested() as command:
                budget_s = (command.deadline - event.time).total_seconds()
                return await self._executor.execute(command, budget_s, say)
            case RollbackRequested() as command:
                budget_s = (command.deadline - event.time).total_seconds()
                return await self._executor.roll_back(command, budget_s)
            case ChangeCompleted(change=change):
                return await self._outcome(change, ChangeState.COMPLETED)
            case ChangeRolledBack(change=change):
                return await self._outcome(change, ChangeState.ROLLED_BACK)
            case _:
                return []

    async def _outcome(self, change: str, terminal: ChangeState) -> Sequence[Fact]:
        found = await outcome(
            change,
            terminal,
            self._hands,
            telemetry=self._telemetry,
            deployments=self._deployments,
        )
        if found is None:
            _log.info("outcome.not_ours", change=change)
            return []
        return [found]
