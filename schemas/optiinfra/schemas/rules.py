"""The policy that people write: who approves what, how long things may take, what is allowed."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from functools import cached_property
from typing import Any, Self

from pydantic import Field, model_validator

from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.approval_rules import RuleName as PolicyName
from optiinfra.schemas.arbitration import Arbitration
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Market
from optiinfra.schemas.floors import Floor
from optiinfra.schemas.freezes import FreezeWindow
from optiinfra.schemas.recommendation import APPROVAL_EXPIRY_S, Recommendation, Risk


class Rules(Value):
    """The policy file; defaults hold what `optiinfra config show` prints."""

    name: PolicyName = Field(
        default="default", description="your name for it; it begins the version"
    )
    vote_deadline_s: float = Field(
        default=60.0, gt=0, description="a vote that is missing after this is a veto, s"
    )
    urgent_vote_deadline_s: float = Field(
        default=10.0, gt=0, description="the same while a spot machine is being reclaimed, s"
    )
    max_vote_rounds: int = Field(
        default=3, ge=1, description="how often agents that abstain are asked, all in all"
    )
    revote_after_s: float = Field(
        default=30.0, gt=0, description="wait before they are asked again, s"
    )
    votes_valid_s: float = Field(
        default=900.0,
        gt=0,
        description="an approval that comes later has the votes cast again, s",
    )
    retry_turn_s: float = Field(
        default=60.0,
        gt=0,
        description="how often a deferred change looks again, s; what becomes free wakes it",
    )
    gate_answer_s: float = Field(
        default=20.0,
        gt=0,
        description="a gate's assessor that is silent for longer counts as unknown, s",
    )
    approval_expiry_s: dict[Risk, float] = Field(
        default_factory=lambda: dict(APPROVAL_EXPIRY_S),
        description="how long people are waited for, by risk, s",
    )
    approvals: tuple[ApprovalRule, ...] = Field(
        default=(),
        description="who approves; the first rule that matches decides, else a person is asked",
    )
    four_eyes_from: Risk | None = Field(
        default=None,
        description="from this risk on two different people must approve, whatever a rule says;"
        " none: one is enough",
    )
    freezes: tuple[FreezeWindow, ...] = Field(
        default=(), description="times in which no change begins"
    )
    floors: tuple[Floor, ...] = Field(
        default=(), description="bounds of quality and latency that votes and gates must keep"
    )
    arbitration: Arbitration = Field(
        default_factory=Arbitration, description="who goes first when changes want the same"
    )
    movers_per_hour: int | None = Field(
        default=10,
        ge=1,
        description="changes that may begin to move in any 60 minutes; none: no limit",
    )
    movers_per_hour_per_target: int | None = Field(
        default=None, ge=1, description="the same for one deployment; none: no limit of its own"
    )
    max_moving: int = Field(
        default=1,
        ge=1,
        description="changes that may be under way at once; on one deployment always one",
    )
    rollback_timeout_s: float = Field(
        default=900.0, gt=0, description="an undo that takes longer calls a person, s"
    )
    fallback_market: Market = Field(
        default=Market.ON_DEMAND, description="where to buy when spot has none"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_named_before(cls, content: Any) -> Any:
        """Files of the first release call the name `version`."""
        if isinstance(content, dict) and "version" in content and "name" not in content:
            return {"name" if key == "version" else key: one for key, one in content.items()}
        return content

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for key in ("approvals", "freezes", "floors"):
            names = [one.name for one in getattr(self, key)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key}: the name {twice[0]!r} stands twice; rename one")
        return self

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the canonical JSON (sorted keys, no spaces) of the whole policy."""
        return digest_of(self.model_dump(mode="json"))

    @cached_property
    def version(self) -> str:
        """`<name>@<12 hex digits>`: it names the content, so that no two policies share it."""
        return f"{self.name}@{self.sha256[:12]}"

    def model_copy(self, *, update: Any = None, deep: bool = False) -> Self:
        """A copy; what is derived from the content is derived anew."""
        copied = super().model_copy(update=update, deep=deep)
        for derived in ("sha256", "version"):
            copied.__dict__.pop(derived, None)
        return copied

    @property
    def limits_movers(self) -> bool:
        """Whether it matters how many changes have begun to move lately."""
        return self.movers_per_hour is not None or self.movers_per_hour_per_target is not None

    def needed(self, proposal: Recommendation) -> int:
        """How many different people must at least say yes where people are asked."""
        strict = self.four_eyes_from
        return 2 if strict is not None and proposal.risk.rank >= strict.rank else 1

    def rule_for(self, proposal: Recommendation, at: datetime) -> ApprovalRule | None:
        """The first rule that is about `proposal` at that time, whatever it decides."""
        return next((rule for rule in self.approvals if rule.matches(proposal, at)), None)


def digest_of(policy: dict[str, Any]) -> str:
    """SHA-256 over canonical JSON, as 64 hex digits."""
    canonical = json.dumps(policy, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
