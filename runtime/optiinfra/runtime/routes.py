"""Brings a deployment's first replicas into its routes, at equal weights, as they come to serve."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from optiinfra.agents.actuators.port import Traffic
from optiinfra.agents.application.sense import Rollouts
from optiinfra.agents.collectors.fleet import ReplicaSource, serving
from optiinfra.runtime.engines import first_tokens
from optiinfra.schemas.deployment import Deployment, Replica, ReplicaState
from optiinfra.schemas.errors import Conflict, NotFound
from optiinfra.schemas.routing import Backend, RouteTable

log = structlog.get_logger()

_TO_COME = (ReplicaState.STARTING, ReplicaState.UNKNOWN)


async def seed_routes(
    deployment: Deployment, replicas: ReplicaSource, traffic: Traffic, rollouts: Rollouts
) -> bool:
    """Adds what serves and has no route; whether all that may have one has it now.

    The first that serve get requests at once, those that load for longer are added by later calls.
    While a change is carried out the routes are its own, and what a change has left behind is
    never added.
    """
    table = await _table(deployment, traffic)
    found = await replicas.replicas(deployment.tenant, deployment.id)
    routed = {backend.replica for backend in table.backends}
    may_have = _of_no_change(deployment, found) if routed else found
    left = [one for one in may_have if one.id not in routed]
    fresh = [one for one in serving(left) if one.url]
    whole = not any(one.state in _TO_COME for one in left)
    if not fresh:
        if not routed:
            log.warning("routes.none_serving", deployment=deployment.id)
        return bool(routed) and whole
    if routed and await rollouts.are_under_way(deployment.tenant, deployment.id):
        return False
    added = tuple(Backend(replica=one.id, url=one.url or "", weight=1.0) for one in fresh)
    try:
        await traffic.put(
            table.model_copy(
                update={"version": table.version + 1, "backends": (*table.backends, *added)}
            )
        )
    except Conflict:
        log.info("routes.moved", deployment=deployment.id)
        return False
    log.info("routes.seeded", deployment=deployment.id, replicas=[one.id for one in fresh])
    return whole


def _of_no_change(deployment: Deployment, found: Sequence[Replica]) -> list[Replica]:
    """Those that were launched by `up`, or by nobody here."""
    firsts = first_tokens(deployment.tenant, deployment.id)
    return [one for one in found if one.launch_token is None or one.launch_token in firsts]


async def _table(deployment: Deployment, traffic: Traffic) -> RouteTable:
    try:
        return (await traffic.status(deployment.tenant, deployment.id)).table
    except NotFound:
        return RouteTable(
            tenant=deployment.tenant,
            deployment=deployment.id,
            model=deployment.model,
            version=0,
            backends=(),
        )
