"""What studies of engines work with: sampled traffic from the bus, staging replicas, a lock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

import httpx

from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.moving.warm_up import CompletionWarmUp
from optiinfra.agents.performance.staging import Staging, StagingPolicy, StagingPorts, staging_of
from optiinfra.agents.performance.study import Card, Studies, StudyPorts
from optiinfra.agents.performance.tuning_policy import Tuning
from optiinfra.events.bus import Bus
from optiinfra.events.facts import AnswerSampled
from optiinfra.events.replay import replay
from optiinfra.events.subjects import Stream
from optiinfra.runtime.clouds import Clouds, WholeFleet
from optiinfra.runtime.engine_file import declared_engines
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.plans import RecentChangesInPostgres, rollout
from optiinfra.runtime.stores import Stores, new_id, now
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.recommendation import Placement
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.serving.cards import load_card
from optiinfra.storage.postgres.exclusive import exclusive


class SampledTraffic:
    """Implements `Traffic` over the stream of samples."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def since(
        self, tenant: str, deployment: str, at: datetime, most: int
    ) -> Sequence[AnswerSample]:
        found: deque[AnswerSample] = deque(maxlen=most)
        async for _, event in replay(
            self._bus, stream=Stream.SAMPLES, since=at, unreadable=lambda *_: None
        ):
            fact = event.fact
            if isinstance(fact, AnswerSampled):
                sample = fact.sample
                if (sample.tenant, sample.deployment) == (tenant, deployment):
                    found.append(sample)
        return found


def studies(
    fleet: Fleet,
    deployments: Mapping[str, Deployment],
    stores: Stores,
    clouds: Clouds,
    http: httpx.AsyncClient,
    time_scale: float,
) -> Studies | None:
    """Studies of the deployments that may be tuned; None without one, or where none may act."""
    policies = {one.id: one.tuning for one in fleet.deployments if one.tuning is not None}
    if not policies or fleet.mode != "act":
        return None

    def staging(deployment: Deployment, placement: Placement, policy: Tuning) -> Staging:
        ports = StagingPorts(
            actuator=clouds.actuators[placement.provider],
            warm_up=CompletionWarmUp(http),
            scraper=EngineScraper(http, now),
            new_id=new_id,
            monotonic=time.monotonic,
        )
        times = StagingPolicy(
            ready_s=policy.ready_s, measure_s=policy.measure_s, beside_best=policy.beside_best
        )
        return Staging(deployment, placement, ports, times)

    async def sweep(deployment: Deployment) -> int:
        tenant, aside, ended = deployment.tenant, staging_of(deployment.id), 0
        for actuator in clouds.actuators.values():
            for one in await actuator.replicas(tenant, aside):
                ended += await actuator.terminate(tenant, aside, one.id)
        return ended

    def held(name: str) -> AbstractAsyncContextManager[bool]:
        return exclusive(stores.database, name)

    cards = {
        one.id: Card(load_card(one.perf_card), time_scale)
        for one in deployments.values()
        if one.perf_card is not None
    }
    ports = StudyPorts(
        replicas=WholeFleet(clouds.actuators),
        telemetry=stores.telemetry,
        configurable=clouds.configurable,
        declared=declared_engines(fleet),
        cards=cards,
        traffic=SampledTraffic(stores.bus),
        recent=RecentChangesInPostgres(stores),
        staging=staging,
        sweep=sweep,
        exclusive=held,
        rollout=rollout(fleet),
        rollback_s=fleet.timing.drain_timeout_s + fleet.timing.start_up_s,
        clock=now,
        new_id=new_id,
    )
    return Studies(deployments, policies, ports)
