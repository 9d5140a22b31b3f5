"""Which replicas a deployment has, as the agents that watch it need to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from optiinfra.schemas.deployment import Replica, ReplicaState

_ANSWERING = frozenset({ReplicaState.SERVING, ReplicaState.DRAINING, ReplicaState.UNKNOWN})


class ReplicaSource(Protocol):
    """The part of an actuator that only looks. Raises `Unavailable` when it cannot."""

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]: ...


def serving(replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    """Those that take requests."""
    return tuple(one for one in replicas if one.state is ReplicaState.SERVING)


def scrapable(replicas: Sequence[Replica]) -> tuple[Replica, ...]:
    """Those that ought to answer a scrape; one still starting is not expected to."""
    return tuple(one for one in replicas if one.state in _ANSWERING)
