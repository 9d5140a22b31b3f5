"""Which proposals a rule is about, and whether they are approved, asked for or refused."""

from __future__ import annotations

from datetime import datetime
from difflib import get_close_matches
from enum import StrEnum
from typing import Annotated, Self, get_args

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import DeploymentId
from optiinfra.schemas.recommendation import ChangeSpec, Recommendation, Risk
from optiinfra.schemas.windows import WeeklyWindow

KINDS: tuple[str, ...] = tuple(
    str(spec.model_fields["kind"].default) for spec in get_args(get_args(ChangeSpec)[0])
)
"""Every kind of change that can be proposed."""


def _is_kind(name: str) -> str:
    if name in KINDS:
        return name
    near = get_close_matches(name, KINDS, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KINDS)}"
    raise ValueError(f"there is no kind of change {name!r}; {meant}")


Kind = Annotated[
    str, AfterValidator(_is_kind), Field(json_schema_extra={"enum": list[JsonValue](KINDS)})
]
RuleName = Annotated[str, StringConstraints(pattern=r"^[^@\s]{1,63}$")]
"""It stands before an `@` in the approvals by policy."""


class Part(Value):
    """A named part of the policy, and what it is about; nothing listed means everything."""

    name: RuleName = Field(description="your name for it; it stands in reasons and approvals")
    kinds: tuple[Kind, ...] = Field(default=(), description="kinds of change; none means all")
    deployments: tuple[DeploymentId, ...] = Field(default=(), description="none means all")

    def covers(self, proposal: Recommendation) -> bool:
        """Whether kind and deployment of the proposal are meant."""
        return (not self.kinds or proposal.spec.kind in self.kinds) and (
            not self.deployments or proposal.deployment in self.deployments
        )

    def includes(self, other: Part) -> bool:
        """Whether everything that `other` is about is meant here too."""
        pairs = ((self.kinds, other.kinds), (self.deployments, other.deployments))
        return all(not mine or (theirs and set(theirs) <= set(mine)) for mine, theirs in pairs)


class Decision(StrEnum):
    """What a rule says; `ask_two` wants two different people, `deny` refuses without votes."""

    APPROVE = "approve"
    ASK = "ask"
    ASK_TWO = "ask_two"
    DENY = "deny"


class ApprovalRule(Part):
    """One rule: the first whose every given condition matches decides.

    Its limits do not pass the proposal on to the next rule: beyond them a person is asked.
    """

    min_risk: Risk = Field(default=Risk.LOW, description="the lowest risk that it is about")
    max_risk: Risk | None = Field(
        default=None,
        description="the highest; left out, `low` for `approve` and `critical` for the others",
    )
    when: tuple[WeeklyWindow, ...] = Field(
        default=(), description="hours of the week in which it counts; none means always"
    )
    max_added_usd_per_month: float | None = Field(
        default=None,
        ge=0,
        description="`approve` only up to this added cost, at the costly end of the forecast;"
        " beyond it, or where no forecast is given, a person is asked",
    )
    max_change_usd_per_month: float | None = Field(
        default=None,
        ge=0,
        description="`approve` only up to this forecast change of cost, either way; the same",
    )
    max_per_hour: int | None = Field(
        default=None, ge=1, description="how many the rule approves in any 60 minutes"
    )
    max_per_day: int | None = Field(
        default=None, ge=1, description="how many the rule approves in any 24 hours"
    )
    decision: Decision = Field(
        default=Decision.APPROVE,
        description="`approve`; `ask` a person; `ask_two` different people; `deny`",
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.min_risk.rank > self.highest_risk.rank:
            raise ValueError(
                f"min_risk {self.min_risk} is above max_risk {self.highest_risk}; raise max_risk"
            )
        if self.limits and self.decision is not Decision.APPROVE:
            raise ValueError(f"{self.limits[0]} limits approvals, but decision is {self.decision}")
        return self

    @property
    def highest_risk(self) -> Risk:
        if self.max_risk is not None:
            return self.max_risk
        return Risk.LOW if self.decision is Decision.APPROVE else Risk.CRITICAL

    @property
    def limits(self) -> tuple[str, ...]:
        """The keys of the limits that are set."""
        keys = (
            "max_added_usd_per_month",
            "max_change_usd_per_month",
            "max_per_hour",
            "max_per_day",
        )
        return tuple(key for key in keys if getattr(self, key) is not None)

    @property
    def counts(self) -> bool:
        """Whether it must be known how often the rule has approved."""
        return self.max_per_hour is not None or self.max_per_day is not None

    def matches(self, proposal: Recommendation, at: datetime) -> bool:
        """Whether the rule is about `proposal` at the time `at` (with a zone)."""
        return (
            self.covers(proposal)
            and self.min_risk.rank <= proposal.risk.rank <= self.highest_risk.rank
            and (not self.when or any(window.contains(at) for window in self.when))
        )

    def swallows(self, later: ApprovalRule) -> bool:
        """Whether a rule that comes later can never match because this one always does first."""
        return (
            self.includes(later)
            and self.min_risk.rank <= later.min_risk.rank
            and later.highest_risk.rank <= self.highest_risk.rank
            and (not self.when or self.when == later.when)
        )

    def exceeded(self, proposal: Recommendation) -> str | None:
        """Which limit in dollars the proposal is beyond, in words; None when it is within."""
        saving = proposal.saving_usd_per_month
        added, change = self.max_added_usd_per_month, self.max_change_usd_per_month
        if added is None and change is None:
            return None
        if saving is None:
            return "its change of cost is not forecast"
        if added is not None and -saving.low > added:
            return f"it may add ${-saving.low:,.2f} a month, the limit is ${added:,.2f}"
        largest = max(abs(saving.low), abs(saving.high))
        if change is not None and largest > change:
            return f"it may change cost by ${largest:,.2f} a month, the limit is ${change:,.2f}"
        return None
