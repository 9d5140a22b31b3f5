"""Commands: what somebody is asked to do, in the imperative; answered by facts."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from optiinfra.events.decided import Decided
from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ControlVerb
from optiinfra.schemas.ids import ChangeId, DeploymentId
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import Arms, Step
from optiinfra.schemas.vote import AgentName


class VoteRequested(Decided):
    """Asks `agents` to vote; sent again to those who are missing at half of the deadline."""

    kind: Literal["vote.requested"] = "vote.requested"
    change: ChangeId
    round: int = Field(ge=1)
    agents: tuple[AgentName, ...] = Field(min_length=1)
    recommendation: Recommendation
    deadline: AwareDatetime


class ExecutionRequested(Decided):
    """Asks `executor` to bring the target to `step`; `fence` is the saga version that says so.

    An executor refuses a fence that is lower than one it has seen for the same target.
    """

    kind: Literal["execution.requested"] = "execution.requested"
    change: ChangeId
    step: Step
    fence: int = Field(ge=1)
    executor: AgentName
    recommendation: Recommendation
    deadline: AwareDatetime


class RollbackRequested(Decided):
    """Asks `executor` to bring the target back to what it captured before its first step."""

    kind: Literal["rollback.requested"] = "rollback.requested"
    change: ChangeId
    fence: int = Field(ge=1)
    executor: AgentName
    recommendation: Recommendation
    reason: str
    deadline: AwareDatetime


class GateRequested(Decided):
    """Look number `look` at a stage: each assessor answers from the evidence up to now."""

    kind: Literal["gate.requested"] = "gate.requested"
    change: ChangeId
    deployment: DeploymentId
    stage: int = Field(ge=0)
    stages: int = Field(ge=1)
    look: int = Field(ge=1)
    assessors: tuple[AgentName, ...]
    arms: Arms
    share: float = Field(gt=0, le=1)
    since: AwareDatetime
    """When this stage came into force."""
    rollout_since: AwareDatetime
    """When the first stage was requested: evidence may accumulate from there, as arms persist."""
    recommendation: Recommendation
    deadline: AwareDatetime


class ControlRequested(Value):
    """An operator's wish for one running change."""

    kind: Literal["control.requested"] = "control.requested"
    change: ChangeId
    verb: ControlVerb
    by: str
    reason: str = ""
