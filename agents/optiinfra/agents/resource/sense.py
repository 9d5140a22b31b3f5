"""Reads the machine and its GPUs, and works out the load that each deployment is offered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from optiinfra.agents.base.agent import Clock
from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.collectors.fleet import ReplicaSource, serving
from optiinfra.agents.collectors.host import HostCollector
from optiinfra.agents.collectors.nvml import GpuCollector
from optiinfra.agents.collectors.stored import ARRIVALS, offered, stored_window
from optiinfra.agents.resource.policy import OFFERED, ResourcePolicy
from optiinfra.agents.resource.record import ForecastRecord
from optiinfra.events.facts import Fact, MetricsMeasured
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.errors import OptiInfraError, Unavailable
from optiinfra.schemas.telemetry import Sample, Unit

HOST_SCOPE = "host"
"""The deployment id under which readings of the agent's own machine are published."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """The collectors of the machine that the agent runs on."""

    host: HostCollector
    gpus: GpuCollector


class Sensing:
    """One round of looking: the machine, and each deployment's load, offered and forecast."""

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        replicas: ReplicaSource,
        telemetry: Telemetry,
        machine: Machine,
        *,
        clock: Clock,
        policy: ResourcePolicy,
    ) -> None:
        self._deployments = deployments
        self._replicas = replicas
        self._telemetry = telemetry
        self._machine = machine
        self._clock = clock
        self._policy = policy
        self._record = ForecastRecord(telemetry, policy)

    async def machine(self) -> tuple[Sample, ...]:
        """Host and GPU samples; both are read beside the event loop."""
        at = self.now()
        host = await asyncio.to_thread(self._machine.host.collect, at)
        gpus = await asyncio.to_thread(self._machine.gpus.collect, at)
        return (*host, *gpus)

    async def loads(self) -> Mapping[str, Sequence[Sample]]:
        """Load by deployment, offered and forecast; what cannot be read is left out, and logged."""
        async with asyncio.TaskGroup() as group:
            tasks = {d.id: group.create_task(self._load(d)) for d in self._deployments.values()}
        found = {name: task.result() for name, task in tasks.items()}
        return {name: samples for name, samples in found.items() if samples}

    def facts(self, machine: Sequence[Sample], loads: Mapping[str, Sequence[Sample]]) -> list[Fact]:
        """The machine's readings once for each tenant, and each deployment's load."""
        tenants = sorted({d.tenant for d in self._deployments.values()})
        facts: list[Fact] = [_measured(name, HOST_SCOPE, machine) for name in tenants if machine]
        facts += [
            _measured(self._deployments[name].tenant, name, samples)
            for name, samples in loads.items()
        ]
        return facts

    def now(self) -> datetime:
        """The clock in whole milliseconds, as the store keeps it."""
        now = self._clock().astimezone(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    async def _load(self, deployment: Deployment) -> Sequence[Sample]:
        now = self.now()
        try:
            load = await self._offered(deployment, now)
        except Unavailable as unreachable:
            _log.warning("load_not_read", deployment=deployment.id, why=str(unreachable))
            return []
        try:
            return [load, *await self._record.made(deployment, now)]
        except OptiInfraError as failed:
            _log.warning("load_not_forecast", deployment=deployment.id, why=str(failed))
            return [load]

    async def _offered(self, deployment: Deployment, now: datetime) -> Sample:
        span_s = self._policy.offered_window_s
        replicas = await self._replicas.replicas(deployment.tenant, deployment.id)
        window = await stored_window(
            self._telemetry,
            deployment,
            ARRIVALS,
            since=now - timedelta(seconds=span_s),
            until=now,
            stale_s=self._policy.stale_s,
        )
        return Sample(
            metric=OFFERED,
            unit=Unit.PER_SECOND,
            reading=offered(
                window, [one.id for one in serving(replicas)], self._policy.golden_settle_s
            ),
            at=now,
            window_s=span_s,
        )


def _measured(tenant: str, deployment: str, samples: Sequence[Sample]) -> MetricsMeasured:
    return MetricsMeasured(
        tenant=tenant, deployment=deployment, family="resource", samples=tuple(samples)
    )
