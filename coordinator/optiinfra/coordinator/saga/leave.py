"""Whether the policy lets a proposal go, refuses it, or wants people to say yes, and how many."""

from __future__ import annotations

from dataclasses import dataclass

from optiinfra.coordinator.saga.state import Context, Saga, World
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.approval_rules import ApprovalRule, Decision
from optiinfra.schemas.recommendation import IRREVERSIBLE_KINDS, Recommendation
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import POLICY, policy


@dataclass(frozen=True, slots=True)
class Leave:
    """The policy's answer; `needed` is how many different people must say yes if it asks.

    `decision` is approve, ask or deny: two pairs of eyes are an `ask` that needs two.
    """

    decision: Decision
    needed: int
    reason: str
    rule: ApprovalRule | None = None


def leave_for(proposal: Recommendation, context: Context) -> Leave:
    """What today's policy says: the first rule that matches decides, and without one people do."""
    rules = context.rules
    needed = rules.needed(proposal)
    rule = rules.rule_for(proposal, context.at)
    if rule is None:
        return Leave(Decision.ASK, needed, "no rule of the policy is about it")
    named = f"rule {rule.name!r} of policy {rules.version!r}"
    if rule.decision is Decision.DENY:
        return Leave(Decision.DENY, needed, f"{named} refuses it", rule)
    if rule.decision is Decision.ASK_TWO:
        return Leave(Decision.ASK, 2, f"{named} asks two people", rule)
    if rule.decision is Decision.ASK:
        return Leave(Decision.ASK, needed, f"{named} asks", rule)
    why = _why_not_automatic(proposal, rule, rules, context.world)
    if why is None:
        return Leave(Decision.APPROVE, 0, named, rule)
    return Leave(Decision.ASK, needed, f"{named} would approve, but {why}", rule)


def _why_not_automatic(
    proposal: Recommendation, rule: ApprovalRule, rules: Rules, world: World
) -> str | None:
    """Why a rule that approves may not do so this time; None when it may."""
    if proposal.spec.kind in IRREVERSIBLE_KINDS:
        return "what cannot be undone is a person's decision"
    if rules.needed(proposal) > 1:
        return f"two people decide from risk {rules.four_eyes_from} on"
    return rule.exceeded(proposal) or _why_too_often(rule, world)


def _why_too_often(rule: ApprovalRule, world: World) -> str | None:
    for most, given, span in (
        (rule.max_per_hour, world.approved_last_hour, "hour"),
        (rule.max_per_day, world.approved_last_day, "day"),
    ):
        count = given.get(rule.name, 0)
        if most is not None and count >= most:
            return f"it has approved {count} in the last {span}, its limit is {most}"
    return None


def approval_of(leave: Leave, saga: Saga, context: Context) -> Approval:
    """The grant that a rule gives in its own name and the policy's version."""
    assert leave.rule is not None
    return Approval(
        change=saga.change,
        granted=True,
        by=policy(f"{leave.rule.name}@{context.rules.version}"),
        version_hash=saga.proposal.version_hash,
        reason=leave.reason,
        at=context.at,
    )


def stands(approval: Approval | None, rules: Rules) -> bool:
    """Whether a rule of this very policy has granted already; under another it is asked anew."""
    return (
        approval is not None
        and approval.granted
        and approval.by.kind == POLICY
        and approval.by.name.partition("@")[2] == rules.version
    )


def people(saga: Saga) -> tuple[str, ...]:
    """Who has said yes, each once; the proposer cannot be its own second pair of eyes."""
    return tuple(
        str(grant.by) for grant in saga.grants if grant.by.name != saga.proposal.proposer.value
    )
