"""From approval to the end: steps are requested, gates read, and what hurts is undone."""

from __future__ import annotations

from datetime import datetime

from optiinfra.coordinator.saga.floor_check import counted_answer
from optiinfra.coordinator.saga.freeze import FREEZE, frozen, may_be_halted
from optiinfra.coordinator.saga.state import STOP_SWITCH, Saga, later
from optiinfra.coordinator.saga.turn import Turn
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.change import ChangeState, Phase
from optiinfra.schemas.rollout import GateAnswer, GateVerdict, Step, StepKind
from optiinfra.schemas.vote import AgentName

_EXECUTOR_GRACE_S = 5.0
"""What an executor gets beyond its own deadline to say that it failed."""


def proceed(turn: Turn) -> None:
    """Requests the next step, unless something stands in the way: then it says what."""
    if turn.context.world.stopped and turn.saga.paused_by is None:
        reason = "the stop switch is on"
        turn.say(f.ChangePaused(change=turn.saga.change, by=STOP_SWITCH, reason=reason))
    if turn.saga.paused_by is not None:
        return
    begins = turn.saga.state is ChangeState.APPROVED
    hindered = hindrance(turn) if begins else None
    if hindered is not None:
        defer(turn, hindered)
    elif begins or not _halted(turn):
        _request_step(turn, _next_step(turn))


def _halted(turn: Turn) -> bool:
    """Pauses a change under way where a freeze halts stages; the end of the freeze wakes it."""
    held = frozen(turn.saga.proposal, turn.context, urgent=is_urgent(turn), stages=True)
    if held is None:
        return False
    turn.say(f.ChangePaused(change=turn.saga.change, by=FREEZE, reason=held.reason))
    turn.set_timer(TimerName.TURN, turn.saga.version, seconds_to(turn, held.until))
    return True


def thaw(turn: Turn) -> None:
    """Lets a change go on that a freeze has paused, unless another one begins."""
    turn.say(f.ChangeResumed(change=turn.saga.change, by=FREEZE))
    proceed(turn)


def seconds_to(turn: Turn, at: datetime) -> float:
    return (at - turn.context.at).total_seconds()


def defer(turn: Turn, reason: str, *, behind: str | None = None) -> None:
    """Says once why the change waits, and comes back to it."""
    if turn.saga.state is not ChangeState.DEFERRED or turn.saga.waiting != reason:
        behind = behind or turn.context.world.executing
        turn.say(f.ChangeDeferred(change=turn.saga.change, behind=behind, reason=reason))
    turn.set_timer(TimerName.TURN, turn.saga.version, _turn_in_s(turn, reason))


def _turn_in_s(turn: Turn, reason: str) -> float:
    """When a deferred change looks again: at the end of the freeze that it waits for."""
    held = frozen(turn.saga.proposal, turn.context, urgent=is_urgent(turn))
    if held is not None and held.reason == reason:
        return seconds_to(turn, held.until)
    return turn.context.rules.retry_turn_s


def hindrance(turn: Turn) -> str | None:
    """Why an approved change may not begin now; what is urgent is not counted against limits."""
    world = turn.context.world
    if world.executing:
        where = f"a target that shares {world.shared}" if world.shared else "the same target"
        return f"change {world.executing} is being carried out on {where}"
    held = frozen(turn.saga.proposal, turn.context, urgent=is_urgent(turn))
    if held is not None:
        return held.reason
    return None if is_urgent(turn) else _limit_reached(turn)


def _limit_reached(turn: Turn) -> str | None:
    world, rules = turn.context.world, turn.context.rules
    if world.over_budget is not None:
        return world.over_budget
    if world.moving >= rules.max_moving:
        return f"{world.moving} changes are being carried out, the policy allows {rules.max_moving}"
    if rules.movers_per_hour is not None and world.moved_last_hour >= rules.movers_per_hour:
        return f"{world.moved_last_hour} changes in the last hour, the policy's limit"
    here, most = world.moved_last_hour_here, rules.movers_per_hour_per_target
    if most is not None and here >= most:
        target = turn.saga.proposal.deployment
        return f"{here} changes of {target} in the last hour, the policy allows {most} a target"
    return None


def is_urgent(turn: Turn) -> bool:
    """Whether the reason to hurry still stands."""
    return turn.saga.proposal.is_urgent(turn.context.at)


def _next_step(turn: Turn) -> Step:
    stages = turn.saga.proposal.rollout.stages
    number = _next_stage(turn.saga)
    if number < len(stages) and not _is_carried_by_the_finish(turn, number):
        return Step(kind=StepKind.APPLY, stage=number, share=stages[number].share)
    attempt = 1 if turn.saga.step is None else turn.saga.step.attempt
    return Step(
        kind=StepKind.FINISH, stage=len(stages) - 1, attempt=attempt, share=stages[-1].share
    )


