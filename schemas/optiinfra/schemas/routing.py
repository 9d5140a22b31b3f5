"""How the gateway splits a deployment's traffic."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import DeploymentId, ReplicaId, TenantId


class BackendState(StrEnum):
    ACTIVE = "active"
    DRAINING = "draining"
    """Gets no new request; what it has begun is finished."""


class Backend(Value):
    """A replica as the gateway sees it; weights are relative."""

    replica: ReplicaId
    url: str
    weight: float = Field(ge=0, allow_inf_nan=False)
    state: BackendState = BackendState.ACTIVE


class RouteTable(Value):
    """The routes of one deployment; `version` is the fence that a writer must present."""

    tenant: TenantId
    deployment: DeploymentId
    model: str
    version: int = Field(default=0, ge=0)
    backends: tuple[Backend, ...] = ()

    @model_validator(mode="after")
    def _replicas_are_unique(self) -> Self:
        names = [backend.replica for backend in self.backends]
        if len(names) != len(set(names)):
            raise ValueError("a replica stands twice in the route table")
        return self


class BackendCounters(Value):
    """What the gateway has seen of one replica since it knows it."""

    replica: ReplicaId
    in_flight: int = Field(ge=0)
    served: int = Field(ge=0)
    failed: int = Field(ge=0)
    truncated: int = Field(ge=0)


class RouteStatus(Value):
    """Routes in force together with the counters, for reading back."""

    table: RouteTable
    counters: tuple[BackendCounters, ...] = ()
