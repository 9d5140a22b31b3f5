"""Facts that belong to a whole tenant: who is there, the stop switch, the policy in force."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field, JsonValue

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import TenantId, Token


class AgentStatus(StrEnum):
    ALIVE = "alive"
    LOST = "lost"


class AgentRegistered(Value):
    kind: Literal["agent.registered"] = "agent.registered"
    tenant: TenantId
    agent: Token
    instance: str
    version: str
    capabilities: tuple[str, ...]
    at: AwareDatetime


class AgentHeartbeat(Value):
    """Not kept: sent on a plain subject every few seconds."""

    kind: Literal["agent.heartbeat"] = "agent.heartbeat"
    tenant: TenantId
    agent: Token
    instance: str
    version: str
    capabilities: tuple[str, ...]
    busy_with: str | None = None
    handled: int = Field(default=0, ge=0)
    failed: int = Field(default=0, ge=0)
    at: AwareDatetime


class AgentLost(Value):
    kind: Literal["agent.lost"] = "agent.lost"
    tenant: TenantId
    agent: Token
    instance: str
    last_seen_at: AwareDatetime


class SwitchTurned(Value):
    """The stop switch: off halts every new stage; rollbacks still run."""

    kind: Literal["switch.turned"] = "switch.turned"
    tenant: TenantId
    stopped: bool
    by: str
    reason: str
    at: AwareDatetime


class PolicyChanged(Value):
    """From here on another policy is in force; said before any decision is made under it.

    `policy` is the whole of it; `sha256` covers its canonical JSON (sorted keys, no spaces).
    `number` counts the tenant's policies, `written_at` is when its file was written.
    """

    kind: Literal["policy.changed"] = "policy.changed"
    tenant: TenantId
    number: int = Field(ge=1)
    version: str
    previous: str | None = None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    policy: dict[str, JsonValue]
    by: str
    written_at: AwareDatetime
    at: AwareDatetime
