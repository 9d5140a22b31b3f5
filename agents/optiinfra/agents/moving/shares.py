"""Route tables that give the new replicas a share of the traffic, and take it back; pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from optiinfra.schemas.deployment import Replica
from optiinfra.schemas.routing import Backend, BackendState, RouteTable

Backends = tuple[Backend, ...]


def replicas_needed(share: float, replaced: int) -> int:
    """New replicas that carry `share` of the traffic of `replaced` old ones: ⌈share x replaced⌉.

    Each then carries at most what an old one did.
    """
    return min(replaced, math.ceil(round(share * replaced, 9)))


def staged(
    captured: RouteTable,
    current: RouteTable,
    old: Collection[str],
    *,
    canaries: Sequence[Replica],
    share: float,
    gone: Collection[str] = (),
) -> Backends:
    """`current` with `share` of the old replicas' traffic on the canaries and the rest on the old.

    Replicas that the change does not touch keep their weights, so with none of them the canaries
    get exactly `share` of all traffic. An old replica that is draining stays so, one that is gone
    is left out.
    """
    before = {backend.replica: backend for backend in captured.backends}
    left_out = {canary.id for canary in canaries} | set(gone)
    kept = tuple(
        _old(backend, before.get(backend.replica, backend), share)
        if backend.replica in old
        else backend
        for backend in current.backends
        if backend.replica not in left_out
    )
    each = share * _weight_of(captured, old) / len(canaries)
    return kept + tuple(
        Backend(replica=canary.id, url=canary.url, weight=each) for canary in canaries if canary.url
    )


def draining(current: RouteTable, replicas: Collection[str]) -> Backends:
    """`current` with no new request for `replicas`."""
    return tuple(
        _drained(backend) if backend.replica in replicas else backend
        for backend in current.backends
    )


def without(current: RouteTable, replicas: Collection[str]) -> Backends:
    return tuple(backend for backend in current.backends if backend.replica not in replicas)


def restored(
    captured: RouteTable, current: RouteTable, live: Collection[str], canaries: Collection[str]
) -> Backends:
    """The captured backends that still live, as they were; canaries that are routed drain.

    A canary that was routed before the change stays as it was captured, and so does a backend that
    somebody else has added since.
    """
    before = tuple(backend for backend in captured.backends if backend.replica in live)
    known = {backend.replica for backend in captured.backends}
    since = [backend for backend in current.backends if backend.replica not in known]
    return before + tuple(
        _drained(backend) if backend.replica in canaries else backend for backend in since
    )


def carries_traffic(table: RouteTable, besides: Collection[str]) -> bool:
    """Whether a replica other than `besides` takes new requests."""
    return any(
        backend.state is BackendState.ACTIVE and backend.weight > 0
        for backend in table.backends
        if backend.replica not in besides
    )


def _old(backend: Backend, before: Backend, share: float) -> Backend:
    if backend.state is BackendState.DRAINING:
        return _drained(backend)
    return backend.model_copy(update={"weight": before.weight * (1 - share)})


def _drained(backend: Backend) -> Backend:
    return backend.model_copy(update={"weight": 0.0, "state": BackendState.DRAINING})


def _weight_of(captured: RouteTable, old: Collection[str]) -> float:
    """The weight that the old replicas had together; theirs by count when they had none."""
    had = math.fsum(backend.weight for backend in captured.backends if backend.replica in old)
    if had > 0:
        return had
    others = [backend.weight for backend in captured.backends if backend.replica not in old]
    positive = [weight for weight in others if weight > 0]
    return len(old) * (math.fsum(positive) / len(positive) if positive else 1.0)
