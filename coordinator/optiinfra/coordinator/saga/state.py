"""What is remembered of one change: everything that its next decision needs, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import AwareDatetime, Field

from optiinfra.coordinator.saga.ruling import Ruling
from optiinfra.events.facts import TimerName
from optiinfra.schemas.approval import Approval, Snooze
from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ChangeState, Phase
from optiinfra.schemas.errors import Invariant
from optiinfra.schemas.ids import ChangeId
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import Arms, GateAnswer, Step
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import Vote

_NO_RULING = Ruling()
_DEFAULT_RULES = Rules()
STOP_SWITCH = "stop switch"
"""Who paused a change that no person paused; turning the switch off lets it go on."""


class Pending(Value):
    """A timer that is set; only the one with this key counts when it fires."""

    key: str
    fire_at: AwareDatetime


class Saga(Value):
    """The state of one change; `version` counts the events of its log.

    A saga without a recommendation is an embryo: something of it arrived before its proposal.
    """

    change: ChangeId
    version: int = 0
    state: ChangeState = ChangeState.PROPOSED
    recommendation: Recommendation | None = None
    round: int = 0
    ballot: int = 0
    """The round that the present asking began with; abstentions are asked again from there."""
    votes: tuple[Vote, ...] = ()
    voted_at: AwareDatetime | None = None
    """When the oldest vote that counts was taken in."""
    approval: Approval | None = None
    """The first grant, or the denial that took its place."""
    grants: tuple[Approval, ...] = ()
    """What different people granted, by name; how many it takes is the policy's matter."""
    needed: int = 1
    """How many people were asked for."""
    snooze: Snooze | None = None
    """The latest word of a person on when the decision is to be asked for again."""
    step: Step | None = None
    fence: int = 0
    begun_fence: int = 0
    """The fence of the last step whose executor has written its intent down."""
    phase: Phase | None = None
    look: int = 0
    passed: bool = False
    answers: tuple[GateAnswer, ...] = ()
    arms: Arms = Arms()
    stage_began_at: AwareDatetime | None = None
    rollout_began_at: AwareDatetime | None = None
    preempted: int = 0
    """How often it gave way to a better one while it was being decided."""
    touched: bool = False
    """A step was requested at least once, so ending early means undoing."""
    paused_by: str | None = None
    waiting: str | None = None
    """Why an approved or deferred change does not go on, in words for people."""
    rollback_reason: str | None = None
    end_reason: str | None = None
    controls: int = 0
    timers: dict[TimerName, Pending] = Field(default_factory=dict)
    outcome_recorded: bool = False

    @property
    def proposal(self) -> Recommendation:
        """The recommendation; raises `Invariant` for an embryo."""
        if self.recommendation is None:
            raise Invariant(f"change {self.change} has no recommendation yet")
        return self.recommendation

    @property
    def is_deciding(self) -> bool:
        return self.state in (
            ChangeState.VOTING,
            ChangeState.AWAITING_APPROVAL,
            ChangeState.APPROVED,
        )

    def is_asleep(self, at: datetime) -> bool:
        """Whether a person has put its decision off until later than `at`."""
        waits = self.state is ChangeState.AWAITING_APPROVAL
        return waits and self.snooze is not None and self.snooze.lasts(at)


@dataclass(frozen=True, slots=True)
class World:
    """What a decision must know of the rest: the target, the tenant, the switch."""

    executing: ChangeId | None = None
    """Another change that is being carried out or undone on the same target or a bound one."""
    shared: str | None = None
    """What `executing` and this change both claim, where their deployments differ."""
    ruling: Ruling = _NO_RULING
    """What the arbiter says of this change and of those that want the same target."""
    over_budget: str | None = None
    """The budget that has no room for this change now, in words."""
    stopped: bool = False
    moving: int = 0
    """Other changes of the tenant that are being carried out now."""
    moved_last_hour: int = 0
    moved_last_hour_here: int = 0
    """Those of them that were on the same target."""
    approved_last_hour: Mapping[str, int] = field(default_factory=dict)
    """How many changes each rule of the policy has approved, by its name."""
    approved_last_day: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """Everything outside the saga that a decision may use; `at` is the database's clock."""

    at: datetime
    rules: Rules = _DEFAULT_RULES
    world: World = World()


def later(at: datetime, seconds: float) -> datetime:
    return at + timedelta(seconds=seconds)
