"""From proposal to approval: whose turn it is, votes, and a person's or a policy's word."""

from __future__ import annotations

from collections.abc import Sequence

from optiinfra.coordinator.saga.conflict import give_orders, is_merged, waits_behind
from optiinfra.coordinator.saga.floor_check import Counted, counted_vote
from optiinfra.coordinator.saga.leave import Leave, approval_of, leave_for, people, stands
from optiinfra.coordinator.saga.staging import defer, hindrance, is_urgent, proceed, seconds_to
from optiinfra.coordinator.saga.state import Saga, later
from optiinfra.coordinator.saga.turn import Turn
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.facts import TimerName
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.approval_rules import Decision
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.recommendation import APPROVAL_EXPIRY_S
from optiinfra.schemas.tenant import policy
from optiinfra.schemas.vote import VOTERS, AgentName, Verdict

UNGATED_KINDS = frozenset({"spot_replacement", "commitment_purchase", "gate_tightening"})
"""Kinds that may go without a gate: the old machine is lost anyway, or no server is altered."""


def proposed(turn: Turn, fact: f.RecommendationProposed) -> None:
    proposal = fact.recommendation
    turn.say(
        f.ChangeOpened(
            change=proposal.id,
            deployment=proposal.deployment,
            rules_version=turn.context.rules.version,
        )
    )
    if turn.saga.approval and not turn.saga.approval.granted:
        _reject(turn, turn.saga.approval)
    elif not proposal.rollout.gates and proposal.spec.kind not in UNGATED_KINDS:
        reason = "its rollout names no assessor, so no stage of it could be judged"
        turn.say(f.ChangeRejected(change=proposal.id, by="coordinator", reason=reason))
    elif not _refused(turn, leave_for(proposal, turn.context)):
        take_turn(turn)


def _refused(turn: Turn, leave: Leave) -> bool:
    """Rejects what a rule of the policy denies, whoever has approved it."""
    if leave.decision is not Decision.DENY or leave.rule is None:
        return False
    by = str(policy(f"{leave.rule.name}@{turn.context.rules.version}"))
    turn.say(f.ChangeRejected(change=turn.saga.change, by=by, reason=leave.reason))
    return True


def take_turn(turn: Turn) -> None:
    """Asks for votes, unless something stands in the way: then it waits and says why.

    What was approved before it had to wait is voted on afresh; the approval stays good.
    """
    if is_merged(turn):
        return
    give_orders(turn)
    reason = _target_taken(turn)
    if reason is None and waits_behind(turn):
        return
    if reason is None and turn.saga.approval is not None:
        reason = hindrance(turn)
    if reason is None:
        _request_votes(turn)
    else:
        defer(turn, reason)


def _target_taken(turn: Turn) -> str | None:
    ahead, shared = turn.context.world.executing, turn.context.world.shared
    target = shared or turn.saga.proposal.deployment
    return f"change {ahead} has the target {target}" if ahead else None


def _request_votes(turn: Turn) -> None:
    saga, rules = turn.saga, turn.context.rules
    seconds = rules.urgent_vote_deadline_s if is_urgent(turn) else rules.vote_deadline_s
    number = saga.round + 1
    turn.say(
        c.VoteRequested(
            change=saga.change,
            round=number,
            agents=tuple(sorted(VOTERS)),
            recommendation=saga.proposal,
            deadline=later(turn.context.at, seconds),
        )
    )
    turn.set_timer(TimerName.VOTE_REMINDER, number, seconds / 2)
    turn.set_timer(TimerName.VOTE_DEADLINE, number, seconds)
    _tally(turn)


def voted(turn: Turn, fact: f.VoteCast) -> None:
    """Until the first step a second, different vote can still turn three approvals into a veto."""
    if turn.saga.is_deciding and fact.vote.round == turn.saga.round:
        _tally(turn)


def _tally(turn: Turn) -> None:
    """Reads the votes of this round as a set; their order means nothing.

    A vote counts as the policy's floors leave it.
    """
    votes = [vote for vote in turn.saga.votes if vote.round == turn.saga.round]
    by_agent = {agent: [v for v in votes if v.agent == agent] for agent in sorted(VOTERS)}
    twice = tuple(agent for agent, cast in by_agent.items() if len(cast) > 1)
    counted = [counted_vote(v, turn.saga.proposal, turn.context.rules) for v in votes]
    against = [vote for vote in counted if vote.verdict is Verdict.REJECT]
    if twice:
        _veto(turn, twice, tuple(f"{agent} cast two different votes" for agent in twice))
    elif against:
        _veto_by(turn, against)
    elif all(by_agent.values()):
        _all_voted(turn, [vote for vote in counted if vote.verdict is Verdict.ABSTAIN])


def _all_voted(turn: Turn, abstained: Sequence[Counted]) -> None:
    rules = turn.context.rules
    if not abstained:
        _seek_approval(turn)
    elif turn.saga.round - turn.saga.ballot + 1 < rules.max_vote_rounds:
        turn.set_timer(TimerName.REVOTE, turn.saga.round, rules.revote_after_s)
    else:
        _veto_by(turn, abstained)


def _veto_by(turn: Turn, against: Sequence[Counted]) -> None:
    by = tuple(dict.fromkeys(vote.by for vote in against))
    _veto(turn, by, tuple(reason for vote in against for reason in vote.reasons))


def _veto(turn: Turn, by: tuple[str, ...], reasons: tuple[str, ...]) -> None:
    turn.say(f.ChangeVetoed(change=turn.saga.change, by=by, reasons=reasons))