def _next_stage(saga: Saga) -> int:
    return 0 if saga.step is None else saga.step.stage + 1


def _is_carried_by_the_finish(turn: Turn, number: int) -> bool:
    """Whether the last stage needs no command of its own: a finish brings its share about first.

    So it is where no soak, no assessor and no freeze can hold between the two. A pause still can:
    the executor looks for one before it releases anything.
    """
    proposal = turn.saga.proposal
    stages, gates = proposal.rollout.stages, proposal.rollout.gates
    if number < len(stages) - 1 or stages[number].soak_s > 0 or gates:
        return False
    return not may_be_halted(proposal, turn.context.rules, urgent=is_urgent(turn))


def _request_step(turn: Turn, step: Step) -> None:
    """A finish that carries the last stage too has the time of both."""
    both = step.kind is StepKind.FINISH and step.stage == _next_stage(turn.saga)
    seconds = turn.saga.proposal.rollout.apply_timeout_s * (2 if both else 1)
    turn.say(
        c.ExecutionRequested(
            change=turn.saga.change,
            step=step,
            fence=turn.saga.version + 1,
            executor=turn.saga.proposal.proposer,
            recommendation=turn.saga.proposal,
            deadline=later(turn.context.at, seconds),
        )
    )
    turn.set_timer(TimerName.APPLY_DEADLINE, _step_key(step), seconds + _EXECUTOR_GRACE_S)


def _step_key(step: Step) -> str:
    return f"{step.kind}-{step.stage}-{step.attempt}"


def staged(turn: Turn, fact: f.ExecutionStaged) -> None:
    """A finish that found the change paused has only carried its stage: it is asked for again."""
    saga = turn.saga
    if saga.passed and saga.phase is Phase.SOAKING:
        proceed(turn)
    elif saga.phase is Phase.FINISHING:
        turn.say(f.ChangeCompleted(change=saga.change, arms=saga.arms))
        for loss in turn.context.world.ruling.supersedes:
            turn.orders.append(
                f.ConflictResolved(
                    change=loss.change,
                    against=saga.change,
                    verdict="superseded",
                    claim=saga.proposal.deployment,
                    rule=loss.rule,
                    reason=loss.reason,
                    rules_version=turn.context.rules.version,
                )
            )
    else:
        _begin_soak(turn, fact.result.step)


def _begin_soak(turn: Turn, step: Step) -> None:
    """A stage without soak and without assessors is passed at once: nothing of it can hold."""
    rollout = turn.saga.proposal.rollout
    stage = rollout.stages[step.stage]
    if stage.soak_s > 0 or rollout.gates:
        turn.set_timer(TimerName.HOLD_LIMIT, step.stage, stage.soak_s + stage.hold_limit_s)
    if stage.soak_s > 0:
        turn.set_timer(TimerName.SOAK, step.stage, stage.soak_s)
    else:
        _assess(turn, step)


def execution_failed(turn: Turn, fact: f.ExecutionFailed) -> None:
    roll_back(turn, f"{fact.step.kind} of stage {fact.step.stage + 1} failed: {fact.reason}")


def apply_deadline(turn: Turn, fact: f.TimerFired) -> None:
    waits = turn.saga.phase in (Phase.APPLYING, Phase.FINISHING)
    if waits and turn.saga.step is not None and _step_key(turn.saga.step) == fact.key:
        roll_back(turn, "the executor gave no result in time")


def look(turn: Turn, fact: f.TimerFired) -> None:
    """One more look at the stage, if its timer is the one that counts."""
    saga = turn.saga
    if saga.phase is not Phase.SOAKING or saga.passed or saga.step is None:
        return
    if fact.key in (str(saga.step.stage), _look_key(saga)):
        _assess(turn, saga.step)


def _assess(turn: Turn, step: Step) -> None:
    """Asks the assessors; where none are named, the soak was all."""
    if turn.saga.proposal.rollout.gates:
        _request_look(turn, step)
    else:
        close_look_as(turn, GateVerdict.PASS, ("its kind needs no gate, and none is named",))
        proceed(turn)


