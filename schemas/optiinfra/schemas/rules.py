"""The policy that people write: who approves what, how long things may take, what is allowed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Market
from optiinfra.schemas.ids import DeploymentId
from optiinfra.schemas.recommendation import (
    APPROVAL_EXPIRY_S,
    IRREVERSIBLE_KINDS,
    Recommendation,
    Risk,
)


class ApprovalRule(Value):
    """Approves by policy when every given field matches; the first matching rule decides."""

    name: str
    kinds: tuple[str, ...] = ()
    deployments: tuple[DeploymentId, ...] = ()
    max_risk: Risk = Risk.LOW
    decision: Literal["approve", "ask"] = "approve"

    def matches(self, proposal: Recommendation) -> bool:
        return (
            (not self.kinds or proposal.spec.kind in self.kinds)
            and (not self.deployments or proposal.deployment in self.deployments)
            and proposal.risk.rank <= self.max_risk.rank
        )


class Rules(Value):
    """The policy file; defaults hold what `optiinfra config show` prints."""

    version: str = "default"
    vote_deadline_s: float = Field(default=60.0, gt=0)
    urgent_vote_deadline_s: float = Field(default=10.0, gt=0)
    max_vote_rounds: int = Field(default=3, ge=1)
    revote_after_s: float = Field(default=30.0, gt=0)
    votes_valid_s: float = Field(default=900.0, gt=0)
    """After this the evidence is stale: an approval that comes later has the votes cast again."""
    retry_turn_s: float = Field(default=60.0, gt=0)
    """How often a deferred change looks again; what becomes free wakes it at once."""
    gate_answer_s: float = Field(default=20.0, gt=0)
    approval_expiry_s: dict[Risk, float] = Field(default_factory=lambda: dict(APPROVAL_EXPIRY_S))
    approvals: tuple[ApprovalRule, ...] = ()
    movers_per_hour: int = Field(default=10, ge=1)
    max_moving: int = Field(default=1, ge=1)
    rollback_timeout_s: float = Field(default=900.0, gt=0)
    fallback_market: Market = Market.ON_DEMAND

    def automatic(self, proposal: Recommendation) -> ApprovalRule | None:
        """The rule that approves `proposal` without asking a person, if one does."""
        if proposal.spec.kind in IRREVERSIBLE_KINDS:
            return None
        for rule in self.approvals:
            if rule.matches(proposal):
                return rule if rule.decision == "approve" else None
        return None
