"""One round of the cost agent as a graph: look at the fleets, price them, propose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import structlog
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from optiinfra.agents.actuators.port import Actuator
from optiinfra.agents.base.agent import Clock
from optiinfra.agents.base.recent import RecentChanges
from optiinfra.agents.collectors.interruptions import Interruptions, ReclaimNotice
from optiinfra.agents.cost import propose
from optiinfra.agents.cost.policy import (
    CostPolicy,
    Fleet,
    NoProposal,
    machine_kind,
    outdated,
    plan_migration,
    resting,
    spend,
    suppressed,
)
from optiinfra.agents.cost.pricing import Pricing
from optiinfra.agents.cost.sense import Reclaim, Seen, look, matched, spending, waiting_notices
from optiinfra.events.facts import Fact, RecommendationProposed
from optiinfra.schemas.deployment import Deployment, Provider
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.telemetry import Unknown

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Senses:
    """What a round looks at."""

    deployments: Sequence[Deployment]
    actuators: Mapping[Provider, Actuator]
    interruptions: Sequence[Interruptions]
    pricing: Pricing
    recent: RecentChanges
    policy: CostPolicy
    clock: Clock


class Round(TypedDict, total=False):
    """What the nodes hand on; each writes its own keys."""

    seen: list[Seen]
    notices: list[ReclaimNotice]
    fleets: list[Fleet]
    unknown: list[Seen]
    facts: list[Fact]


Compiled = CompiledStateGraph[Round, None, Round, Round]


def build(senses: Senses) -> Compiled:
    """Compiled once and without a checkpointer: the event log is the durable state."""
    nodes = _Nodes(senses)
    graph = StateGraph(Round)
    graph.add_node("sense", nodes.sense)
    graph.add_node("price", nodes.price)
    graph.add_node("propose", nodes.propose)
    graph.add_edge(START, "sense")
    graph.add_edge("sense", "price")
    graph.add_edge("price", "propose")
    graph.add_edge("propose", END)
    return graph.compile()


class _Nodes:
    def __init__(self, senses: Senses) -> None:
        self._senses = senses

    async def sense(self, state: Round) -> Round:  # noqa: ARG002 - the form of a node
        senses = self._senses
        seen = [await look(d, senses.actuators) for d in senses.deployments]
        return {"seen": seen, "notices": await waiting_notices(senses.interruptions)}

    async def price(self, state: Round) -> Round:
        fleets, unknown = [], []
        for view in state["seen"]:
            if isinstance(view.replicas, Unknown):
                unknown.append(view)
                continue
            priced = await self._senses.pricing.priced(view.replicas)
            kinds = {machine_kind(replica) for replica in view.replicas}
            offers = {kind: await self._senses.pricing.offer(kind) for kind in kinds}
            fleets.append(Fleet(view.deployment, priced, offers))
        return {"fleets": fleets, "unknown": unknown}

    async def propose(self, state: Round) -> Round:
        now = self._senses.clock()
        facts: list[Fact] = [
            *(
                spending(view.deployment, view.replicas, now)
                for view in state["unknown"]
                if isinstance(view.replicas, Unknown)
            ),
            *(spending(fleet.deployment, fleet.replicas, now) for fleet in state["fleets"]),
        ]
        reclaims = matched(state["notices"], state["seen"])
        await self._let_go(state, reclaims)
        for fleet in state["fleets"]:
            mine = [r for r in reclaims if r.deployment.id == fleet.deployment.id]
            mine = [r for r in mine if r.deployment.tenant == fleet.deployment.tenant]
            found = await (self._replacement(fleet, mine) if mine else self._migration(fleet))
            if found is not None:
                facts.append(RecommendationProposed(recommendation=found))
        return {"facts": facts}

    async def _migration(self, fleet: Fleet) -> Recommendation | None:
        senses, deployment, now = self._senses, fleet.deployment, self._senses.clock()
        plan = plan_migration(fleet, senses.policy)
        if isinstance(plan, NoProposal):
            _log.info("cost.not_proposed", deployment=deployment.id, reason=plan.reason)
            return None
        recent = await senses.recent.recent(deployment.tenant, deployment.id, "spot_migration")
        reclaims = await senses.recent.recent(deployment.tenant, deployment.id, "spot_replacement")
        held = suppressed(recent, now, senses.policy) or resting(reclaims, now, senses.policy)
        if held is not None:
            _log.info("cost.not_proposed", deployment=deployment.id, reason=held.reason)
            return None
        return propose.migration(
            deployment,
            plan,
            senses.policy,
            recent=recent,
            fleet_size=len(fleet.replicas),
            live=fleet.offers[plan.kind].live,
            shape=senses.pricing.catalogue.shape(plan.kind.instance_type),
            now=now,
        )

    async def _replacement(
        self, fleet: Fleet, reclaims: Sequence[Reclaim]
    ) -> Recommendation | None:
        """Proposed until it is on record; only then are its notices acknowledged."""
        senses, deployment = self._senses, fleet.deployment
        kind = machine_kind(reclaims[0].replica)
        together = [reclaim for reclaim in reclaims if machine_kind(reclaim.replica) == kind]
        replicas = [reclaim.replica for reclaim in together]
        recent = await senses.recent.recent(deployment.tenant, deployment.id, "spot_replacement")
        if propose.replacement_id(deployment, replicas) in {change.id for change in recent}:
            await self._acknowledge([reclaim.notice for reclaim in together])
            return None
        return propose.replacement(
            deployment,
            replicas,
            min(reclaim.notice.reclaim_at for reclaim in together),
            senses.policy,
            offer=fleet.offers.get(kind),
            spend=spend(fleet.replicas),
            now=senses.clock(),
        )

    async def _let_go(self, state: Round, reclaims: Sequence[Reclaim]) -> None:
        """Acknowledges notices of machines that are not (or no longer) ours once they are old."""
        ours = {reclaim.notice.instance_id for reclaim in reclaims}
        now, policy = self._senses.clock(), self._senses.policy
        old = [
            notice
            for notice in state["notices"]
            if notice.instance_id not in ours and outdated(notice.reclaim_at, now, policy)
        ]
        await self._acknowledge(old)

    async def _acknowledge(self, notices: Sequence[ReclaimNotice]) -> None:
        for notice in notices:
            for source in self._senses.interruptions:
                await source.acknowledge(notice)