def _request_look(turn: Turn, step: Step) -> None:
    saga = turn.saga
    began = saga.stage_began_at or turn.context.at
    answer_s = turn.context.rules.gate_answer_s
    turn.say(
        c.GateRequested(
            change=saga.change,
            deployment=saga.proposal.deployment,
            stage=step.stage,
            stages=len(saga.proposal.rollout.stages),
            look=saga.look + 1,
            assessors=saga.proposal.rollout.gates,
            arms=saga.arms,
            share=step.share,
            since=began,
            rollout_since=saga.rollout_began_at or began,
            recommendation=saga.proposal,
            deadline=later(turn.context.at, answer_s),
        )
    )
    turn.set_timer(TimerName.LOOK_DEADLINE, _look_key(turn.saga), answer_s)


def _look_key(saga: Saga) -> str:
    stage = saga.step.stage if saga.step else 0
    return f"{stage}-{saga.look}"


def answered(turn: Turn, fact: f.GateAnswered) -> None:
    bad = any(answer.verdict is GateVerdict.ROLL_BACK for answer in _answers(turn))
    if bad or not _silent(turn.saga):
        _close_look(turn)


def _answers(turn: Turn) -> list[GateAnswer]:
    """The answers to this look, as the policy's floors leave them."""
    proposal, rules = turn.saga.proposal, turn.context.rules
    return [counted_answer(answer, proposal, rules) for answer in turn.saga.answers]


def _silent(saga: Saga) -> tuple[AgentName, ...]:
    """Who was asked for this look and has not answered."""
    heard = {answer.assessor for answer in saga.answers}
    return tuple(agent for agent in saga.proposal.rollout.gates if agent not in heard)


def look_deadline(turn: Turn, fact: f.TimerFired) -> None:
    if turn.saga.phase is Phase.GATING and fact.key == _look_key(turn.saga):
        _close_look(turn)


def _close_look(turn: Turn) -> None:
    """One bad answer undoes; all must be good to go on; anything missing is unknown: hold."""
    saga, answers = turn.saga, _answers(turn)
    missing = _silent(saga)
    bad = [a for a in answers if a.verdict is GateVerdict.ROLL_BACK]
    held = [a for a in answers if a.verdict is GateVerdict.HOLD]
    reasons = tuple(f"{a.assessor}: {a.reason}" for a in (bad or held or answers))
    if bad:
        close_look_as(turn, GateVerdict.ROLL_BACK, reasons)
        roll_back(turn, "; ".join(reasons))
    elif held or missing:
        silent = tuple(f"{agent}: no answer, so unknown" for agent in missing)
        close_look_as(turn, GateVerdict.HOLD, (*(reasons if held else ()), *silent))
        turn.set_timer(TimerName.LOOK, _look_key(saga), saga.proposal.rollout.look_every_s)
    else:
        close_look_as(turn, GateVerdict.PASS, reasons)
        proceed(turn)


def close_look_as(turn: Turn, verdict: GateVerdict, reasons: tuple[str, ...]) -> None:
    saga = turn.saga
    turn.say(
        f.GateClosed(
            change=saga.change,
            stage=saga.step.stage if saga.step else 0,
            look=max(saga.look, 1),
            verdict=verdict.value,
            reasons=reasons,
        )
    )


def hold_limit(turn: Turn, fact: f.TimerFired) -> None:
    in_stage = turn.saga.phase in (Phase.SOAKING, Phase.GATING)
    if (
        in_stage
        and not turn.saga.passed
        and turn.saga.step
        and fact.key == str(turn.saga.step.stage)
    ):
        roll_back(turn, "the gate was on hold for longer than its limit")


def regressed(turn: Turn, fact: f.QualityRegressed) -> None:
    roll_back(turn, fact.reason)


def roll_back(turn: Turn, reason: str) -> None:
    saga, seconds = turn.saga, turn.context.rules.rollback_timeout_s
    turn.say(
        c.RollbackRequested(
            change=saga.change,
            fence=saga.version + 1,
            executor=saga.proposal.proposer,
            recommendation=saga.proposal,
            reason=reason,
            deadline=later(turn.context.at, seconds),
        )
    )
    turn.set_timer(TimerName.ROLLBACK_DEADLINE, "1", seconds + _EXECUTOR_GRACE_S)


def rolled_back(turn: Turn, fact: f.RollbackCompleted) -> None:
    if fact.proved:
        reason = turn.saga.rollback_reason or fact.detail
        turn.say(f.ChangeRolledBack(change=turn.saga.change, reason=reason))
    else:
        turn.say(f.ChangeFailed(change=turn.saga.change, reason=f"undo not proved: {fact.detail}"))


def rollback_deadline(turn: Turn, fact: f.TimerFired) -> None:
    if turn.saga.state is ChangeState.ROLLING_BACK:
        turn.say(f.ChangeFailed(change=turn.saga.change, reason="the undo was not proved in time"))
