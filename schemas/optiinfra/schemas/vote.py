"""A safety vote with the evidence it stands on."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import ChangeId, Token
from optiinfra.schemas.telemetry import Reading, Unit


class AgentName(StrEnum):
    COST = "cost"
    PERFORMANCE = "performance"
    RESOURCE = "resource"
    APPLICATION = "application"


VOTERS = frozenset({AgentName.PERFORMANCE, AgentName.RESOURCE, AgentName.APPLICATION})
"""Whose approval every change needs."""


class Verdict(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    ABSTAIN = "abstain"


class Evidence(Value):
    """One measured or forecast quantity that a decision rests on."""

    name: str
    unit: Unit
    reading: Reading
    threshold: float | None = None
    window_s: float | None = None
    samples: int | None = Field(default=None, ge=0)
    source: str


class Vote(Value):
    """One agent's answer in one round; abstain says "I cannot tell", never yes."""

    change: ChangeId
    agent: Token
    round: int = Field(ge=1)
    verdict: Verdict
    reasons: tuple[str, ...] = Field(min_length=1)
    conditions: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    cast_at: AwareDatetime
