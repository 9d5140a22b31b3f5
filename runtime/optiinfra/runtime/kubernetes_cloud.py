"""Connects to the cluster that the fleet file names; needs the official client installed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import httpx

from optiinfra.agents.actuators.kubernetes import KubernetesActuator
from optiinfra.agents.actuators.kubernetes_api import Cluster, KubernetesApi
from optiinfra.agents.actuators.kubernetes_objects import EngineImage, Site
from optiinfra.runtime.engine_file import declared_engines
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.fleet_kubernetes import KubernetesCloud
from optiinfra.runtime.stores import now
from optiinfra.schemas.errors import Invariant

_LEAST_START_UP_S = 10


async def connect_kubernetes(
    fleet: Fleet, stack: AsyncExitStack, http: httpx.AsyncClient
) -> KubernetesActuator:
    """Closed with `stack`; nothing is asked of the cluster yet. Raises `Denied`."""
    cloud = fleet.clouds.kubernetes
    if cloud is None:
        raise Invariant("the fleet file names no cluster")
    cluster = Cluster(cloud.namespace, cloud.kubeconfig, cloud.context)
    api = await asyncio.to_thread(KubernetesApi.connect, cluster)
    stack.push_async_callback(api.close)
    return KubernetesActuator(
        api,
        _site(fleet, cloud),
        http,
        clock=now,
        start_up_s=fleet.timing.apply_timeout_s,
        capacity_wait_s=cloud.capacity_wait_s,
    )


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
