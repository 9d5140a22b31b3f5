"""The moves that the performance agent carries out: replicas to engines with other knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optiinfra.agents.actuators.port import Configurable
from optiinfra.agents.moving.move import Captured, Engines, Move
from optiinfra.agents.performance.tuning import tuned
from optiinfra.schemas.deployment import Deployment, Provider, Replica
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import DeploymentId
from optiinfra.schemas.recommendation import Placement, Recommendation
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.curves import Tuning
from optiinfra.serving.engines import EngineConfig

_GENERATIONS = 1
"""An engine that ends with the new knobs is a reason to go back, not to try again."""


class EngineMoves:
    """Implements `Moves`.

    What a replica runs with now is what it was launched with; for one that was launched without a
    configuration it is what `declared` says of its deployment.
    """

    executor = AgentName.PERFORMANCE

    def __init__(
        self,
        deployments: Mapping[DeploymentId, Deployment],
        configurable: Mapping[Provider, Configurable],
        declared: Mapping[DeploymentId, EngineConfig],
    ) -> None:
        self._deployments = deployments
        self._configurable = configurable
        self._declared = declared

    def refusal(self, recommendation: Recommendation) -> str | None:
        if isinstance(recommendation.spec, Tuning):
            return None
        return f"the performance agent cannot execute {recommendation.spec.kind}"

    async def engines(self, recommendation: Recommendation, replicas: Sequence[Replica]) -> Engines:
        """Each with the knobs that it has now but those that are tuned."""
        spec = recommendation.spec
        if not isinstance(spec, Tuning):
            raise Rejected(f"the performance agent cannot execute {spec.kind}")
        if not replicas:
            raise Rejected("no replica is routed", hint="route one first")
        return {one.id: await self._tuned(recommendation, one, spec) for one in replicas}

    async def _tuned(
        self, recommendation: Recommendation, replica: Replica, spec: Tuning
    ) -> EngineConfig:
        tenant, deployment = recommendation.tenant, recommendation.deployment
        provider = replica.instance.provider
        actuator = self._configurable.get(provider)
        if actuator is None:
            raise Rejected(
                f"{replica.id} is on {provider}, where no engine is launched with a configuration",
                hint="change its start-up script yourself",
            )
        now = await actuator.engine(tenant, deployment, replica.id)
        now = now or self._declared.get(deployment)
        if now is None:
            raise Rejected(
                f"nothing says what the engine of {replica.id} was started with",
                hint=f"name its engine_file in the fleet file, under {deployment}",
            )
        then = tuned(now, spec)
        actuator.require_launchable(self._deployments[deployment].model, then)
        return then

    def move(self, captured: Captured) -> Move:
        """Each successor is bought as the replica was."""
        replaced = [one for one in captured.replicas if one.id in captured.engines]
        to = {one.id: placement_of(one) for one in replaced}
        return Move(tuple(to), to, _GENERATIONS, engines=captured.engines)


def placement_of(replica: Replica) -> Placement:
    instance = replica.instance
    return Placement(
        provider=instance.provider,
        instance_type=instance.instance_type,
        region=instance.region,
        zone=instance.zone,
        market=instance.market,
    )
