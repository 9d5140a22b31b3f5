"""The agent's two courses of action as LangGraph graphs, compiled once, without a checkpointer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from optiinfra.agents.application.assess import (
    GateReadings,
    gate_labels,
    gate_sight,
    prompts_asked,
)
from optiinfra.agents.application.gate import GateDecision, GateSight, judge_gate
from optiinfra.agents.application.policy import Ballot, VoteSight, judge_vote
from optiinfra.agents.application.records import ANSWER_OK
from optiinfra.agents.application.sense import Senses
from optiinfra.agents.application.sequential import Arm
from optiinfra.events.commands import GateRequested
from optiinfra.schemas.answers import ANSWER_SCORE
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.telemetry import Sample

ANSWERING_S = 1.0
"""Kept free before a deadline for judging and publishing, s."""


class GateState(TypedDict, total=False):
    """What the gate's nodes hand on."""

    request: GateRequested
    deployment: Deployment
    stored: Sequence[Sample]
    readings: GateReadings
    sight: GateSight
    decision: GateDecision


class VoteState(TypedDict, total=False):
    """What the vote's nodes hand on."""

    proposal: Recommendation
    deployment: Deployment
    sight: VoteSight
    ballot: Ballot


class Graphs:
    """Runs the gate (recall → measure → assess → judge) and the vote (recall → judge)."""

    def __init__(self, senses: Senses) -> None:
        self._senses = senses
        self._gate = self._gate_graph()
        self._vote = self._vote_graph()

    async def gate(
        self, request: GateRequested, deployment: Deployment
    ) -> tuple[GateDecision, GateReadings]:
        """The decision of one look, and what it has read (its golden rows are to be stored)."""
        state = await self._gate.ainvoke(GateState(request=request, deployment=deployment))
        return state["decision"], state["readings"]

    async def vote(self, proposal: Recommendation, deployment: Deployment) -> Ballot:
        """The ballot on a proposal."""
        state = await self._vote.ainvoke(VoteState(proposal=proposal, deployment=deployment))
        ballot: Ballot = state["ballot"]
        return ballot

    def _gate_graph(self) -> Any:
        graph = StateGraph(GateState)
        graph.add_node("recall", self._recall)
        graph.add_node("measure", self._measure)
        graph.add_node("assess", self._assess)
        graph.add_node("judge", self._judge)
        graph.add_edge(START, "recall")
        graph.add_edge("recall", "measure")
        graph.add_edge("measure", "assess")
        graph.add_edge("assess", "judge")
        graph.add_edge("judge", END)
        return graph.compile()

    def _vote_graph(self) -> Any:
        graph = StateGraph(VoteState)
        graph.add_node("recall", self._recall_baseline)
        graph.add_node("judge", self._judge_proposal)
        graph.add_edge(START, "recall")
        graph.add_edge("recall", "judge")
        graph.add_edge("judge", END)
        return graph.compile()

    async def _recall(self, state: GateState) -> GateState:
        """Stored answers of both arms since the rollout began, as far as the policy looks back."""
        request = state["request"]
        furthest = request.since - timedelta(seconds=self._senses.policy.recall_s)
        since = max(request.rollout_since, furthest)
        replicas = (*request.arms.canary, *request.arms.baseline)
        stored = [
            row
            for metric in (ANSWER_SCORE, ANSWER_OK)
            for row in await self._senses.stored(state["deployment"], metric, since, replicas)
        ]
        return GateState(stored=stored)

    async def _measure(self, state: GateState) -> GateState:
        """New golden prompts, put to both arms at once."""
        request, stored, senses = state["request"], state["stored"], self._senses
        until = senses.clock()
        arms = {Arm.BASELINE.name: request.arms.baseline, Arm.CANARY.name: request.arms.canary}
        left_s = (request.deadline - until).total_seconds() - ANSWERING_S
        look = await senses.golden_look(
            state["deployment"],
            await senses.arms(state["deployment"], arms),
            senses.golden.choose(
                request.change, prompts_asked(stored, request), senses.policy.golden_per_look
            ),
            gate_labels(request),
            limit_s=max(0.0, min(senses.policy.golden_limit_s, left_s)),
        )
        readings = GateReadings(until, look.at, stored, look.rows, look.unreached)
        return GateState(readings=readings)

    async def _assess(self, state: GateState) -> GateState:
        sight = gate_sight(self._senses.policy, state["request"], state["readings"])
        return GateState(sight=sight)

    async def _judge(self, state: GateState) -> GateState:
        quality = state["deployment"].quality
        return GateState(decision=judge_gate(self._senses.policy, state["sight"], quality))

    async def _recall_baseline(self, state: VoteState) -> VoteState:
        deployment = state["deployment"]
        baseline, missing = await self._senses.vote_baseline(deployment)
        per_s = await self._senses.scored_per_s(deployment)
        return VoteState(sight=VoteSight(deployment.quality, baseline, missing, per_s))

    async def _judge_proposal(self, state: VoteState) -> VoteState:
        ballot = judge_vote(self._senses.policy, state["proposal"], state["sight"])
        return VoteState(ballot=ballot)
