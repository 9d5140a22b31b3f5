"""The application agent: scores answers, keeps a baseline, votes, and judges gates by quality."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

import structlog

from optiinfra.agents.application.gate import GateDecision
from optiinfra.agents.application.graph import Graphs
from optiinfra.agents.application.records import (
    QUALITY_BASELINE,
    baseline_sample,
    live_samples,
)
from optiinfra.agents.application.sense import BaselineRun, Senses
from optiinfra.agents.base.agent import Say
from optiinfra.events.commands import GateRequested, VoteRequested
from optiinfra.events.envelope import Event
from optiinfra.events.facts import (
    AnswerSampled,
    Fact,
    GateAnswered,
    MetricsMeasured,
    QualityAssessed,
    QualityRegressed,
    VoteCast,
)
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import GateAnswer
from optiinfra.schemas.telemetry import Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import AgentName, Vote

MOST_ROWS = 1000
"""In one fact, to stay well under the limit of a message."""

log = structlog.get_logger(__name__)


class ApplicationAgent:
    """Watches the quality of the answers. Stateless: all it knows it reads back."""

    def __init__(self, deployments: Sequence[Deployment], senses: Senses) -> None:
        """`deployments` are those it answers for; requests about others are `Rejected`."""
        self._deployments: Mapping[tuple[str, str], Deployment] = {
            (one.tenant, one.id): one for one in deployments
        }
        self._senses = senses
        self._graphs = Graphs(senses)

    @property
    def name(self) -> AgentName:
        return AgentName.APPLICATION

    @property
    def capabilities(self) -> tuple[str, ...]:
        return ("vote", "gate")

    @property
    def hears(self) -> tuple[str, ...]:
        return ("vote.requested", "gate.requested")

    @property
    def sense_every_s(self) -> float:
        return self._senses.policy.baseline_every_s

    async def handle(self, event: Event, say: Say) -> Sequence[Fact]:  # noqa: ARG002 - the contract
        """Votes and gate answers; `Rejected` when the deployment is unknown here."""
        match event.fact:
            case VoteRequested() as request if self.name in request.agents:
                return [await self._vote(request)]
            case GateRequested() as request if self.name in request.assessors:
                return await self._answer(request)
            case _:
                return []

    async def samples_handler(self, events: Sequence[Event]) -> Sequence[Fact]:
        """Scores a batch of tapped answers: facts per deployment, rows in the order of arrival."""
        rows: dict[tuple[str, str], list[Sample]] = defaultdict(list)
        for event in events:
            if isinstance(event.fact, AnswerSampled):
                sample = event.fact.sample
                rows[sample.tenant, sample.deployment] += live_samples(sample)
        return [
            _measured(tenant, deployment, own[first : first + MOST_ROWS])
            for (tenant, deployment), own in rows.items()
            for first in range(0, len(own), MOST_ROWS)
        ]

    async def sense(self) -> Sequence[Fact]:
        """Refreshes the baseline of every deployment that nothing is moving, of all at once."""
        deployments = [
            one for one in self._deployments.values() if await self._senses.are_equals(one)
        ]
        runs = await asyncio.gather(*(self._senses.baseline_run(one) for one in deployments))
        return [
            fact
            for deployment, run in zip(deployments, runs, strict=True)
            for fact in _baseline_facts(deployment, run)
        ]

    async def _vote(self, request: VoteRequested) -> Fact:
        proposal = request.recommendation
        ballot = await self._graphs.vote(proposal, self._deployment(proposal))
        log.info("vote_cast", change=request.change, verdict=ballot.verdict, reasons=ballot.reasons)
        return VoteCast(
            vote=Vote(
                change=request.change,
                agent=self.name,
                round=request.round,
                verdict=ballot.verdict,
                reasons=ballot.reasons,
                conditions=ballot.conditions,
                evidence=ballot.evidence,
                cast_at=self._senses.clock(),
            )
        )

    async def _answer(self, request: GateRequested) -> list[Fact]:
        """The look's own golden rows, the answer, and an alarm when the test itself has crossed."""
        deployment = self._deployment(request.recommendation)
        decision, readings = await self._graphs.gate(request, deployment)
        log.info(
            "gate_answered", change=request.change, stage=request.stage, look=request.look,
            verdict=decision.verdict, reason=decision.reason,
        )  # fmt: skip
        facts: list[Fact] = []
        if readings.fresh:
            facts.append(_measured(deployment.tenant, deployment.id, readings.fresh))
        facts.append(GateAnswered(answer=self._gate_answer(request, decision)))
        if decision.is_regression:
            facts.append(
                QualityRegressed(
                    change=request.change, reason=decision.reason, evidence=decision.quality
                )
            )
        return facts

    def _gate_answer(self, request: GateRequested, decision: GateDecision) -> GateAnswer:
        return GateAnswer(
            change=request.change,
            stage=request.stage,
            look=request.look,
            assessor=self.name,
            verdict=decision.verdict,
            metrics=decision.metrics,
            quality=decision.quality,
            reason=decision.reason,
            at=self._senses.clock(),
        )

    def _deployment(self, proposal: Recommendation) -> Deployment:
        found = self._deployments.get((proposal.tenant, proposal.deployment))
        if found is None:
            raise Rejected(
                f"the application agent knows no deployment {proposal.deployment!r} of tenant "
                f"{proposal.tenant!r}",
                hint="name it in the fleet's configuration",
            )
        return found


def _measured(tenant: str, deployment: str, rows: Sequence[Sample]) -> MetricsMeasured:
    return MetricsMeasured(
        tenant=tenant, deployment=deployment, family="quality", samples=tuple(rows)
    )


def _baseline_facts(deployment: Deployment, run: BaselineRun) -> list[Fact]:
    baseline = run.baseline
    if baseline is None:
        log.warning("baseline_unknown", deployment=deployment.id, reason=run.missing)
        unknown = Sample(
            metric=QUALITY_BASELINE,
            unit=Unit.SCORE,
            reading=Unknown(reason=UnknownReason.UNREACHABLE, detail=run.missing),
            at=run.at,
        )
        return [_measured(deployment.tenant, deployment.id, [*run.rows, unknown])]
    return [
        _measured(deployment.tenant, deployment.id, [*run.rows, baseline_sample(baseline)]),
        QualityAssessed(
            tenant=deployment.tenant,
            deployment=deployment.id,
            scorer=baseline.scorer,
            units=baseline.units,
            mean=baseline.mean,
            stdev=baseline.stdev,
            at=run.at,
        ),
    ]
