"""Splits a deployment's traffic by the weights of an HTTPRoute, where Kubernetes' gateway routes.

Such a gateway tells nobody what it counts: in flight, failed and truncated stay unknown here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import Field, ValidationError

from optiinfra.agents.actuators.kubernetes_api import (
    HTTP_ROUTE,
    SERVICE,
    AlreadyExists,
    KubernetesApi,
)
from optiinfra.agents.actuators.kubernetes_objects import (
    LABEL_MANAGER,
    LABEL_REPLICA,
    labels_of,
    object_name,
    selected,
    service_url,
)
from optiinfra.agents.actuators.port import replica_name
from optiinfra.agents.actuators.traffic import RoutesMoved, rewritten
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Conflict, NotFound, Rejected, Unavailable
from optiinfra.schemas.ids import DeploymentId, ReplicaId, derived_id
from optiinfra.schemas.routing import Backend, BackendState, RouteStatus, RouteTable

Requests = Callable[[DeploymentId, ReplicaId], Awaitable[int | None]]
"""How many requests a replica's engine says it has, running and waiting; None is unknown, and 0
also what a replica that is gone or has stopped has."""
Object = Mapping[str, Any]

MOST_BACKENDS = 16
_FULL = 10_000
_KEPT = "optiinfra.io/route"
_POLL_S = 0.5
_LOOKS = 2
"""A request may be on its way between gateway and engine: idle counts when it is seen twice."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GatewayRef:
    """The Gateway that a new route hangs on, and the host names that it takes requests for."""

    name: str
    namespace: str | None = None
    section: str | None = None
    hostnames: Mapping[DeploymentId, Sequence[str]] = field(default_factory=dict)


class _Kept(Value):
    """What the weights alone do not tell; `generation` is that of the route it was written with."""

    table: RouteTable | None = None
    generation: int = Field(default=0, ge=0)


