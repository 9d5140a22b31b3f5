"""Beside the loop: staging replicas of the demo's own, and weights that it proposes as a change."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.moving.warm_up import CompletionWarmUp
from optiinfra.agents.performance.replay import Replay
from optiinfra.agents.performance.staging import Staging, StagingPolicy, StagingPorts
from optiinfra.demo.vllm.measure import in_turns, saturating, steady
from optiinfra.demo.vllm.plan import (
    DEPLOYMENT,
    ENVIRONMENT,
    MEASURE_S,
    TENANT,
    Models,
    command,
    engine,
    questions,
)
from optiinfra.events.bus import Bus
from optiinfra.events.facts import RecommendationProposed
from optiinfra.events.publish import Publisher
from optiinfra.runtime.fleet_file import load_fleet
from optiinfra.runtime.plans import rollout
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.recommendation import (
    Placement,
    Precision,
    Quantisation,
    Recommendation,
    Risk,
)
from optiinfra.schemas.tuning import KnobValue, TuningTrial
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.engines import VllmConfig

_HERE = Placement(
    provider=Provider.LOCAL, instance_type="local", region="local", market=Market.ON_DEMAND
)
_READY_S = 600.0
ROUNDS = 8
"""So often two servers serve the replay in turns."""


class Lab:
    """Its staging replicas stand apart from those of the fleet; one at a time."""

    def __init__(self, home: Path, config: Path, executable: Path, models: Models) -> None:
        self._home, self._config = home, config
        self._executable, self._models = executable, models
        self._saturating, self._steady = saturating(questions()), steady(questions())
        self._measured: dict[Path, TuningTrial] = {}

    async def tried(self, knobs: Mapping[str, KnobValue]) -> TuningTrial:
        """A server with `knobs`, under the replay that the demo measures with."""
        return await self._under(self._saturating, knobs)

    async def in_turns(self, both: Sequence[Mapping[str, KnobValue]]) -> list[list[float]]:
        """Tokens/s of servers with these knobs side by side, round by round."""
        async with self._staging() as staging:
            configs = [self._with(knobs) for knobs in both]
            async with staging.side_by_side(configs) as replicas:
                urls = [replica.url for replica in replicas if replica.url is not None]
                return await in_turns(urls, self._saturating, ROUNDS)

    async def proposed(
        self, standing: str, name: str, knobs: Mapping[str, KnobValue], bus_url: str
    ) -> str:
        """Proposes to serve other weights than those that stand, as the performance agent would;
        the change's id."""
        weights: Path = getattr(self._models, name)
        curve = (
            await self._with_weights(getattr(self._models, standing), knobs),
            await self._with_weights(weights, knobs),
        )
        fleet = load_fleet(self._config)
        made = Recommendation(
            id=new_id(),
            tenant=TENANT,
            deployment=DEPLOYMENT,
            proposer=AgentName.PERFORMANCE,
            title=f"Serve the weights in {weights.name}",
            spec=Quantisation(
                from_precision=Precision.BF16, to_precision=Precision.INT8, weights=str(weights)
            ),
            risk=Risk.HIGH,
            risk_reasons=("other weights may answer worse",),
            curve=curve,
            rollout=rollout(fleet),
            rollback_seconds=fleet.timing.drain_timeout_s,
            proposed_at=now(),
        )
        bus = await Bus.connect(bus_url, name="demo")
        try:
            publisher = Publisher(bus, AgentName.PERFORMANCE.value, now, new_id)
            fact = RecommendationProposed(recommendation=made)
            await publisher.publish(publisher.event(fact, tenant=TENANT))
        finally:
            await bus.close()
        return made.id

    async def _with_weights(self, weights: Path, knobs: Mapping[str, KnobValue]) -> TuningTrial:
        """Measured once, under traffic that leaves it room."""
        if weights not in self._measured:
            turned = {**knobs, "model": str(weights)}
            self._measured[weights] = await self._under(self._steady, turned)
        return self._measured[weights]

    async def _under(self, replay: Replay, knobs: Mapping[str, KnobValue]) -> TuningTrial:
        async with self._staging() as staging:
            return await staging.tried(self._with(knobs), dict(knobs), replay, lambda *_: False)

    def _with(self, knobs: Mapping[str, KnobValue]) -> VllmConfig:
        return engine(self._models).model_copy(update=dict(knobs))

    @asynccontextmanager
    async def _staging(self) -> AsyncIterator[Staging]:
        fleet = load_fleet(self._config)
        deployment = fleet.declared("http://127.0.0.1/")[DEPLOYMENT]
        async with httpx.AsyncClient(timeout=60.0, trust_env=False) as http:
            words = EngineCommand(
                tuple(command(self._executable)), env=ENVIRONMENT, engine_version="0.32.0"
            )
            ports = StagingPorts(
                actuator=LocalActuator(
                    self._home / "lab", words, http, clock=now, start_up_s=_READY_S
                ),
                warm_up=CompletionWarmUp(http),
                scraper=EngineScraper(http, now),
                new_id=new_id,
                monotonic=time.monotonic,
            )
            times = StagingPolicy(ready_s=_READY_S, measure_s=MEASURE_S)
            staging = Staging(deployment, _HERE, ports, times)
            try:
                yield staging
            finally:
                await staging.clear()
