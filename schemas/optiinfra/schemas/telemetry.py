"""Measurements with a unit, where *unknown* is a value of its own."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import DeploymentId, ReplicaId, TenantId


class Unit(StrEnum):
    SECONDS = "s"
    FRACTION = "fraction"
    COUNT = "count"
    PER_SECOND = "per_s"
    BYTES = "bytes"
    CELSIUS = "celsius"
    WATTS = "watts"
    USD_PER_HOUR = "usd_per_hour"
    SCORE = "score"
    TOKENS = "tokens"


class UnknownReason(StrEnum):
    """Why there is no value; never a reason to assume a healthy one."""

    MISSING = "missing"
    RENAMED = "renamed"
    UNREACHABLE = "unreachable"
    STALE = "stale"
    IMPLAUSIBLE = "implausible"
    NO_TRAFFIC = "no_traffic"
    NOT_SUPPORTED = "not_supported"
    NOT_CONFIGURED = "not_configured"


class Known(Value):
    """A measured value; `error` is the half-width of what the method itself cannot resolve."""

    state: Literal["known"] = "known"
    value: float = Field(allow_inf_nan=False)
    error: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class Unknown(Value):
    """No value, and why."""

    state: Literal["unknown"] = "unknown"
    reason: UnknownReason
    detail: str = ""


Reading = Annotated[Known | Unknown, Field(discriminator="state")]


def is_known(reading: Known | Unknown) -> bool:
    return isinstance(reading, Known)


class Sample(Value):
    """One reading of one metric of one replica (or of the whole deployment) at one time."""

    metric: str
    unit: Unit
    reading: Reading
    at: AwareDatetime
    window_s: float = Field(default=0.0, ge=0)
    replica: ReplicaId | None = None
    labels: dict[str, str] = Field(default_factory=dict)


class Scope(Value):
    """Whose telemetry it is."""

    tenant: TenantId
    deployment: DeploymentId