class HttpRouteTraffic:
    """One HTTPRoute a deployment behind the `Traffic` port.

    Only the backends of its first rule are written; matches, filters and timeouts are the
    operator's. Whoever else changes the route moves its version on, so a writer that has not seen
    that is refused.
    """

    def __init__(self, api: KubernetesApi, gateway: GatewayRef, requests: Requests) -> None:
        self._api = api
        self._gateway = gateway
        self._requests = requests

    async def status(self, tenant: str, deployment: str) -> RouteStatus:
        """The weights in force; the counters are unknown, so there are none.

        Raises `NotFound` without a route, `Unavailable` when the gateway does not take it.
        """
        route = await self._route(tenant, deployment)
        if route is None:
            raise NotFound(f"{tenant}/{deployment} has no HTTPRoute")
        refusal = _refusal(route)
        if refusal is not None:
            raise Unavailable(
                f"no gateway takes HTTPRoute {route['metadata']['name']}: {refusal}",
                retry_after_s=5.0,
            )
        table = _table(route, tenant, deployment, await self._services(tenant, deployment))
        return RouteStatus(table=table)

    async def put(self, table: RouteTable) -> RouteStatus:
        """As the port says. `Rejected` for more backends than a rule may have, and for a replica
        without a Service."""
        tenant, deployment = table.tenant, table.deployment
        services = await self._services(tenant, deployment)
        refs = _refs(table.backends, services)
        route = await self._route(tenant, deployment)
        version = _version(route) if route is not None else 0
        if table.version != version + 1:
            raise RoutesMoved(f"the routes are at version {version}", version)
        try:
            if route is None:
                made = await self._api.create(HTTP_ROUTE, self._fresh(table, refs))
            else:
                made = await self._api.replace(HTTP_ROUTE, _changed(route, table, refs))
        except (AlreadyExists, Conflict) as error:
            raise RoutesMoved(f"somebody else wrote first: {error.message}", version) from error
        _log.info("http_route.written", route=made["metadata"]["name"], version=table.version)
        return RouteStatus(table=_table(made, tenant, deployment, services))

    async def set_backends(
        self, tenant: str, deployment: str, backends: Sequence[Backend]
    ) -> RouteStatus:
        """As the port says; `RoutesMoved` after five lost races."""
        return await rewritten(self, tenant, deployment, lambda _: tuple(backends))

    async def await_drained(
        self, tenant: str, deployment: str, replica: str, timeout_s: float
    ) -> bool:
        """True once the gateway has taken over that `replica` gets nothing new and its engine says
        twice that it has no request. Unknown is not drained.

        `Conflict` when the replica is active.
        """
        idle = 0
        try:
            async with asyncio.timeout(timeout_s):
                while idle < _LOOKS:
                    idle = idle + 1 if await self._is_empty(tenant, deployment, replica) else 0
                    if idle < _LOOKS:
                        await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        return True

    async def _is_empty(self, tenant: str, deployment: str, replica: str) -> bool:
        try:
            route = await self._route(tenant, deployment)
            services = await self._services(tenant, deployment)
            requests = await self._requests(deployment, replica)
        except Unavailable:
            return False
        if route is None:
            return requests == 0
        for backend in _table(route, tenant, deployment, services).backends:
            if backend.replica == replica and _weights((backend,))[0] > 0:
                raise Conflict(f"replica {replica} is active", hint="drain it first")
        return requests == 0 and _is_taken_over(route)

    async def _route(self, tenant: str, deployment: str) -> dict[str, Any] | None:
        found = await self._api.list(HTTP_ROUTE, selected(tenant, deployment))
        if len(found) > 1:
            names = ", ".join(str(one["metadata"]["name"]) for one in found)
            raise Rejected(
                f"{tenant}/{deployment} has several HTTPRoutes: {names}", hint="keep one of them"
            )
        return found[0] if found else None

    async def _services(self, tenant: str, deployment: str) -> dict[ReplicaId, Object]:
        found = await self._api.list(SERVICE, selected(tenant, deployment))
        return {
            replica: one
            for one in found
            if (replica := labels_of(one).get(LABEL_REPLICA)) is not None
        }

    def _fresh(self, table: RouteTable, refs: list[dict[str, Any]]) -> dict[str, Any]:
        gateway = self._gateway
        parent = {"name": gateway.name, "namespace": gateway.namespace}
        parent["sectionName"] = gateway.section
        hostnames = list(gateway.hostnames.get(table.deployment, ()))
        return {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {
                "name": _name(table),
                "namespace": self._api.namespace,
                "labels": {
                    **selected(table.tenant, table.deployment),
                    LABEL_MANAGER: "optiinfra",
                },
                "annotations": {_KEPT: _Kept(table=table, generation=1).model_dump_json()},
            },
            "spec": {
                "parentRefs": [{name: value for name, value in parent.items() if value}],
                **({"hostnames": hostnames} if hostnames else {}),
                "rules": [{"backendRefs": refs}],
            },
        }


def _name(table: RouteTable) -> str:
    """Its own for each deployment of each tenant."""
    token = derived_id("route", table.tenant, table.deployment)
    return object_name(replica_name(table.deployment, token))


def _weights(backends: Sequence[Backend]) -> list[int]:
    """Whole numbers in the proportion of the weights; what takes requests never becomes 0."""
    weights = [one.weight if one.state is BackendState.ACTIVE else 0.0 for one in backends]
    largest = max(weights, default=0.0)
    return [max(1, round(_FULL * one / largest)) if one > 0 else 0 for one in weights]


def _refs(
    backends: Sequence[Backend], services: Mapping[ReplicaId, Object]
) -> list[dict[str, Any]]:
    """The backends of a rule, spelt out as the API stores them."""
    if len(backends) > MOST_BACKENDS:
        raise Rejected(
            f"{len(backends)} replicas are more than one rule of an HTTPRoute takes",
            hint=f"use at most {MOST_BACKENDS}, or OptiInfra's own gateway",
        )
    weighted = list(zip([one.replica for one in backends], _weights(backends), strict=True))
    missing = [replica for replica, weight in weighted if weight and replica not in services]
    if missing:
        raise Rejected(f"no Service is before {', '.join(missing)}")
    return [
        {
            "group": "",
            "kind": "Service",
            "name": services[replica]["metadata"]["name"],
            "port": services[replica]["spec"]["ports"][0]["port"],
            "weight": weight,
        }
        for replica, weight in weighted
        if replica in services
    ]


