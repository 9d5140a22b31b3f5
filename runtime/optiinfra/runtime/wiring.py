"""Where ports meet adapters: makes each role's objects from the fleet file and the stores."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import structlog

from optiinfra.agents.actuators.port import Traffic
from optiinfra.agents.application.agent import ApplicationAgent
from optiinfra.agents.application.golden import GoldenRunner, load_golden
from optiinfra.agents.application.policy import ApplicationPolicy
from optiinfra.agents.application.sense import Senses as ApplicationSenses
from optiinfra.agents.base.agent import Agent
from optiinfra.agents.base.host import AgentHost, Identity, Ports
from optiinfra.agents.collectors.host import HostCollector
from optiinfra.agents.collectors.nvml import GpuCollector
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.cost.agent import CostAgent
from optiinfra.agents.cost.graph import Senses as CostSenses
from optiinfra.agents.cost.policy import CostPolicy
from optiinfra.agents.cost.pricing import Pricing
from optiinfra.agents.memory import OutcomeMemory
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Hands
from optiinfra.agents.moving.warm_up import CompletionWarmUp, WarmUp
from optiinfra.agents.performance.agent import PerformanceAgent
from optiinfra.agents.performance.execute import EngineMoves
from optiinfra.agents.performance.policy import PerformancePolicy
from optiinfra.agents.resource.agent import ResourceAgent
from optiinfra.agents.resource.forecast import ForecastPolicy
from optiinfra.agents.resource.policy import ResourcePolicy
from optiinfra.agents.resource.sense import Machine
from optiinfra.events.bus_roles import BusRole
from optiinfra.runtime.clouds import (
    Clouds,
    SplitTraffic,
    WholeFleet,
    connect_clouds,
    http_client,
)
from optiinfra.runtime.engine_file import declared_engines
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.plans import RecentChangesInPostgres, RolloutsInPostgres, rollout
from optiinfra.runtime.stores import Stores, instance_name, jitter, new_id, now, version
from optiinfra.runtime.tuning import studies
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.cards import load_card
from optiinfra.serving.live import CardModel, LoadModel
from optiinfra.serving.prices import Catalogue
from optiinfra.storage.postgres.executions import ExecutionLog
from optiinfra.storage.postgres.inbox import PostgresInbox
from optiinfra.storage.postgres.vouching import CommandsInLog

log = structlog.get_logger()


class Wiring:
    """Makes roles; what it opens is closed with `stack`."""

    def __init__(
        self,
        fleet: Fleet,
        stores: Stores,
        stack: AsyncExitStack,
        *,
        state_dir: Path,
        gateway_url: str,
        traffic: Traffic,
        memory: OutcomeMemory | None = None,
        time_scale: float = 1.0,
    ) -> None:
        self._fleet = fleet
        self._memory = memory
        self._stores = stores
        self._stack = stack
        self._state_dir = state_dir
        self._traffic = traffic
        self._time_scale = time_scale
        self.deployments = fleet.declared(gateway_url)
        self._clouds: Clouds | None = None

    async def clouds(self) -> Clouds:
        """The clouds' adapters, made once."""
        if self._clouds is None:
            self._clouds = await connect_clouds(self._fleet, self._stack, self._state_dir)
        return self._clouds

    async def host(self, name: AgentName) -> AgentHost:
        """The agent `name`, ready to run on the bus."""
        makers: dict[AgentName, Callable[[], Awaitable[Agent]]] = {
            AgentName.COST: self._cost,
            AgentName.PERFORMANCE: self._performance,
            AgentName.RESOURCE: self._resource,
            AgentName.APPLICATION: self._application,
        }
        agent = await makers[name]()
        identity = Identity(self._fleet.tenant, instance_name(), version())
        stores = self._stores.acting_as(BusRole(f"agent-{name}"))
        ports = Ports(
            bus=stores.bus,
            publisher=stores.publisher(name.value),
            inbox=PostgresInbox(self._stores.database),
            proof=CommandsInLog(self._stores.database),
            clock=now,
            new_id=new_id,
            jitter=jitter,
        )
        return AgentHost(agent, identity, ports, heartbeat_s=self._fleet.timing.heartbeat_s)

    async def _cost(self) -> CostAgent:
        clouds, policy = await self.clouds(), cost_policy(self._fleet)
        pricing = _pricing(clouds)
        senses = CostSenses(
            deployments=tuple(self.deployments.values()),
            actuators=clouds.actuators,
            interruptions=clouds.interruptions,
            pricing=pricing,
            recent=RecentChangesInPostgres(self._stores),
            policy=policy,
            clock=now,
        )
        return CostAgent(
            senses,
            self._hands(clouds, pricing),
            self._stores.telemetry,
            memory=self._memory,
            sense_every_s=self._fleet.timing.sense_every_s,
        )

    def _hands(self, clouds: Clouds, pricing: Pricing, warm_up: WarmUp | None = None) -> Hands:
        return Hands(
            actuators=clouds.actuators,
            traffic=SplitTraffic(self._traffic, clouds.traffic),
            intents=ExecutionLog(self._stores.database),
            pricing=pricing,
            drain_timeout_s=self._fleet.timing.drain_timeout_s,
            clock=now,
            monotonic=time.monotonic,
            sleep=asyncio.sleep,
            warm_up=warm_up,
        )

    def _tuner(self, clouds: Clouds, http: httpx.AsyncClient) -> Executor:
        """Carries the performance agent's changes out, on the clouds that can."""
        moves = EngineMoves(self.deployments, clouds.configurable, declared_engines(self._fleet))
        return Executor(
            {(one.tenant, one.id): one for one in self.deployments.values()},
            self._hands(clouds, _pricing(clouds), CompletionWarmUp(http)),
            moves,
        )

    async def _performance(self) -> PerformanceAgent:
        clouds, timing = await self.clouds(), self._fleet.timing
        http = await self._stack.enter_async_context(http_client())
        return PerformanceAgent(
            self.deployments,
            WholeFleet(clouds.actuators),
            self._stores.telemetry,
            EngineScraper(http, now),
            models=self._models(),
            clock=now,
            policy=PerformancePolicy(
                sense_every_s=min(timing.sense_every_s, 5.0),
                vote_window_s=timing.window_s,
                min_samples=timing.min_gate_samples,
            ),
            executor=self._tuner(clouds, http),
            studies=studies(
                self._fleet,
                self.deployments,
                self._stores.acting_as(BusRole.AGENT_PERFORMANCE),
                clouds,
                http,
                self._time_scale,
            ),
        )

    async def _resource(self) -> ResourceAgent:
        clouds, timing = await self.clouds(), self._fleet.timing
        name = instance_name()
        return ResourceAgent(
            self.deployments,
            WholeFleet(clouds.actuators),
            self._stores.telemetry,
            Machine(HostCollector(host=name), GpuCollector(host=name)),
            models=self._models(),
            clock=now,
            policy=ResourcePolicy(
                sense_every_s=timing.sense_every_s,
                vote_window_s=timing.window_s,
                offered_window_s=min(60.0, timing.window_s),
                min_samples=timing.min_gate_samples,
                forecast=ForecastPolicy(
                    bin_s=timing.load_step_s,
                    horizon_s=timing.start_up_s,
                    recent_s=10 * timing.load_step_s,
                ),
            ),
        )

    async def _application(self) -> ApplicationAgent:
        clouds, timing = await self.clouds(), self._fleet.timing
        policy = ApplicationPolicy(
            golden_per_look=timing.golden_per_look,
            baseline_every_s=timing.baseline_every_s,
            traffic_window_s=timing.window_s,
        )
        senses = ApplicationSenses(
            replicas=WholeFleet(clouds.actuators),
            telemetry=self._stores.telemetry,
            golden=load_golden(self._fleet.golden),
            runner=GoldenRunner(http_client),
            rollouts=RolloutsInPostgres(self._stores),
            clock=now,
            policy=policy,
        )
        return ApplicationAgent(tuple(self.deployments.values()), senses)

    def _models(self) -> dict[str, LoadModel]:
        """Load models of the deployments that name a perf card."""
        return {
            deployment.id: CardModel(load_card(deployment.perf_card), time_scale=self._time_scale)
            for deployment in self.deployments.values()
            if deployment.perf_card is not None
        }


def _pricing(clouds: Clouds) -> Pricing:
    return Pricing(Catalogue.load(), clouds.spot, now, refresh=timedelta(seconds=60))


def cost_policy(fleet: Fleet) -> CostPolicy:
    """The cost agent's numbers as the fleet file's timing sets them."""
    timing = fleet.timing
    return CostPolicy(
        migration=rollout(fleet),
        drain_timeout_s=timing.drain_timeout_s,
        start_up_s=timing.start_up_s,
    )
