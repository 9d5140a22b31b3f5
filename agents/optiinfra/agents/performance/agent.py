"""The performance agent: scrapes engines, votes, gates by the latency objectives, and tunes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from optiinfra.agents.base.agent import Clock, Say
from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.collectors.fleet import ReplicaSource
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.performance.assess import Assessment
from optiinfra.agents.performance.gate_policy import GateJudgement
from optiinfra.agents.performance.graph import PerformanceGraphs
from optiinfra.agents.performance.policy import Judgement, PerformancePolicy
from optiinfra.agents.performance.sense import Sensing
from optiinfra.agents.performance.study import Studies
from optiinfra.events.commands import (
    ExecutionRequested,
    GateRequested,
    RollbackRequested,
    VoteRequested,
)
from optiinfra.events.envelope import Event
from optiinfra.events.facts import Fact, GateAnswered, VoteCast
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.rollout import GateAnswer, GateVerdict
from optiinfra.schemas.vote import AgentName, Verdict, Vote
from optiinfra.serving.live import LoadModel

_NEVER_S = 3_600.0
EXECUTES = ("execute:batch_tuning", "execute:kv_cache_tuning", "execute:quantisation")
PROPOSES = ("propose:batch_tuning", "propose:kv_cache_tuning")
_log = structlog.get_logger(__name__)


class PerformanceAgent:
    """Implements `Agent`.

    `models` has the load model of each deployment that has a perf card; without one it abstains.
    Without an `executor` it carries nothing out, without `studies` it proposes nothing.
    """

    name = AgentName.PERFORMANCE

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        replicas: ReplicaSource,
        telemetry: Telemetry,
        scraper: EngineScraper,
        *,
        models: Mapping[str, LoadModel],
        clock: Clock,
        policy: PerformancePolicy | None = None,
        executor: Executor | None = None,
        studies: Studies | None = None,
    ) -> None:
        self._policy = policy or PerformancePolicy()
        self._deployments = deployments
        self._clock = clock
        self._executor = executor
        self._studies = studies
        self._graphs = PerformanceGraphs(
            Sensing(deployments, replicas, scraper, clock),
            Assessment(replicas, telemetry, models, clock, self._policy),
            self._policy,
        )

    @property
    def capabilities(self) -> tuple[str, ...]:
        executes = EXECUTES if self._executor else ()
        proposes = PROPOSES if self._studies else ()
        return ("vote", "gate", "sense:performance", *proposes, *executes)

    @property
    def hears(self) -> tuple[str, ...]:
        commands = ("execution.requested", "rollback.requested") if self._executor else ()
        return ("vote.requested", "gate.requested", *commands)

    @property
    def sense_every_s(self) -> float:
        return self._policy.sense_every_s

    async def sense(self) -> Sequence[Fact]:
        """Readings of every replica, and the gaps that opened or changed."""
        return await self._graphs.sense()

    @property
    def study_every_s(self) -> float:
        return self._studies.every_s if self._studies else _NEVER_S

    async def study(self) -> Sequence[Fact]:
        """Proposals of one round of studies."""
        return await self._studies.round() if self._studies else []

    async def handle(self, event: Event, say: Say) -> Sequence[Fact]:
        """A vote, a gate's answer or a step of an own change, when this agent is asked.

        The time left for a step is counted from the sender's own clock.
        """
        match event.fact:
            case VoteRequested() as asked if self.name in asked.agents:
                return [VoteCast(vote=await self._vote(asked))]
            case GateRequested() as asked if self.name in asked.assessors:
                return [GateAnswered(answer=await self._gate(asked))]
            case ExecutionRequested() as command if self._executor is not None:
                budget_s = (command.deadline - event.time).total_seconds()
                return await self._executor.execute(command, budget_s, say)
            case RollbackRequested() as command if self._executor is not None:
                budget_s = (command.deadline - event.time).total_seconds()
                return await self._executor.roll_back(command, budget_s)
            case _:
                return []

    async def _vote(self, asked: VoteRequested) -> Vote:
        deployment = self._deployments.get(asked.recommendation.deployment)
        if deployment is None:
            reason = f"{asked.recommendation.deployment} is not watched by this agent"
            judgement = Judgement(Verdict.ABSTAIN, (reason,))
        else:
            judgement = await self._graphs.vote(asked, deployment)
        _log.info(
            "vote_cast", change=asked.change, verdict=judgement.verdict, reasons=judgement.reasons
        )
        return Vote(
            change=asked.change,
            agent=self.name,
            round=asked.round,
            verdict=judgement.verdict,
            reasons=judgement.reasons,
            conditions=judgement.conditions,
            evidence=judgement.evidence,
            cast_at=self._clock(),
        )

    async def _gate(self, asked: GateRequested) -> GateAnswer:
        deployment = self._deployments.get(asked.deployment)
        if deployment is None:
            reason = f"{asked.deployment} is not watched by this agent"
            judgement = GateJudgement(GateVerdict.HOLD, (), reason)
        else:
            judgement = await self._graphs.gate(asked, deployment)
        _log.info(
            "gate_answered", change=asked.change, stage=asked.stage, look=asked.look,
            verdict=judgement.verdict, reason=judgement.reason,
        )  # fmt: skip
        return GateAnswer(
            change=asked.change,
            stage=asked.stage,
            look=asked.look,
            assessor=self.name,
            verdict=judgement.verdict,
            metrics=judgement.metrics,
            reason=judgement.reason,
            at=self._clock(),
        )
