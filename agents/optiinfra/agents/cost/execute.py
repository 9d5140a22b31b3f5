"""The moves that the cost agent carries out: replicas to spot, and out of the way of a reclaim."""

from __future__ import annotations

from collections.abc import Sequence

from optiinfra.agents.cost.policy import CostPolicy
from optiinfra.agents.moving.move import Captured, Engines, Move, Reclaim
from optiinfra.schemas.deployment import Replica
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import Recommendation, SpotMigration, SpotReplacement
from optiinfra.schemas.vote import AgentName

_GENERATIONS = 3
"""Spot machines may be taken away before they serve."""


class SpotMoves:
    """Implements `Moves`."""

    executor = AgentName.COST

    def __init__(self, policy: CostPolicy) -> None:
        self._policy = policy

    def refusal(self, recommendation: Recommendation) -> str | None:
        if isinstance(recommendation.spec, SpotMigration | SpotReplacement):
            return None
        return f"the cost agent cannot execute {recommendation.spec.kind}"

    async def engines(
        self,
        recommendation: Recommendation,  # noqa: ARG002
        replicas: Sequence[Replica],  # noqa: ARG002
    ) -> Engines:
        """The engine stays as it is."""
        return {}

    def move(self, captured: Captured) -> Move:
        """Every replica goes to the same place."""
        spec = captured.recommendation.spec
        if not isinstance(spec, SpotMigration | SpotReplacement):
            raise Rejected(f"the cost agent cannot execute {spec.kind}")
        reclaim = None
        if isinstance(spec, SpotReplacement):
            reclaim = Reclaim(spec.reclaim_at, self._policy.reclaim_drain_lead_s)
        to = dict.fromkeys(spec.replicas, spec.to)
        return Move(spec.replicas, to, _GENERATIONS, reclaim=reclaim)
