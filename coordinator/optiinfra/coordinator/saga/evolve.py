"""How each fact changes a saga; replaying a log is folding this, whatever the rules say today."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from optiinfra.coordinator.saga.floor_check import BADNESS
from optiinfra.coordinator.saga.state import Pending, Saga
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.schemas.approval import Approval, Snooze
from optiinfra.schemas.change import ChangeState, Phase
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.rollout import Step, StepKind, StepResult
from optiinfra.schemas.tenant import PERSON, POLICY
from optiinfra.schemas.vote import VOTERS, Vote

_UNDECIDED = frozenset(
    {
        ChangeState.PROPOSED,
        ChangeState.DEFERRED,
        ChangeState.VOTING,
        ChangeState.AWAITING_APPROVAL,
    }
)


def evolve(saga: Saga, fact: f.Fact, at: datetime) -> Saga:
    """`saga` after `fact`; the same object when a repeated or late fact changes nothing.

    Raises `Rejected` for a fact that can never be true of this change.
    """
    handler = _HANDLERS.get(type(fact))
    return saga if handler is None else handler(saga, fact, at)


def fold(saga: Saga, log: Iterable[tuple[f.Fact, datetime]]) -> Saga:
    """The state that a whole log leads to, with its version."""
    for fact, at in log:
        saga = counted(evolve(saga, fact, at))
    return saga


def counted(saga: Saga) -> Saga:
    """The saga with one more event in its log."""
    return _with(saga, version=saga.version + 1)


def _with(saga: Saga, **changes: Any) -> Saga:
    return saga.model_copy(update=changes)


def _proposed(saga: Saga, fact: f.RecommendationProposed, at: datetime) -> Saga:
    if saga.recommendation is not None:
        return saga
    approval, version = saga.approval, fact.recommendation.version_hash
    if approval is not None and approval.version_hash != version:
        approval = None
    grants = tuple(grant for grant in saga.grants if grant.version_hash == version)
    if approval is None and grants:
        approval = grants[0]
    return _with(saga, recommendation=fact.recommendation, approval=approval, grants=grants)


def _deferred(saga: Saga, fact: f.ChangeDeferred, at: datetime) -> Saga:
    return _with(saga, state=ChangeState.DEFERRED, waiting=fact.reason)


def _conflict_resolved(saga: Saga, fact: f.ConflictResolved, at: datetime) -> Saga:
    """Who has begun, or has ended, can neither give way nor be replaced any more."""
    if saga.touched or saga.state.is_terminal or fact.verdict in ("waits", "merged"):
        return saga
    if fact.verdict == "superseded":
        return _with(saga, waiting=fact.reason)
    if not saga.is_deciding:
        return saga
    return _with(saga, preempted=saga.preempted + 1)


def _vote_requested(saga: Saga, fact: c.VoteRequested, at: datetime) -> Saga:
    if fact.round <= saga.round:
        return saga
    asked_again = saga.state is ChangeState.VOTING
    return _with(
        saga,
        state=ChangeState.VOTING,
        round=fact.round,
        ballot=saga.ballot if asked_again else fact.round,
        voted_at=saga.voted_at if any(v.round >= fact.round for v in saga.votes) else None,
        waiting=None,
    )


def _vote_cast(saga: Saga, fact: f.VoteCast, at: datetime) -> Saga:
    vote = fact.vote
    if vote.agent not in VOTERS:
        raise Rejected(f"{vote.agent!r} holds no safety vote")
    late = saga.state.is_terminal and saga.state is not ChangeState.VETOED
    if late or saga.state in (ChangeState.EXECUTING, ChangeState.ROLLING_BACK):
        return saga
    if vote.round < saga.round or any(_same_vote(vote, known) for known in saga.votes):
        return saga
    votes = sorted((*saga.votes, vote), key=lambda v: (v.round, v.agent, v.verdict))
    return _with(saga, votes=tuple(votes), voted_at=saga.voted_at or at)


def _same_vote(one: Vote, other: Vote) -> bool:
    return (one.agent, one.round, one.verdict) == (other.agent, other.round, other.verdict)


def _approval_requested(saga: Saga, fact: f.ApprovalRequested, at: datetime) -> Saga:
    return _with(saga, state=ChangeState.AWAITING_APPROVAL, needed=fact.needed)


def _decided(saga: Saga, fact: f.ApprovalGranted | f.ApprovalDenied, at: datetime) -> Saga:
    """A denial stands against every grant; the grants of different people are kept as a set."""
    approval = fact.approval
    _check_word(fact)
    if saga.state not in _UNDECIDED:
        return saga
    if saga.recommendation and approval.version_hash != saga.recommendation.version_hash:
        return saga
    if saga.approval is not None and not saga.approval.granted:
        return saga
    if not approval.granted:
        return _with(saga, approval=approval, grants=())
    if approval.by.kind == POLICY:
        return _with(saga, approval=approval)
    grants = _with_grant(saga.grants, approval)
    if grants is saga.grants:
        return saga
    return _with(saga, approval=saga.approval or approval, grants=grants)


def _check_word(fact: f.ApprovalGranted | f.ApprovalDenied) -> None:
    if fact.approval.granted is not isinstance(fact, f.ApprovalGranted):
        raise Rejected("the fact and the approval in it contradict each other")
    if fact.approval.by.kind not in (PERSON, POLICY):
        raise Rejected(f"{fact.approval.by} is neither a person nor a policy")


def _with_grant(grants: tuple[Approval, ...], new: Approval) -> tuple[Approval, ...]:
    """The same tuple when this person has granted this version before."""
    if any((g.by, g.version_hash) == (new.by, new.version_hash) for g in grants):
        return grants
    return tuple(sorted((*grants, new), key=lambda grant: (grant.by.name, grant.version_hash)))


def _snoozed(saga: Saga, fact: f.RecommendationSnoozed, at: datetime) -> Saga:
    return _put_off(saga, fact, fact.until)


def _woken(saga: Saga, fact: f.RecommendationWoken, at: datetime) -> Saga:
    return _put_off(saga, fact, fact.at)


def _put_off(
    saga: Saga, fact: f.RecommendationSnoozed | f.RecommendationWoken, until: datetime
) -> Saga:
    """Of two words on its sleep the later one counts, in whatever order they come."""
    if saga.state is not ChangeState.AWAITING_APPROVAL:
        return saga
    if fact.version_hash != saga.proposal.version_hash:
        return saga
    if saga.snooze is not None and fact.at <= saga.snooze.at:
        return saga
    return _with(saga, snooze=Snooze(by=fact.by, until=until, reason=fact.reason, at=fact.at))


def _approved(saga: Saga, fact: f.ChangeApproved, at: datetime) -> Saga:
    return _with(saga, state=ChangeState.APPROVED)


def _execution_requested(saga: Saga, fact: c.ExecutionRequested, at: datetime) -> Saga:
    finishing = fact.step.kind is StepKind.FINISH
    return _with(
        saga,
        state=ChangeState.EXECUTING,
        phase=Phase.FINISHING if finishing else Phase.APPLYING,
        step=fact.step,
        fence=fact.fence,
        touched=True,
        passed=False,
        look=saga.look if finishing else 0,
        answers=(),
        waiting=None,
        rollout_began_at=saga.rollout_began_at or at,
    )


def _started(saga: Saga, fact: f.ExecutionStarted, at: datetime) -> Saga:
    if fact.fence > saga.fence:
        raise Rejected(f"no step was requested under fence {fact.fence}")
    if fact.fence != saga.fence or saga.state is not ChangeState.EXECUTING:
        return saga
    if saga.begun_fence == fact.fence:
        return saga
    return _with(saga, begun_fence=fact.fence)


def _staged(saga: Saga, fact: f.ExecutionStaged, at: datetime) -> Saga:
    result = fact.result
    current = _is_current(saga, result.step)
    waits = saga.phase in (Phase.APPLYING, Phase.FINISHING)
    if not waits or saga.state is not ChangeState.EXECUTING:
        return saga
    done = {"arms": result.arms, "stage_began_at": at}
    if saga.step is not None and _stopped_short(saga, result):
        again = {"kind": StepKind.APPLY, "attempt": saga.step.attempt + 1}
        step = saga.step.model_copy(update=again)
        return _with(saga, step=step, phase=Phase.SOAKING, passed=True, **done)
    if not current:
        return saga
    if saga.phase is Phase.FINISHING:
        return _with(saga, passed=True, **done)
    return _with(saga, phase=Phase.SOAKING, **done)


def _stopped_short(saga: Saga, result: StepResult) -> bool:
    """Whether the finish in hand has carried its stage and released nothing.

    It says so as that stage's result. `saga.step` then is that stage, under the attempt that the
    finish has next.
    """
    of_this = saga.phase is Phase.FINISHING and result.fence == saga.fence
    return of_this and result.step.kind is StepKind.APPLY


def _execution_failed(saga: Saga, fact: f.ExecutionFailed, at: datetime) -> Saga:
    waits = saga.phase in (Phase.APPLYING, Phase.FINISHING)
    if not _is_current(saga, fact.step) or not waits or saga.state is not ChangeState.EXECUTING:
        return saga
    return _with(saga, rollback_reason=fact.reason)


def _is_current(saga: Saga, step: Step) -> bool:
    """Whether `step` is the one in hand; an older one is late, any other was never asked for."""
    if step not in _requested(saga):
        raise Rejected(f"step {step.kind} {step.stage}.{step.attempt} was never requested")
    return step == saga.step


def _requested(saga: Saga) -> list[Step]:
    """Every step that was requested so far; stages come one by one, each once.

    A finish that stopped short was requested, and the next one is the next attempt.
    """
    last = saga.step
    if last is None:
        return []
    stages = saga.proposal.rollout.stages[: last.stage + 1]
    applied = [Step(kind=StepKind.APPLY, stage=n, share=s.share) for n, s in enumerate(stages)]
    short = [
        last.model_copy(update={"kind": StepKind.FINISH, "attempt": attempt})
        for attempt in range(1, last.attempt)
    ]
    return [*applied, *short, last]


def _gate_requested(saga: Saga, fact: c.GateRequested, at: datetime) -> Saga:
    return _with(saga, phase=Phase.GATING, look=fact.look, answers=())


def _gate_answered(saga: Saga, fact: f.GateAnswered, at: datetime) -> Saga:
    """An assessor's second answer to an open look counts only if it is a worse one."""
    answer, named = fact.answer, (fact.answer.stage, fact.answer.look)
    last = (saga.step.stage, saga.look) if saga.step else (-1, 0)
    if named > last or answer.assessor not in saga.proposal.rollout.gates:
        raise Rejected(f"{answer.assessor} was not asked for look {answer.look} at that stage")
    if saga.phase is not Phase.GATING or named != last:
        return saga
    known = next((a for a in saga.answers if a.assessor == answer.assessor), None)
    if known is not None and BADNESS[known.verdict] >= BADNESS[answer.verdict]:
        return saga
    others = (a for a in saga.answers if a.assessor != answer.assessor)
    return _with(saga, answers=tuple(sorted((*others, answer), key=lambda a: a.assessor)))


