"""The resource agent's graphs: look → load → publish, and observe → ask → judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from optiinfra.agents.resource.assess import Assessment, Observation
from optiinfra.agents.resource.policy import (
    CapacityQuestion,
    FleetAfter,
    Judgement,
    ResourcePolicy,
    vote,
    vote_on_replacement,
    vote_on_tuning,
)
from optiinfra.agents.resource.sense import Sensing
from optiinfra.events.commands import VoteRequested
from optiinfra.events.facts import Fact
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.recommendation import SpotReplacement
from optiinfra.schemas.telemetry import Sample
from optiinfra.schemas.vote import Verdict
from optiinfra.serving.curves import Tuning


class SenseState(TypedDict, total=False):
    machine: Sequence[Sample]
    loads: Mapping[str, Sequence[Sample]]
    facts: list[Fact]


class VoteState(TypedDict, total=False):
    request: VoteRequested
    deployment: Deployment
    seen: Observation
    after: FleetAfter | None
    question: CapacityQuestion
    judgement: Judgement


class ResourceGraphs:
    """Compiled once and without a checkpointer: the event log is the durable state."""

    def __init__(self, sensing: Sensing, assessment: Assessment, policy: ResourcePolicy) -> None:
        self._sensing = sensing
        self._assessment = assessment
        self._policy = policy
        self._sense = self._sense_graph()
        self._vote = self._vote_graph()

    async def sense(self) -> list[Fact]:
        facts: list[Fact] = (await self._sense.ainvoke(SenseState()))["facts"]
        return facts

    async def vote(self, request: VoteRequested, deployment: Deployment) -> Judgement:
        state = VoteState(request=request, deployment=deployment)
        judgement: Judgement = (await self._vote.ainvoke(state))["judgement"]
        return judgement

    def _sense_graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        graph = StateGraph(SenseState)
        graph.add_node("look", self._look)
        graph.add_node("load", self._load)
        graph.add_node("publish", self._publish)
        graph.add_edge(START, "look")
        graph.add_edge("look", "load")
        graph.add_edge("load", "publish")
        graph.add_edge("publish", END)
        return graph.compile(name="resource-sense")

    def _vote_graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        graph = StateGraph(VoteState)
        graph.add_node("observe", self._observe)
        graph.add_node("ask", self._ask)
        graph.add_node("judge", self._judge)
        graph.add_node("settle", self._settle)
        graph.add_edge(START, "observe")
        graph.add_conditional_edges("observe", _needs_forecast, {True: "ask", False: "settle"})
        graph.add_edge("ask", "judge")
        graph.add_edge("judge", END)
        graph.add_edge("settle", END)
        return graph.compile(name="resource-vote")

    async def _look(self, state: SenseState) -> SenseState:  # noqa: ARG002
        return {"machine": await self._sensing.machine()}

    async def _load(self, state: SenseState) -> SenseState:  # noqa: ARG002
        return {"loads": await self._sensing.loads()}

    async def _publish(self, state: SenseState) -> SenseState:
        return {"facts": self._sensing.facts(state["machine"], state["loads"])}

    async def _observe(self, state: VoteState) -> VoteState:
        seen = await self._assessment.observe(state["deployment"])
        after = self._assessment.after(state["request"].recommendation.spec, seen)
        return {"seen": seen, "after": after}

    async def _ask(self, state: VoteState) -> VoteState:
        after = state["after"]
        if after is None:
            return {}
        return {"question": await self._assessment.question(after, state["seen"])}

    async def _judge(self, state: VoteState) -> VoteState:
        return {"judgement": vote(state["question"], self._policy)}

    async def _settle(self, state: VoteState) -> VoteState:
        """What needs no forecast: a replacement, and what is not modelled."""
        spec, after = state["request"].recommendation.spec, state["after"]
        if isinstance(spec, SpotReplacement) and after is not None:
            return {"judgement": vote_on_replacement(after, len(spec.replicas))}
        if isinstance(spec, Tuning):
            return {"judgement": vote_on_tuning(state["request"].recommendation, self._policy)}
        reason = f"the effect of {spec.kind} on capacity is not modelled"
        return {"judgement": Judgement(Verdict.ABSTAIN, (reason,))}


def _needs_forecast(state: VoteState) -> bool:
    urgent = isinstance(state["request"].recommendation.spec, SpotReplacement)
    return state["after"] is not None and not urgent
