"""Puts the question of a capacity vote together from telemetry, load history and the perf card."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from optiinfra.agents.base.agent import Clock
from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.collectors.fleet import ReplicaSource, serving
from optiinfra.agents.collectors.stored import ARRIVALS, LATENCIES, LENGTHS, offered, stored_window
from optiinfra.agents.resource.forecast import LoadForecast, LoadPoint, forecast_load
from optiinfra.agents.resource.policy import (
    OFFERED,
    CapacityQuestion,
    FleetAfter,
    ResourcePolicy,
    Served,
    capacity,
    fleet_after,
)
from optiinfra.schemas.deployment import Deployment, Replica
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import ChangeSpec
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unknown, UnknownReason
from optiinfra.serving.live import LoadModel, length_mix
from optiinfra.serving.windows import Window

_NO_CARD = Unknown(reason=UnknownReason.NOT_CONFIGURED, detail="the deployment has no perf card")


@dataclass(frozen=True, slots=True)
class Observation:
    """A deployment's replicas, its recent telemetry and the history of its load."""

    deployment: Deployment
    serving: tuple[Replica, ...]
    window: Window
    history: Sequence[Sample]


class Assessment:
    """Reads what a vote needs; the decision itself is in the policy."""

    def __init__(
        self,
        replicas: ReplicaSource,
        telemetry: Telemetry,
        models: Mapping[str, LoadModel],
        clock: Clock,
        policy: ResourcePolicy,
    ) -> None:
        self._replicas = replicas
        self._telemetry = telemetry
        self._models = models
        self._clock = clock
        self._policy = policy

    async def observe(self, deployment: Deployment) -> Observation:
        """Raises `Unavailable` when a store or the actuator is."""
        now, policy = self._clock(), self._policy
        found = await self._replicas.replicas(deployment.tenant, deployment.id)
        window = await stored_window(
            self._telemetry,
            deployment,
            (*LATENCIES, *ARRIVALS, *LENGTHS),
            since=now - timedelta(seconds=policy.vote_window_s),
            until=now,
            stale_s=policy.stale_s,
        )
        history = await self._telemetry.window(
            deployment.tenant,
            deployment.id,
            OFFERED,
            since=now - timedelta(seconds=policy.history_s),
            until=now,
        )
        return Observation(deployment, serving(found), window, history)

    def after(self, spec: ChangeSpec, seen: Observation) -> FleetAfter | None:
        """The fleet after `spec`; None where that is not modelled."""
        return fleet_after(spec, seen.serving, seen.deployment.failure_tolerance, self._policy)

    async def question(self, after: FleetAfter, seen: Observation) -> CapacityQuestion:
        """What to decide; the simulation runs beside the event loop."""
        names = [one.id for one in seen.serving]
        return CapacityQuestion(
            after=after,
            offered=offered(seen.window, names, self._policy.golden_settle_s),
            forecast=self._forecast(seen),
            capacity=await asyncio.to_thread(self._capacity, seen, names),
        )

    def _forecast(self, seen: Observation) -> LoadForecast | Unknown:
        points = [
            LoadPoint(s.at.timestamp(), s.reading.value)
            for s in seen.history
            if isinstance(s.reading, Known)
        ]
        return forecast_load(points, self._clock().timestamp(), self._policy.forecast)

    def _capacity(self, seen: Observation, replicas: Sequence[str]) -> Reading:
        model = self._models.get(seen.deployment.id)
        if model is None:
            return _NO_CARD
        try:
            mix = length_mix(
                seen.window.distribution("prompt_length_tokens", replicas),
                seen.window.distribution("output_length_tokens", replicas),
            )
        except Rejected as empty:
            return Unknown(reason=UnknownReason.NO_TRAFFIC, detail=empty.message)
        slo = seen.deployment.slo
        rate = model.capacity_rps(mix, (slo.ttft_p95_s, slo.tpot_p95_s))
        return capacity(rate, model.error_band, _served(seen, replicas), self._policy)


def _served(seen: Observation, replicas: Sequence[str]) -> Served:
    """What a replica of the fleet served on average over the window."""
    window, slo = seen.window, seen.deployment.slo
    ttft = window.quantile("ttft_s", 0.95, replicas)
    tpot = window.quantile("tpot_s", 0.95, replicas)
    within: bool | None = None
    if isinstance(ttft.reading, Known) and isinstance(tpot.reading, Known):
        within = ttft.reading.value <= slo.ttft_p95_s and tpot.reading.value <= slo.tpot_p95_s
    finished = window.rate("requests_per_s", replicas)
    if isinstance(finished, Known):
        finished = Known(value=finished.value / len(replicas))
    return Served(
        rps=finished,
        samples=ttft.samples,
        within_slo=within,
        waiting=window.level("requests_waiting", replicas).reading,
    )