def _gate_closed(saga: Saga, fact: f.GateClosed, at: datetime) -> Saga:
    return _with(saga, phase=Phase.SOAKING, passed=fact.verdict == "pass")


def _regressed(saga: Saga, fact: f.QualityRegressed, at: datetime) -> Saga:
    if saga.state is not ChangeState.EXECUTING:
        return saga
    return _with(saga, rollback_reason=fact.reason)


def _rollback_requested(saga: Saga, fact: c.RollbackRequested, at: datetime) -> Saga:
    """From here only the undo counts: nothing is passed, and nothing can be paused."""
    return _with(
        saga,
        state=ChangeState.ROLLING_BACK,
        phase=None,
        passed=False,
        paused_by=None,
        fence=fact.fence,
        rollback_reason=fact.reason,
        waiting=None,
    )


def _rollback_completed(saga: Saga, fact: f.RollbackCompleted, at: datetime) -> Saga:
    if saga.state.is_terminal:
        return saga
    if saga.state is not ChangeState.ROLLING_BACK or fact.fence != saga.fence:
        raise Rejected(f"no undo was requested under fence {fact.fence}")
    return _with(saga, end_reason=fact.detail or "undone")


def _control(saga: Saga, fact: c.ControlRequested, at: datetime) -> Saga:
    if saga.recommendation is None:
        raise Rejected(f"nothing was proposed as change {saga.change}")
    return saga if saga.state.is_terminal else _with(saga, controls=saga.controls + 1)


