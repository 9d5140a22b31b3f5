"""The performance agent's graphs: scrape → publish, observe → ask → judge, look → judge."""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from optiinfra.agents.performance.assess import Assessment, Observation
from optiinfra.agents.performance.gate_policy import GateJudgement, GateQuestion, gate
from optiinfra.agents.performance.policy import (
    Judgement,
    PerformancePolicy,
    ReplacementQuestion,
    VoteQuestion,
    vote,
    vote_on_replacement,
)
from optiinfra.agents.performance.sense import Round, Sensing
from optiinfra.agents.performance.tuning_policy import vote_on_tuning
from optiinfra.events.commands import GateRequested, VoteRequested
from optiinfra.events.facts import Fact
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.vote import Verdict
from optiinfra.serving.curves import Tuning


class SenseState(TypedDict, total=False):
    rounds: list[Round]
    facts: list[Fact]


class VoteState(TypedDict, total=False):
    request: VoteRequested
    deployment: Deployment
    seen: Observation
    question: VoteQuestion | ReplacementQuestion | None
    judgement: Judgement


class GateState(TypedDict, total=False):
    request: GateRequested
    deployment: Deployment
    question: GateQuestion
    judgement: GateJudgement


class PerformanceGraphs:
    """Compiled once and without a checkpointer: the event log is the durable state."""

    def __init__(self, sensing: Sensing, assessment: Assessment, policy: PerformancePolicy) -> None:
        self._sensing = sensing
        self._assessment = assessment
        self._policy = policy
        self._sense = self._sense_graph()
        self._vote = self._vote_graph()
        self._gate = self._gate_graph()

    async def sense(self) -> list[Fact]:
        facts: list[Fact] = (await self._sense.ainvoke(SenseState()))["facts"]
        return facts

    async def vote(self, request: VoteRequested, deployment: Deployment) -> Judgement:
        state = VoteState(request=request, deployment=deployment)
        judgement: Judgement = (await self._vote.ainvoke(state))["judgement"]
        return judgement

    async def gate(self, request: GateRequested, deployment: Deployment) -> GateJudgement:
        state = GateState(request=request, deployment=deployment)
        judgement: GateJudgement = (await self._gate.ainvoke(state))["judgement"]
        return judgement

    def _sense_graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        graph = StateGraph(SenseState)
        graph.add_node("scrape", self._scrape)
        graph.add_node("publish", self._publish)
        graph.add_edge(START, "scrape")
        graph.add_edge("scrape", "publish")
        graph.add_edge("publish", END)
        return graph.compile(name="performance-sense")

    def _vote_graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        graph = StateGraph(VoteState)
        graph.add_node("observe", self._observe)
        graph.add_node("ask", self._ask)
        graph.add_node("judge", self._judge)
        graph.add_edge(START, "observe")
        graph.add_edge("observe", "ask")
        graph.add_edge("ask", "judge")
        graph.add_edge("judge", END)
        return graph.compile(name="performance-vote")

    def _gate_graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        graph = StateGraph(GateState)
        graph.add_node("look", self._look)
        graph.add_node("judge", self._judge_gate)
        graph.add_edge(START, "look")
        graph.add_edge("look", "judge")
        graph.add_edge("judge", END)
        return graph.compile(name="performance-gate")

    async def _scrape(self, state: SenseState) -> SenseState:  # noqa: ARG002
        return {"rounds": list(await self._sensing.scrape())}

    async def _publish(self, state: SenseState) -> SenseState:
        return {"facts": self._sensing.facts(state["rounds"])}

    async def _observe(self, state: VoteState) -> VoteState:
        return {"seen": await self._assessment.observe(state["deployment"])}

    async def _ask(self, state: VoteState) -> VoteState:
        return {"question": await self._assessment.question(state["request"], state["seen"])}

    async def _judge(self, state: VoteState) -> VoteState:
        match state["question"]:
            case VoteQuestion() as question:
                return {"judgement": vote(question, self._policy)}
            case ReplacementQuestion() as question:
                return {"judgement": vote_on_replacement(question)}
            case _:
                return {"judgement": self._unmodelled(state)}

    def _unmodelled(self, state: VoteState) -> Judgement:
        """What no model tells, a staging replica may have shown."""
        proposal = state["request"].recommendation
        if isinstance(proposal.spec, Tuning):
            return vote_on_tuning(proposal, state["deployment"].slo)
        reason = f"the effect of {proposal.spec.kind} on latency is not modelled"
        return Judgement(Verdict.ABSTAIN, (reason,))

    async def _look(self, state: GateState) -> GateState:
        question = await self._assessment.gate_question(state["request"], state["deployment"])
        return {"question": question}

    async def _judge_gate(self, state: GateState) -> GateState:
        return {"judgement": gate(state["question"], self._policy)}
