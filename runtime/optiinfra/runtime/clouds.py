"""Connects to the clouds that the fleet file names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from optiinfra.agents.actuators.aws import AwsActuator
from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.actuators.port import Actuator, Configurable, Traffic
from optiinfra.agents.collectors.clouds import AwsAccount, AwsApi, AwsInstances, AwsSpot
from optiinfra.agents.collectors.interruptions import Interruptions, SqsInterruptions
from optiinfra.runtime.fleet import AwsCloud, Fleet, LocalCloud
from optiinfra.runtime.stores import now
from optiinfra.schemas.deployment import Provider, Replica
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import DeploymentId
from optiinfra.schemas.routing import Backend, RouteStatus, RouteTable

HTTP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Clouds:
    """The adapters to the clouds that the fleet file names.

    `configurable` are those that start engines with a configuration that they are given; `traffic`
    is that of the deployments which OptiInfra's own gateway does not split.
    """

    actuators: dict[Provider, Actuator] = field(default_factory=dict)
    configurable: dict[Provider, Configurable] = field(default_factory=dict)
    traffic: dict[DeploymentId, Traffic] = field(default_factory=dict)
    spot: dict[Provider, AwsSpot] = field(default_factory=dict)
    interruptions: list[Interruptions] = field(default_factory=list)


class SplitTraffic:
    """The traffic of each deployment where it is split; implements `Traffic`."""

    def __init__(self, gateway: Traffic, elsewhere: Mapping[DeploymentId, Traffic]) -> None:
        self._gateway = gateway
        self._elsewhere = elsewhere

    async def status(self, tenant: str, deployment: str) -> RouteStatus:
        return await self._of(deployment).status(tenant, deployment)

    async def put(self, table: RouteTable) -> RouteStatus:
        return await self._of(table.deployment).put(table)

    async def set_backends(
        self, tenant: str, deployment: str, backends: Sequence[Backend]
    ) -> RouteStatus:
        return await self._of(deployment).set_backends(tenant, deployment, backends)

    async def await_drained(
        self, tenant: str, deployment: str, replica: str, timeout_s: float
    ) -> bool:
        return await self._of(deployment).await_drained(tenant, deployment, replica, timeout_s)

    def _of(self, deployment: str) -> Traffic:
        return self._elsewhere.get(deployment, self._gateway)


class WholeFleet:
    """All replicas of a deployment, on whatever cloud they are."""

    def __init__(self, actuators: Mapping[Provider, Actuator]) -> None:
        self._actuators = actuators

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        found: list[Replica] = []
        for actuator in self._actuators.values():
            found.extend(await actuator.replicas(tenant, deployment))
        return found


def http_client() -> httpx.AsyncClient:
    """A client for engines: no proxy of the environment, and no endless wait."""
    return httpx.AsyncClient(timeout=HTTP_TIMEOUT_S, trust_env=False)


def engines_dir(home: Path) -> Path:
    """Where the local actuator of a home keeps its engines."""
    return home / "engines"


async def connect_clouds(fleet: Fleet, stack: AsyncExitStack, home: Path) -> Clouds:
    """Adapters, closed with `stack`; nothing is asked of the clouds yet.

    Raises `Denied` when a client cannot be made from the credentials that there are, `Rejected`
    when it is not installed.
    """
    clouds = Clouds()
    http = await stack.enter_async_context(http_client())
    start_up_s = fleet.timing.apply_timeout_s
    if fleet.clouds.aws is not None:
        await _connect_aws(fleet.clouds.aws, clouds, stack, (http, start_up_s))
    if fleet.clouds.kubernetes is not None:
        await _connect_kubernetes(fleet, clouds, stack, http)
    if fleet.clouds.local is not None:
        local = LocalActuator(
            engines_dir(home),
            _engine_command(fleet.clouds.local),
            http,
            clock=now,
            start_up_s=start_up_s,
        )
        clouds.actuators[Provider.LOCAL] = clouds.configurable[Provider.LOCAL] = local
    return clouds


async def _connect_aws(
    aws: AwsCloud, clouds: Clouds, stack: AsyncExitStack, probing: tuple[httpx.AsyncClient, float]
) -> None:
    endpoint = str(aws.endpoint_url) if aws.endpoint_url else None
    account = AwsAccount(region=aws.regions[0], endpoint_url=endpoint)
    ec2 = await asyncio.to_thread(AwsApi.connect, "ec2", account)
    stack.callback(ec2.close)
    machines = AwsInstances(ec2, f"http://{{private_ip}}:{aws.engine_port}")
    http, start_up_s = probing
    clouds.actuators[Provider.AWS] = AwsActuator(
        ec2, machines, http, clock=now, start_up_s=start_up_s
    )
    clouds.spot[Provider.AWS] = AwsSpot(ec2)
    if aws.interruption_queue_url is not None:
        sqs = await asyncio.to_thread(AwsApi.connect, "sqs", account)
        stack.callback(sqs.close)
        clouds.interruptions.append(SqsInterruptions(sqs, str(aws.interruption_queue_url)))


async def _connect_kubernetes(
    fleet: Fleet, clouds: Clouds, stack: AsyncExitStack, http: httpx.AsyncClient
) -> None:
    try:
        from optiinfra.runtime.kubernetes_cloud import connect_kubernetes
    except ModuleNotFoundError as missing:
        raise Rejected(
            f"clouds.kubernetes needs the package {missing.name}",
            hint="install optiinfra[kubernetes]",
        ) from missing
    actuator, traffic = await connect_kubernetes(fleet, stack, http)
    clouds.actuators[Provider.KUBERNETES] = clouds.configurable[Provider.KUBERNETES] = actuator
    if traffic is not None:
        for one in fleet.deployments:
            if one.provider is Provider.KUBERNETES:
                clouds.traffic[one.id] = traffic


def _engine_command(cloud: LocalCloud) -> EngineCommand:
    return EngineCommand(
        args=cloud.command,
        emulated=cloud.emulated,
        slots=cloud.slots,
        engine_version=cloud.engine_version,
    )