def remind(turn: Turn, fact: f.TimerFired) -> None:
    missing = _missing_voters(turn.saga)
    if turn.saga.state is ChangeState.VOTING and missing:
        deadline = turn.saga.timers[TimerName.VOTE_DEADLINE].fire_at
        turn.say(
            c.VoteRequested(
                change=turn.saga.change,
                round=turn.saga.round,
                agents=missing,
                recommendation=turn.saga.proposal,
                deadline=deadline,
            )
        )


def vote_deadline(turn: Turn, fact: f.TimerFired) -> None:
    missing = _missing_voters(turn.saga)
    if turn.saga.state is ChangeState.VOTING and missing:
        reasons = tuple(f"{agent} did not vote in time" for agent in missing)
        _veto(turn, missing, reasons)


def _missing_voters(saga: Saga) -> tuple[AgentName, ...]:
    cast = {vote.agent for vote in saga.votes if vote.round == saga.round}
    return tuple(agent for agent in sorted(VOTERS) if agent not in cast)


def revote(turn: Turn, fact: f.TimerFired) -> None:
    if turn.saga.state is ChangeState.VOTING:
        _request_votes(turn)


def _seek_approval(turn: Turn) -> None:
    """Goes on when the policy or people enough have said yes; else asks for those that it takes."""
    leave = leave_for(turn.saga.proposal, turn.context)
    if _refused(turn, leave):
        return
    by = _granted_by(turn, leave)
    if by is None:
        _ask_people(turn, leave)
    else:
        _approve(turn, by)


def _granted_by(turn: Turn, leave: Leave) -> str | None:
    """In whose name the change may begin; a rule grants it now where it may."""
    said_yes = people(turn.saga)
    if said_yes and len(said_yes) >= leave.needed:
        return ", ".join(said_yes)
    standing = turn.saga.approval
    if standing is not None and stands(standing, turn.context.rules):
        return str(standing.by)
    if leave.decision is not Decision.APPROVE:
        return None
    approval = approval_of(leave, turn.saga, turn.context)
    turn.say(f.ApprovalGranted(approval=approval))
    return str(approval.by)


def _ask_people(turn: Turn, leave: Leave) -> None:
    """Asks, unless as many are being asked already: their time runs from the first asking."""
    saga, rules = turn.saga, turn.context.rules
    asked = saga.timers.get(TimerName.APPROVAL_EXPIRY)
    waits = saga.state is ChangeState.AWAITING_APPROVAL and asked is not None
    if waits and saga.needed == leave.needed:
        return
    risk = saga.proposal.risk
    seconds = rules.approval_expiry_s.get(risk, APPROVAL_EXPIRY_S[risk])
    turn.say(
        f.ApprovalRequested(
            change=saga.change,
            version_hash=saga.proposal.version_hash,
            risk=risk,
            expires_at=asked.fire_at if waits and asked else later(turn.context.at, seconds),
            needed=leave.needed,
            reason=leave.reason,
        )
    )
    if not waits:
        turn.set_timer(TimerName.APPROVAL_EXPIRY, saga.round, seconds)


def granted(turn: Turn, fact: f.ApprovalGranted) -> None:
    if turn.saga.state is ChangeState.AWAITING_APPROVAL:
        heed(turn)


def put_off(turn: Turn, fact: f.RecommendationSnoozed | f.RecommendationWoken) -> None:
    heed(turn)


def heed(turn: Turn) -> None:
    """Goes on with the yes of people; while the change sleeps, that waits until it wakes.

    Where nobody has said yes, waking leads to nothing: no rule approves because of it.
    """
    saga = turn.saga
    if saga.snooze is not None and saga.is_asleep(turn.context.at):
        turn.set_timer(TimerName.TURN, saga.version, seconds_to(turn, saga.snooze.until))
    elif people(saga):
        _seek_approval(turn)


def slept(turn: Turn) -> None:
    """The time that it was put off for is over: who has not said yes yet is asked once more."""
    said = len(turn.said)
    heed(turn)
    saga, off = turn.saga, turn.saga.snooze
    asked = saga.timers.get(TimerName.APPROVAL_EXPIRY)
    if len(turn.said) > said or off is None or off.until <= off.at or asked is None:
        return
    leave = leave_for(saga.proposal, turn.context)
    reasons = (leave.reason,) if leave.decision is Decision.ASK else ()
    turn.say(
        f.ApprovalRequested(
            change=saga.change,
            version_hash=saga.proposal.version_hash,
            risk=saga.proposal.risk,
            expires_at=asked.fire_at,
            needed=saga.needed,
            reason="; ".join((f"{off.by} had put it off until now", *reasons)),
        )
    )


def _approve(turn: Turn, by: str) -> None:
    """The votes must still be fresh when the approval comes: else they are asked for again."""
    if _votes_are_stale(turn):
        _request_votes(turn)
    else:
        turn.say(f.ChangeApproved(change=turn.saga.change, by=by))
        proceed(turn)


def begin(turn: Turn) -> None:
    """Carries an approved change out that was paused, unless its votes went stale meanwhile."""
    if _votes_are_stale(turn):
        _request_votes(turn)
    else:
        proceed(turn)


def _votes_are_stale(turn: Turn) -> bool:
    voted_at, valid_s = turn.saga.voted_at, turn.context.rules.votes_valid_s
    return voted_at is None or later(voted_at, valid_s) < turn.context.at


def denied(turn: Turn, fact: f.ApprovalDenied) -> None:
    _reject(turn, fact.approval)


def _reject(turn: Turn, approval: Approval) -> None:
    reason = approval.reason or "no reason was given"
    turn.say(f.ChangeRejected(change=turn.saga.change, by=str(approval.by), reason=reason))


def approval_expired(turn: Turn, fact: f.TimerFired) -> None:
    if turn.saga.state is ChangeState.AWAITING_APPROVAL:
        reason = "nobody approved it in time"
        turn.say(f.RecommendationExpired(change=turn.saga.change, reason=reason))
