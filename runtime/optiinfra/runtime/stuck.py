"""What an open change waits for, in words, and whether anything will ever wake it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from optiinfra.coordinator.saga.freeze import FREEZE
from optiinfra.coordinator.saga.state import STOP_SWITCH, Saga
from optiinfra.runtime.findings import Finding, Level
from optiinfra.schemas.change import ChangeState, Phase
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.postgres.condition import OpenChange, OpenIntent

LATE_S = 5.0
"""Timers are swept four times a second; one that is so late is not being looked after."""
EMBRYO_S = 600.0
"""A vote may come before its proposal, but not so long."""
INTENT_S = 60.0
"""Steps take longer than that now and then; worth a line, not an alarm."""
_RESUME = {
    STOP_SWITCH: "optiinfra switch off",
    FREEZE: "nothing: it goes on when the freeze ends; docs/policy.md",
}


def finding_on(change: OpenChange) -> Finding:
    """What one open change waits for: OK while something will wake it."""
    saga = Saga.model_validate_json(change.body)
    said = f"{change.state}, unchanged for {spoken(change.quiet_s)}, waits for "
    said += waits_for(saga, change.seen_at)
    for look in (_paused, _overdue, _unwakeable):
        found = look(change, saga, said)
        if found is not None:
            return found
    return Finding(Level.OK, _named(change), said)


def findings_on_intents(intents: Sequence[OpenIntent]) -> list[Finding]:
    """Steps that were begun and have no result."""
    return [found for one in intents if (found := _intent(one)) is not None]


def waits_for(saga: Saga, now: datetime) -> str:
    """What has to happen next, in words."""
    if saga.recommendation is None:
        return "its proposal"
    match saga.state:
        case ChangeState.VOTING:
            return _votes(saga)
        case ChangeState.AWAITING_APPROVAL:
            given = len({grant.by.name for grant in saga.grants})
            said = f"approval: {given} of {saga.needed} people have said yes"
            off = saga.snooze
            if off is None or not off.lasts(now):
                return said
            return f"{said}; {off.by} has put it off until {off.until:%Y-%m-%d %H:%M UTC}"
        case ChangeState.EXECUTING:
            return _stage(saga)
        case ChangeState.ROLLING_BACK:
            return "the executor's proof that everything is as it was"
        case ChangeState.APPROVED:
            return saga.waiting or "its first step"
        case _:
            return saga.waiting or f"its turn at {saga.proposal.deployment}"


def spoken(seconds: float) -> str:
    """A duration in the unit that a person would use."""
    for size, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"


def _votes(saga: Saga) -> str:
    cast = {vote.agent for vote in saga.votes if vote.round == saga.round}
    missing = sorted(VOTERS - cast)
    if not missing:
        return f"another asking, since somebody abstained in round {saga.round}"
    return f"the votes of {', '.join(missing)} in round {saga.round}"


def _stage(saga: Saga) -> str:
    step = f"{saga.step.kind} {saga.step.stage}" if saga.step else "a step"
    match saga.phase:
        case Phase.SOAKING:
            return f"the end of the soak after {step}"
        case Phase.GATING:
            heard = sorted({answer.assessor for answer in saga.answers})
            return f"the gate of {step}; answers so far: {', '.join(heard) or 'none'}"
        case _:
            return f"the executor's result of {step}"


def _paused(change: OpenChange, saga: Saga, said: str) -> Finding | None:
    if saga.paused_by is None:
        return None
    return Finding(
        Level.WARN,
        _named(change),
        f"paused by {saga.paused_by} ({saga.waiting or 'no reason given'}); {said}",
        _RESUME.get(saga.paused_by, f"optiinfra changes resume {change.id}"),
        "no further stage begins, and its target stays taken, until it is resumed",
    )


def _overdue(change: OpenChange, _saga: Saga, said: str) -> Finding | None:
    if change.next_timer is None or change.overdue_s <= LATE_S:
        return None
    return Finding(
        Level.FAIL,
        _named(change),
        f"its {change.next_timer} was due {spoken(change.overdue_s)} ago; {said}",
        "see that a coordinator runs (optiinfra coordinator), and what it logs as timer.failed",
        "coordinators keep the deadlines of changes, and none acts on this one",
    )


def _unwakeable(change: OpenChange, saga: Saga, said: str) -> Finding | None:
    if change.next_timer is not None:
        return None
    if saga.recommendation is None:
        return _orphan(change, said) if change.quiet_s > EMBRYO_S else None
    if saga.state is ChangeState.PROPOSED and not change.alone:
        return None
    return Finding(
        Level.FAIL,
        _named(change),
        f"no timer is set, so nothing will wake it; {said}",
        f"optiinfra changes show {change.id}, then optiinfra changes abort {change.id}",
        "it holds its place before its target and would stay for ever",
    )


def _orphan(change: OpenChange, said: str) -> Finding:
    return Finding(
        Level.WARN,
        _named(change),
        f"something was said of it, but it was never proposed; {said}",
        "optiinfra dlq ls shows whether its proposal was refused",
        "what it was to bring is not happening, though it harms nothing",
    )


def _intent(intent: OpenIntent) -> Finding | None:
    what = f"step of {intent.change}"
    said = f"{intent.step} was begun {spoken(intent.begun_s)} ago and has no result"
    if intent.state in (ChangeState.EXECUTING, ChangeState.ROLLING_BACK):
        level = Level.OK if intent.begun_s < INTENT_S else Level.WARN
        todo = "see that the executor runs (optiinfra agent cost); it reads the target back itself"
        return Finding(level, what, said, todo, "the target may stand half way")
    return Finding(
        Level.WARN,
        what,
        f"{said}, while the change is {intent.state}",
        f"compare the target with optiinfra changes show {intent.change}",
        "nobody has read back what this step did",
    )


def _named(change: OpenChange) -> str:
    return f"change {change.id}"