def _changed(route: Object, table: RouteTable, refs: list[dict[str, Any]]) -> dict[str, Any]:
    """The route as it was read, with other backends: its resourceVersion guards the write."""
    metadata, spec = route["metadata"], route["spec"]
    first, *rest = spec["rules"]
    moved = 0 if first.get("backendRefs", []) == refs else 1
    kept = _Kept(table=table, generation=metadata["generation"] + moved)
    annotations = {**(metadata.get("annotations") or {}), _KEPT: kept.model_dump_json()}
    return {
        **route,
        "metadata": {**metadata, "annotations": annotations},
        "spec": {**spec, "rules": [{**first, "backendRefs": refs}, *rest]},
    }


def _kept(route: Object) -> _Kept:
    text = (route["metadata"].get("annotations") or {}).get(_KEPT)
    try:
        return _Kept.model_validate_json(text) if text is not None else _Kept()
    except ValidationError as error:
        raise Rejected(
            f"annotation {_KEPT} of HTTPRoute {route['metadata']['name']} is unreadable",
            hint="remove the annotation",
        ) from error


def _version(route: Object) -> int:
    """Ours, and one more for each change by somebody else since."""
    kept = _kept(route)
    version = kept.table.version if kept.table is not None else 0
    since: int = route["metadata"]["generation"] - kept.generation
    return version + since


def _table(
    route: Object, tenant: str, deployment: str, services: Mapping[ReplicaId, Object]
) -> RouteTable:
    """What is in force: the table as it was put, or what somebody else has made of it."""
    kept, version = _kept(route).table, _version(route)
    refs = route["spec"]["rules"][0].get("backendRefs", [])
    weights = [(_replica_of(ref, services), ref.get("weight", 1)) for ref in refs]
    if kept is not None and _is_what_was_put(kept, dict(weights)):
        return kept.model_copy(update={"version": version})
    return RouteTable(
        tenant=tenant,
        deployment=deployment,
        model=kept.model if kept is not None else "",
        version=version,
        backends=tuple(
            Backend(replica=replica, url=_url_of(replica, services), weight=weight)
            for replica, weight in weights
        ),
    )


def _is_what_was_put(kept: RouteTable, weights: Mapping[ReplicaId, int]) -> bool:
    """Whether the same backends get the same parts; one that gets nothing may be left out."""
    put = {one.replica: w for one, w in zip(kept.backends, _weights(kept.backends), strict=True)}
    taking = {replica: weight for replica, weight in weights.items() if weight > 0}
    return weights.keys() <= put.keys() and taking == {r: w for r, w in put.items() if w > 0}


def _replica_of(ref: Object, services: Mapping[ReplicaId, Object]) -> ReplicaId:
    """Whose Service a backend is; the Service's own name when it is none of ours."""
    name: str = ref["name"]
    return next((r for r, one in services.items() if one["metadata"]["name"] == name), name)


def _url_of(replica: ReplicaId, services: Mapping[ReplicaId, Object]) -> str:
    service = services.get(replica)
    return service_url(service) or "" if service is not None else ""


def _accepted(route: Object) -> list[Object]:
    """What each gateway has said of taking the route."""
    return [
        condition
        for parent in (route.get("status") or {}).get("parents", [])
        for condition in parent.get("conditions", [])
        if condition["type"] == "Accepted"
    ]


def _refusal(route: Object) -> str | None:
    """Why a gateway does not take the route; None while none has said so of this generation."""
    for condition in _accepted(route):
        current = condition.get("observedGeneration") == route["metadata"]["generation"]
        if current and condition["status"] == "False":
            return str(condition.get("message") or condition["reason"])
    return None


def _is_taken_over(route: Object) -> bool:
    """Whether every gateway that has the route says that it has taken this generation."""
    said = _accepted(route)
    generation = route["metadata"]["generation"]
    return bool(said) and all(
        one["status"] == "True" and one.get("observedGeneration") == generation for one in said
    )
