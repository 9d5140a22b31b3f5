"""What `doctor` looks at outside: the gateway, the clouds, and every replica."""

from __future__ import annotations

from contextlib import AsyncExitStack

from optiinfra.agents.actuators.port import Actuator
from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.agents.collectors.fleet import scrapable
from optiinfra.agents.collectors.scrape import EngineScraper, ReplicaReadings
from optiinfra.runtime.clouds import connect_clouds, http_client
from optiinfra.runtime.findings import Finding, Level, checking, public
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.preflight import gateway_token, require_cloud, require_gateway
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.stores import now
from optiinfra.schemas.deployment import Deployment, Replica
from optiinfra.schemas.telemetry import Known

_NOWHERE = "http://127.0.0.1:1/"


async def look_at_gateway(settings: Settings, fleet: Fleet) -> list[Finding]:
    """Whether the gateway that the file names answers, and takes our token."""
    found: list[Finding] = []
    if fleet.gateway is None:
        return [Finding(Level.OK, "gateway", "`optiinfra up` runs one")]
    with checking(found, "gateway") as said:
        token = gateway_token(fleet, settings) or ""
        async with GatewayTraffic(str(fleet.gateway.admin_url), token) as traffic:
            await require_gateway(traffic)
        said("it answers, and the admin token is right")
    return found


async def look_at_clouds(settings: Settings, fleet: Fleet) -> list[Finding]:
    """Asks each cloud for its replicas, which only reads, and each replica for its metrics."""
    found: list[Finding] = []
    declared = fleet.declared(_NOWHERE)
    async with AsyncExitStack() as stack:
        with checking(found, "clouds") as said:
            clouds = await connect_clouds(fleet, stack, settings.home.expanduser().absolute())
            said(", ".join(sorted(clouds.actuators)) or "none is configured")
            for provider, actuator in clouds.actuators.items():
                with checking(found, f"clouds.{provider}") as told:
                    told(f"{await require_cloud(fleet, provider, actuator)} replicas")
                    for one in fleet.deployments:
                        if one.provider is provider:
                            found += await _replicas(declared[one.id], actuator)
    return found


async def _replicas(deployment: Deployment, actuator: Actuator) -> list[Finding]:
    replicas = scrapable(await actuator.replicas(deployment.tenant, deployment.id))
    if not replicas:
        todo = "start one with the tags of docs/fleet.md, or let `start` do it"
        return [Finding(Level.WARN, f"deployment {deployment.id}", "it has no replica", todo)]
    async with http_client() as http:
        readings = await EngineScraper(http, now).scrape(deployment, replicas)
    return [_scraped(one, read) for one, read in zip(replicas, readings, strict=True)]


def _scraped(replica: Replica, read: ReplicaReadings) -> Finding:
    """Good when it gave a known reading and nothing that the contract promises is missing."""
    what, where = f"replica {replica.id}", public(replica.url or "no address")
    if not any(isinstance(sample.reading, Known) for sample in read.samples):
        said = f"{where}/metrics gives nothing that is known of this engine"
        return Finding(Level.FAIL, what, said, "check engine, url, and what stands in between")
    gaps = ", ".join(sorted({gap.metric for gap in read.gaps}))
    version = f"engine {read.version or 'of unknown version'}"
    if gaps:
        todo = "see docs/fleet.md: which metrics an engine must expose"
        return Finding(Level.WARN, what, f"{version}; missing: {gaps}", todo)
    return Finding(Level.OK, what, f"{version} at {where}")
