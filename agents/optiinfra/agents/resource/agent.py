"""The resource agent: reads machines and offered load, and votes on changes by capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from optiinfra.agents.base.agent import Clock, Say
from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.collectors.fleet import ReplicaSource
from optiinfra.agents.resource.assess import Assessment
from optiinfra.agents.resource.graph import ResourceGraphs
from optiinfra.agents.resource.policy import Judgement, ResourcePolicy
from optiinfra.agents.resource.sense import Machine, Sensing
from optiinfra.events.commands import VoteRequested
from optiinfra.events.envelope import Event
from optiinfra.events.facts import Fact, VoteCast
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.vote import AgentName, Verdict, Vote
from optiinfra.serving.live import LoadModel

_log = structlog.get_logger(__name__)


class ResourceAgent:
    """Implements `Agent`.

    `models` has the load model of each deployment that has a perf card; without one it abstains.
    """

    name = AgentName.RESOURCE
    capabilities: tuple[str, ...] = ("vote", "sense:resource")
    hears: tuple[str, ...] = ("vote.requested",)

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        replicas: ReplicaSource,
        telemetry: Telemetry,
        machine: Machine,
        *,
        models: Mapping[str, LoadModel],
        clock: Clock,
        policy: ResourcePolicy | None = None,
    ) -> None:
        self._policy = policy or ResourcePolicy()
        self._deployments = deployments
        self._clock = clock
        self._graphs = ResourceGraphs(
            Sensing(deployments, replicas, telemetry, machine, clock=clock, policy=self._policy),
            Assessment(replicas, telemetry, models, clock, self._policy),
            self._policy,
        )

    @property
    def sense_every_s(self) -> float:
        return self._policy.sense_every_s

    async def sense(self) -> Sequence[Fact]:
        """Readings of this machine and its GPUs, and the load offered to each deployment."""
        return await self._graphs.sense()

    async def handle(self, event: Event, say: Say) -> Sequence[Fact]:  # noqa: ARG002
        """A vote, when this agent is asked for one."""
        match event.fact:
            case VoteRequested() as asked if self.name in asked.agents:
                return [VoteCast(vote=await self._vote(asked))]
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
            evidence=judgement.evidence,
            cast_at=self._clock(),
        )