def _paused(saga: Saga, fact: f.ChangePaused, at: datetime) -> Saga:
    return _with(saga, paused_by=fact.by, waiting=fact.reason)


def _resumed(saga: Saga, fact: f.ChangeResumed, at: datetime) -> Saga:
    return _with(saga, paused_by=None, waiting=None)


def _timer_set(saga: Saga, fact: f.TimerSet, at: datetime) -> Saga:
    pending = Pending(key=fact.key, fire_at=fact.fire_at)
    return _with(saga, timers={**saga.timers, fact.name: pending})


def _timer_fired(saga: Saga, fact: f.TimerFired, at: datetime) -> Saga:
    pending = saga.timers.get(fact.name)
    if pending is None or pending.key != fact.key or saga.state.is_terminal:
        return saga
    return _with(saga, timers={n: p for n, p in saga.timers.items() if n != fact.name})


def _ended(saga: Saga, fact: f.Fact, at: datetime) -> Saga:
    reason = getattr(fact, "reason", None) or "; ".join(getattr(fact, "reasons", ()))
    return _with(
        saga,
        state=f.TERMINAL_FACTS[fact.kind],
        phase=None,
        timers={},
        paused_by=None,
        waiting=None,
        end_reason=reason or saga.end_reason,
    )


def _outcome(saga: Saga, fact: f.OutcomeRecorded, at: datetime) -> Saga:
    return saga if saga.outcome_recorded else _with(saga, outcome_recorded=True)


