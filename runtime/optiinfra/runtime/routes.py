"""Gives a deployment its first routes: all replicas that serve, at equal weights."""

from __future__ import annotations

import structlog

from optiinfra.agents.actuators.port import Traffic
from optiinfra.agents.collectors.fleet import ReplicaSource, serving
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.errors import Conflict, NotFound
from optiinfra.schemas.routing import Backend, RouteTable

log = structlog.get_logger()


async def seed_routes(deployment: Deployment, replicas: ReplicaSource, traffic: Traffic) -> bool:
    """Writes the first table if there is none; False while no replica serves."""
    try:
        status = await traffic.status(deployment.tenant, deployment.id)
        if status.table.backends:
            return True
        version = status.table.version
    except NotFound:
        version = 0
    found = serving(await replicas.replicas(deployment.tenant, deployment.id))
    if not found:
        log.warning("routes.none_serving", deployment=deployment.id)
        return False
    table = RouteTable(
        tenant=deployment.tenant,
        deployment=deployment.id,
        model=deployment.model,
        version=version + 1,
        backends=tuple(
            Backend(replica=one.id, url=one.url, weight=1.0) for one in found if one.url
        ),
    )
    try:
        await traffic.put(table)
    except Conflict:
        log.info("routes.already_written", deployment=deployment.id)
    log.info("routes.seeded", deployment=deployment.id, replicas=len(table.backends))
    return True
