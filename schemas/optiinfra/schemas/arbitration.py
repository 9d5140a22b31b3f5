"""What the policy says about changes that want the same thing: order, dependencies, patience."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self, get_args

from pydantic import AfterValidator, Field, JsonValue, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import DeploymentId
from optiinfra.schemas.recommendation import ChangeSpec, Recommendation
from optiinfra.schemas.vote import AgentName


class Interest(StrEnum):
    """Whose good a change is for."""

    CUSTOMER = "customer"
    PERFORMANCE = "performance"
    COST = "cost"


INTEREST_OF: Mapping[AgentName, Interest] = {
    AgentName.APPLICATION: Interest.CUSTOMER,
    AgentName.PERFORMANCE: Interest.PERFORMANCE,
    AgentName.RESOURCE: Interest.PERFORMANCE,
    AgentName.COST: Interest.COST,
}
"""In whose interest an agent proposes, where the policy says nothing about the kind."""

KINDS: tuple[str, ...] = tuple(
    spec.model_fields["kind"].default for spec in get_args(get_args(ChangeSpec)[0])
)


def _is_kind(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"no change is of kind {name!r}; there are {', '.join(KINDS)}")
    return name


Kind = Annotated[
    str, AfterValidator(_is_kind), Field(json_schema_extra={"enum": list[JsonValue](KINDS)})
]


class Budget(Value):
    """What may be under way at once over several deployments."""

    name: str = Field(min_length=1, description="stands in the reason")
    deployments: tuple[DeploymentId, ...] = Field(default=(), description="none means all")
    max_moving: int | None = Field(
        default=None, ge=1, description="changes that may be under way at once"
    )
    max_usd_per_hour: float | None = Field(
        default=None,
        gt=0,
        description="what the targets of changes under way may cost together, $ an hour; a change"
        " whose target has no known price does not begin under it",
    )

    def covers(self, deployment: str) -> bool:
        return not self.deployments or deployment in self.deployments


class Arbitration(Value):
    """Who goes first, and which deployments are one target."""

    order: tuple[Interest, ...] = Field(
        default=tuple(Interest), description="whose good goes first; each interest once"
    )
    interests: dict[Kind, Interest] = Field(
        default_factory=dict,
        description="whose good a kind of change is for, where not its proposer's",
    )
    needs: dict[DeploymentId, tuple[DeploymentId, ...]] = Field(
        default_factory=dict,
        description="the deployments that one needs: they do not change while it does",
    )
    max_wait_s: float = Field(
        default=21_600.0,
        gt=0,
        description="a change that waits for longer goes before all that are not urgent, s",
    )

    max_preemptions: int = Field(
        default=3,
        ge=0,
        description="how often a change that is being decided gives way to a better one",
    )
    budgets: tuple[Budget, ...] = Field(
        default=(), description="what may be under way at once over several deployments"
    )

    @model_validator(mode="after")
    def _names_each_interest_once(self) -> Self:
        if sorted(self.order) != sorted(Interest):
            raise ValueError(f"order must name each of {', '.join(Interest)} once")
        return self

    def interest(self, proposal: Recommendation) -> Interest:
        return self.interests.get(proposal.spec.kind, INTEREST_OF[proposal.proposer])

    def claims(self, deployment: str) -> frozenset[str]:
        """What a change on the deployment has for itself: that, and what it needs directly."""
        return frozenset({deployment, *self.needs.get(deployment, ())})

    def overlap(self, one: str, other: str) -> bool:
        """Whether changes on these two deployments may not be carried out at the same time."""
        if one == other or not self.needs:
            return one == other
        return not self.claims(one).isdisjoint(self.claims(other))

    def shared(self, one: str, other: str) -> str | None:
        """The first deployment by name that two different ones both claim; None without one."""
        both = self.claims(one) & self.claims(other)
        return min(both) if both and one != other else None
