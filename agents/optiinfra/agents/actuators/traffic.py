"""Moves traffic between replicas through the gateway's admin plane, and waits for drains."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import AwareDatetime, ValidationError

from optiinfra.agents.actuators.port import Traffic
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Conflict, Denied, NotFound, Rejected, Unavailable
from optiinfra.schemas.ids import DeploymentId, ReplicaId, TenantId
from optiinfra.schemas.routing import Backend, BackendState, RouteStatus, RouteTable

T = TypeVar("T", bound=Value)
Backends = tuple[Backend, ...]

_CAS_TRIES = 5
_POLL_S = 0.1


class RoutesMoved(Conflict):
    """Someone else wrote first; the routes are at `current_version` now."""

    def __init__(self, message: str, current_version: int) -> None:
        super().__init__(message, hint="read the routes again and decide anew")
        self.current_version = current_version


class LatencyCounts(Value):
    """Requests per latency bucket (the bounds are `TrafficCounters.bounds_s`, the last is open)."""

    counts: tuple[int, ...]
    sum_s: float


class Outcomes(Value):
    """How requests ended; `retried` counts attempts that another replica took over."""

    served: int
    failed: int
    truncated: int
    cancelled: int
    rejected: int
    retried: int
    in_flight: int


class ReplicaTraffic(Outcomes):
    replica: ReplicaId
    latency: dict[str, LatencyCounts]
    """By kind: ttft, tpot, e2e, added."""


class DeploymentTraffic(Outcomes):
    """All replicas together, with what reached none of them."""

    tenant: TenantId
    deployment: DeploymentId
    replicas: tuple[ReplicaTraffic, ...]


class SampleCounts(Value):
    delivered: int
    dropped: int
    oversized: int
    waiting: int


class TrafficCounters(Value):
    """What the gateway counted from `since` to `at`."""

    at: AwareDatetime
    since: AwareDatetime
    bounds_s: tuple[float, ...]
    totals: Outcomes
    deployments: tuple[DeploymentTraffic, ...]
    samples: SampleCounts

    def quantile_s(
        self, kind: str, q: float, replicas: set[ReplicaId] | None = None
    ) -> float | None:
        """The q-quantile (0 < q <= 1) of a latency kind over the named replicas, or all.

        Interpolated within its bucket (buckets are 26 % wide); None, *unknown*, without requests
        or when it lies beyond the last bound.
        """
        rows = [
            row.latency[kind].counts
            for deployment in self.deployments
            for row in deployment.replicas
            if replicas is None or row.replica in replicas
        ]
        below: list[int] = list(accumulate(sum(column) for column in zip(*rows, strict=True)))
        if not below or not below[-1]:
            return None
        rank = q * below[-1]
        at = bisect_left(below, rank)
        if at >= len(self.bounds_s):
            return None
        lower_s: float = self.bounds_s[at - 1] if at else 0.0
        before: int = below[at - 1] if at else 0
        share: float = (rank - before) / (below[at] - before)
        return lower_s + share * (self.bounds_s[at] - lower_s)


async def rewritten(
    traffic: Traffic,
    tenant: TenantId,
    deployment: DeploymentId,
    change: Callable[[Backends], Backends],
) -> RouteStatus:
    """Reads, applies `change`, writes; again on fresh routes when another writer was first.

    Writes nothing when nothing changes. Raises `RoutesMoved` after five lost races.
    """
    tries_left = _CAS_TRIES
    while True:
        status = await traffic.status(tenant, deployment)
        backends = change(status.table.backends)
        if backends == status.table.backends:
            return status
        fresh = {"version": status.table.version + 1, "backends": backends}
        try:
            return await traffic.put(status.table.model_copy(update=fresh))
        except RoutesMoved:
            tries_left -= 1
            if not tries_left:
                raise


class GatewayTraffic:
    """Client of one gateway; close it, or use it as an async context.

    Every method raises `Unavailable` when the gateway cannot be reached, `Denied` when the token
    is wrong, `NotFound` when the deployment has no routes, `Rejected` when a table is invalid.
    """

    def __init__(
        self,
        admin_url: str,
        token: str,
        *,
        timeout_s: float = 5.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`Rejected` without a token; `transport` replaces the network."""
        if not token.strip() or not token.isprintable():
            raise Rejected(
                "the gateway's admin token is empty or not printable",
                hint="set the gateway's token",
            )
        self._http = httpx.AsyncClient(
            base_url=admin_url,
            headers={b"Authorization": f"Bearer {token}".encode()},
            timeout=timeout_s,
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def status(self, tenant: TenantId, deployment: DeploymentId) -> RouteStatus:
        """The routes in force and the counters of every replica ever met."""
        answer = await self._send("GET", _path(tenant, deployment))
        return _parsed(RouteStatus, answer)

    async def put(self, table: RouteTable) -> RouteStatus:
        """Bring `table` into force; `RoutesMoved` unless its version is the next one."""
        path = _path(table.tenant, table.deployment)
        answer = await self._send("PUT", path, content=table.model_dump_json())
        return _parsed(RouteStatus, answer)

    async def delete(
        self, tenant: TenantId, deployment: DeploymentId, version: int | None = None
    ) -> None:
        """Remove the routes (only at `version`, if given); what is in flight goes on."""
        params = {} if version is None else {"version": str(version)}
        await self._send("DELETE", _path(tenant, deployment), params=params)

    async def counters(self, since: datetime | None = None) -> TrafficCounters:
        """Counts from about `since` (aware; to a few seconds; the gateway's start when None)."""
        params = {} if since is None else {"since": since.isoformat()}
        return _parsed(TrafficCounters, await self._send("GET", "/admin/counters", params=params))

    async def modify(
        self,
        tenant: TenantId,
        deployment: DeploymentId,
        change: Callable[[Backends], Backends],
    ) -> RouteStatus:
        """Read, apply `change`, write; again on fresh routes when another writer was first.

        Writes nothing when `change` changes nothing, so that repeating a step is harmless.
        `RoutesMoved` after five lost races.
        """
        return await rewritten(self, tenant, deployment, change)

    async def set_backends(
        self, tenant: TenantId, deployment: DeploymentId, backends: Sequence[Backend]
    ) -> RouteStatus:
        """Make `backends` the whole table, whoever wrote in between."""
        return await self.modify(tenant, deployment, lambda _: tuple(backends))

    async def shift(
        self, tenant: TenantId, deployment: DeploymentId, weights: Mapping[ReplicaId, float]
    ) -> RouteStatus:
        """Set the weights of the named replicas and leave all else; `Rejected` if one is absent."""
        return await self.modify(tenant, deployment, lambda old: _weighted(old, weights))

    async def drain(
        self, tenant: TenantId, deployment: DeploymentId, replica: ReplicaId
    ) -> RouteStatus:
        """Give `replica` no new request; `Rejected` if it is absent."""

        def change(backends: Backends) -> Backends:
            _require(backends, {replica})
            return tuple(
                b.model_copy(update={"state": BackendState.DRAINING}) if b.replica == replica else b
                for b in backends
            )

        return await self.modify(tenant, deployment, change)

    async def remove(
        self, tenant: TenantId, deployment: DeploymentId, replica: ReplicaId
    ) -> RouteStatus:
        """Take `replica` out of the table; nothing happens when it is absent already."""
        return await self.modify(
            tenant,
            deployment,
            lambda backends: tuple(b for b in backends if b.replica != replica),
        )

    async def await_drained(
        self, tenant: TenantId, deployment: DeploymentId, replica: ReplicaId, timeout_s: float
    ) -> bool:
        """True once `replica` gets nothing new and has nothing in flight; False on timeout.

        A gateway that cannot be reached is *unknown*, not drained. `Conflict` when the replica
        is active: it would never be empty for good.
        """
        try:
            async with asyncio.timeout(timeout_s):
                # Polls: the event happens in another process.
                while not await self._is_empty(tenant, deployment, replica):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False
        return True

    async def _is_empty(
        self, tenant: TenantId, deployment: DeploymentId, replica: ReplicaId
    ) -> bool:
        try:
            status = await self.status(tenant, deployment)
        except Unavailable:
            return False
        for backend in status.table.backends:
            takes_new = backend.state is BackendState.ACTIVE and backend.weight > 0
            if backend.replica == replica and takes_new:
                raise Conflict(f"replica {replica} is active", hint="drain it first")
        return not any(row.in_flight for row in status.counters if row.replica == replica)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        content: str | None = None,
        params: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, content=content, params=params)
        except httpx.TransportError as error:
            raise Unavailable(
                f"the gateway at {self._http.base_url} cannot be reached: {error!r}",
                hint="check that it runs and that its admin port is the configured one",
            ) from error
        if answer.is_success:
            return answer
        raise _translated(answer)


