"""The ports to what can really alter a target: machines, and the traffic to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from optiinfra.schemas.deployment import Market, Replica
from optiinfra.schemas.ids import derived_id, token
from optiinfra.schemas.recommendation import Placement
from optiinfra.schemas.routing import Backend, RouteStatus, RouteTable
from optiinfra.serving.engines import EngineConfig


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """One replica to be brought up; `token` names the launch: a second one with it is the same."""

    tenant: str
    deployment: str
    model: str
    placement: Placement
    token: str
    like: Replica | None = None
    """A replica whose image, network and start-up script (or configuration) are taken over."""
    tags: Mapping[str, str] = field(default_factory=dict)
    engine: EngineConfig | None = None
    """What the engine is started with; None leaves that to the actuator."""


def replica_name(deployment: str, launch_token: str) -> str:
    """The id of the replica of a launch, the same whenever the launch is."""
    return token(f"{deployment[:50]}-{derived_id(launch_token)[:8]}")


@dataclass(frozen=True, slots=True)
class Launched:
    """`created` is False when a replica with this token was found instead."""

    replica: Replica
    created: bool
    market: Market


class NoCapacity(Exception):
    """The market has no machine of this kind now; another market or zone may."""


class Actuator(Protocol):
    """Machines with engines on them. Every call is idempotent and reads back what it did.

    Errors: `Unavailable` (cannot be reached, or throttled), `Rejected` (never possible: wrong
    type, no permission), `NoCapacity`.
    """

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        """All replicas that exist and are paid for, also those still starting."""
        ...

    async def launch(self, spec: LaunchSpec) -> Launched:
        """Brings up one replica unless one with `spec.token` exists already."""
        ...

    async def replica(self, tenant: str, deployment: str, replica_id: str) -> Replica | None:
        """The replica as the cloud and its own health endpoint say, None when it is gone."""
        ...

    async def terminate(self, tenant: str, deployment: str, replica_id: str) -> bool:
        """Takes the replica away for good; False when it was gone before."""
        ...


class Configurable(Protocol):
    """An actuator that starts engines with a configuration that it is given."""

    def require_launchable(self, model: str, engine: EngineConfig) -> None:
        """Raises `Rejected` when a replica that serves `model` cannot be launched with `engine`."""
        ...

    async def engine(self, tenant: str, deployment: str, replica_id: str) -> EngineConfig | None:
        """What a replica was launched with; None for one that was launched without."""
        ...


class Traffic(Protocol):
    """The gateway's admin plane for one or more deployments.

    Errors: `Conflict` when the table's version is not the next one, `Unavailable`, `Denied`.
    """

    async def status(self, tenant: str, deployment: str) -> RouteStatus: ...

    async def put(self, table: RouteTable) -> RouteStatus: ...

    async def set_backends(
        self, tenant: str, deployment: str, backends: Sequence[Backend]
    ) -> RouteStatus:
        """Read, replace, compare-and-set, again on conflict (a bounded number of times)."""
        ...

    async def await_drained(
        self, tenant: str, deployment: str, replica: str, timeout_s: float
    ) -> bool:
        """Waits until the replica has no request in flight; False when time ran out."""
        ...