_HANDLERS: dict[type, Callable[[Saga, Any, datetime], Saga]] = {
    f.RecommendationProposed: _proposed,
    f.ChangeDeferred: _deferred,
    f.ConflictResolved: _conflict_resolved,
    c.VoteRequested: _vote_requested,
    f.VoteCast: _vote_cast,
    f.ApprovalRequested: _approval_requested,
    f.ApprovalGranted: _decided,
    f.ApprovalDenied: _decided,
    f.RecommendationSnoozed: _snoozed,
    f.RecommendationWoken: _woken,
    f.ChangeApproved: _approved,
    c.ExecutionRequested: _execution_requested,
    f.ExecutionStarted: _started,
    f.ExecutionStaged: _staged,
    f.ExecutionFailed: _execution_failed,
    c.GateRequested: _gate_requested,
    f.GateAnswered: _gate_answered,
    f.GateClosed: _gate_closed,
    f.QualityRegressed: _regressed,
    c.RollbackRequested: _rollback_requested,
    f.RollbackCompleted: _rollback_completed,
    c.ControlRequested: _control,
    f.ChangePaused: _paused,
    f.ChangeResumed: _resumed,
    f.TimerSet: _timer_set,
    f.TimerFired: _timer_fired,
    f.ChangeVetoed: _ended,
    f.ChangeRejected: _ended,
    f.ChangeCompleted: _ended,
    f.ChangeRolledBack: _ended,
    f.ChangeFailed: _ended,
    f.ChangeCancelled: _ended,
    f.RecommendationExpired: _ended,
    f.RecommendationSuperseded: _ended,
    f.OutcomeRecorded: _outcome,
}