def _path(tenant: TenantId, deployment: DeploymentId) -> str:
    return f"/admin/routes/{tenant}/{deployment}"


def _weighted(backends: Backends, weights: Mapping[ReplicaId, float]) -> Backends:
    _require(backends, set(weights))
    return tuple(
        Backend.model_validate({**b.model_dump(), "weight": weights.get(b.replica, b.weight)})
        for b in backends
    )


def _require(backends: Backends, replicas: set[ReplicaId]) -> None:
    absent = sorted(replicas - {backend.replica for backend in backends})
    if absent:
        raise Rejected(f"no such replica in the routes: {', '.join(absent)}")


def _parsed(kind: type[T], answer: httpx.Response) -> T:
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as error:
        raise Unavailable(
            f"the answer of {answer.url} is not that of a gateway",
            hint="check the admin url, and that both sides have the same version",
        ) from error


def _translated(answer: httpx.Response) -> Exception:
    """The error of ours that an RFC 9457 problem stands for."""
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    problem = problem if isinstance(problem, dict) else {}
    detail = str(problem.get("detail") or f"the gateway answered {answer.status_code}")
    match answer.status_code:
        case 401 | 403:
            return Denied(detail, hint="use the admin token that the gateway was started with")
        case 404:
            return NotFound(detail)
        case 409:
            return RoutesMoved(detail, int(problem.get("current_version", 0)))
        case status if status < 500:
            return Rejected(detail)
    return Unavailable(detail)
