"""Connects to the cluster that the fleet file names; needs the official client installed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx

from optiinfra.agents.actuators.http_route import GatewayRef, HttpRouteTraffic
from optiinfra.agents.actuators.kubernetes import KubernetesActuator
from optiinfra.agents.actuators.kubernetes_api import Cluster, KubernetesApi
from optiinfra.agents.actuators.kubernetes_objects import EngineImage, Site
from optiinfra.agents.actuators.port import Actuator
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.runtime.engine_file import declared_engines
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.fleet_kubernetes import KubernetesCloud
from optiinfra.runtime.stores import now
from optiinfra.schemas.deployment import ReplicaState
from optiinfra.schemas.errors import Invariant
from optiinfra.schemas.telemetry import Known

_LEAST_START_UP_S = 10
_NOWHERE = "http://127.0.0.1:1/"
_REQUESTS = frozenset({"requests_running", "requests_waiting"})


async def connect_kubernetes(
    fleet: Fleet, stack: AsyncExitStack, http: httpx.AsyncClient
) -> tuple[KubernetesActuator, HttpRouteTraffic | None]:
    """The traffic is None where OptiInfra's own gateway splits it.

    Closed with `stack`; nothing is asked of the cluster yet. Raises `Denied`.
    """
    cloud = fleet.clouds.kubernetes
    if cloud is None:
        raise Invariant("the fleet file names no cluster")
    cluster = Cluster(cloud.namespace, cloud.kubeconfig, cloud.context)
    api = await asyncio.to_thread(KubernetesApi.connect, cluster)
    stack.push_async_callback(api.close)
    actuator = KubernetesActuator(
        api,
        _site(fleet, cloud),
        http,
        clock=now,
        start_up_s=fleet.timing.apply_timeout_s,
        capacity_wait_s=cloud.capacity_wait_s,
    )
    if cloud.gateway is None:
        return actuator, None
    gateway = GatewayRef(
        cloud.gateway.name,
        cloud.gateway.namespace,
        cloud.gateway.section,
        cloud.gateway.hostnames,
    )
    return actuator, HttpRouteTraffic(api, gateway, EngineRequests(fleet, actuator, http))


class EngineRequests:
    """What an engine itself says of its requests, read by its telemetry contract."""

    def __init__(self, fleet: Fleet, actuator: Actuator, http: httpx.AsyncClient) -> None:
        self._tenant = fleet.tenant
        self._deployments = fleet.declared(_NOWHERE)
        self._actuator = actuator
        self._scraper = EngineScraper(http, now)

    async def __call__(self, deployment: str, replica_id: str) -> int | None:
        """Running and waiting together; None, *unknown*, when it does not say both.

        What is gone or has stopped has none.
        """
        replica = await self._actuator.replica(self._tenant, deployment, replica_id)
        if replica is None or replica.state is ReplicaState.STOPPED:
            return 0
        (read,) = await self._scraper.scrape(self._deployments[deployment], [replica])
        known = {
            sample.metric: sample.reading.value
            for sample in read.samples
            if isinstance(sample.reading, Known)
        }
        if not known.keys() >= _REQUESTS:
            return None
        return round(sum(known[metric] for metric in _REQUESTS))


def _site(fleet: Fleet, cloud: KubernetesCloud) -> Site:
    return Site(
        namespace=cloud.namespace,
        region=cloud.region,
        images={one.engine: EngineImage(one.image, one.version) for one in cloud.images},
        engines=declared_engines(fleet),
        markets=cloud.markets,
        instance_type_label=cloud.instance_type_label,
        gpu_resource=cloud.gpu_resource,
        hub_token=cloud.hub_token,
        start_up_s=max(_LEAST_START_UP_S, int(fleet.timing.apply_timeout_s)),
        drain_s=cloud.drain_s,
        emulated=cloud.emulated,
    )
