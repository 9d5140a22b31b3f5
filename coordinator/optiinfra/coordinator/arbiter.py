"""Who goes first when several changes want the same target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from optiinfra.coordinator.saga.ruling import Loss, Ruling
from optiinfra.coordinator.saga.state import Saga
from optiinfra.schemas.arbitration import Arbitration, Budget
from optiinfra.schemas.recommendation import Recommendation


class Waiting(Protocol):
    """A deferred change, as the order needs it; `body` is its saga as JSON."""

    @property
    def change(self) -> str: ...

    @property
    def opened_at(self) -> datetime: ...

    @property
    def body(self) -> str: ...


class Moves(Protocol):
    """A change that is carried out, as a budget needs it."""

    @property
    def deployment(self) -> str | None: ...

    @property
    def usd_per_hour(self) -> float | None: ...


Precedence = tuple[int, int, float]


def precedence(proposal: Recommendation, policy: Arbitration) -> Precedence:
    """Smaller goes first: the interest, then the lower risk, then the higher expected saving
    in $ a month (none counts as 0).
    """
    saving = proposal.saving_usd_per_month
    place = policy.order.index(policy.interest(proposal))
    return place, proposal.risk.rank, -saving.mid if saving else 0.0


def in_turn(waiting: Sequence[Waiting], at: datetime, policy: Arbitration) -> list[Recommendation]:
    """Who goes first: what is lost by waiting (urgent), then who has waited too long (the
    longest first), then by precedence; among equals who has waited longest, then by id.
    """
    ranked = [(change, Saga.model_validate_json(change.body).proposal) for change in waiting]

    def rank(pair: tuple[Waiting, Recommendation]) -> tuple[object, ...]:
        change, proposal = pair
        aged = (at - change.opened_at).total_seconds() > policy.max_wait_s
        by_value = (0, 0, 0.0) if aged else precedence(proposal, policy)
        return (
            proposal.urgent_until is None,
            not aged,
            by_value,
            change.opened_at,
            change.change,
        )

    return [proposal for _, proposal in sorted(ranked, key=rank)]


def woken_by(
    freed: str, waiting: Sequence[Waiting], at: datetime, policy: Arbitration
) -> list[str]:
    """The changes whose turn comes when a deployment becomes free: the first in turn of all
    the tenant's (it may wait for a limit), and each that wanted what is free, as far as those
    before it leave room.
    """
    chosen: list[Recommendation] = []
    ordered = in_turn(waiting, at, policy)
    for proposal in ordered:
        target = proposal.deployment
        wanted = policy.overlap(target, freed)
        if wanted and not any(policy.overlap(target, one.deployment) for one in chosen):
            chosen.append(proposal)
    return list(dict.fromkeys(proposal.id for proposal in [*chosen, *ordered[:1]]))


@dataclass(frozen=True, slots=True)
class Rival:
    """An open change of the same deployment; `nudged` when its turn has come already."""

    saga: Saga
    opened_at: datetime
    nudged: bool = False


_NAMES = ("interest", "risk", "saving")


def arbitrate(
    saga: Saga, opened_at: datetime, rivals: Sequence[Rival], at: datetime, policy: Arbitration
) -> Ruling:
    """What becomes of a change and of the others that want its deployment, when its turn comes.

    What is carried out already is not judged here: that is waited for. The outcome among those
    that are not depends on the policy and on what they say, not on who came first, as far as
    their preemptions and their patience allow. Who sleeps is in nobody's way.
    """
    proposal = saga.proposal
    twin = _twin(saga, rivals) if saga.round == 0 else None
    if twin is not None:
        reason = f"change {twin} says the same on {proposal.deployment}"
        return Ruling(merged=Loss(change=twin, rule="same", reason=reason))
    older = _replaced(saga, rivals) if saga.round == 0 else []
    gone = {loss.change for loss in older}
    left = [one for one in rivals if one.saga.change not in gone and not one.saga.is_asleep(at)]
    if proposal.is_urgent(at):
        return Ruling(supersedes=tuple(older))
    me = Rival(saga, opened_at)
    yielding: list[Loss] = []
    for one in left:
        if not (one.saga.is_deciding or one.nudged):
            continue
        rule = _goes_before(me, one, at, policy)
        if rule is None or (one.saga.is_deciding and not _gives_way(one, at, policy)):
            return Ruling(supersedes=tuple(older), behind=_ahead(one, me, at, policy))
        if one.saga.is_deciding:
            yielding.append(_loss(one.saga.change, me, rule))
    return Ruling(supersedes=tuple(older), yields=tuple(yielding))


def replaced_by(saga: Saga, rivals: Iterable[Rival]) -> Ruling:
    """The waiting changes whose replicas a change has replaced that is complete now."""
    mine = _replicas(saga.proposal)
    gone = [one for one in rivals if not one.saga.touched and mine & _replicas(one.saga.proposal)]
    reason = f"its replicas were replaced by change {saga.change}"
    losses = (Loss(change=one.saga.change, rule="replaced", reason=reason) for one in gone)
    return Ruling(supersedes=tuple(losses))


def over_budget(
    proposal: Recommendation, under_way: Sequence[Moves], policy: Arbitration
) -> str | None:
    """The first budget that has no room for a change beside those that are carried out."""
    for budget in policy.budgets:
        if budget.covers(proposal.deployment):
            inside = [one for one in under_way if budget.covers(one.deployment or "")]
            full = _is_full(budget, inside, proposal.spend_usd_per_hour)
            if full is not None:
                return full
    return None


def _is_full(budget: Budget, inside: Sequence[Moves], usd: float | None) -> str | None:
    if budget.max_moving is not None and len(inside) >= budget.max_moving:
        return f"budget {budget.name!r} allows {budget.max_moving} changes at once"
    if budget.max_usd_per_hour is None:
        return None
    costs = [usd, *(one.usd_per_hour for one in inside)]
    if any(cost is None for cost in costs):
        return f"budget {budget.name!r} cannot be kept: a target under it has no known price"
    total = sum(cost for cost in costs if cost is not None)
    if total > budget.max_usd_per_hour:
        most = f"${budget.max_usd_per_hour:g} an hour"
        return f"budget {budget.name!r} allows {most}, with this change it would be ${total:g}"
    return None


def _twin(saga: Saga, rivals: Iterable[Rival]) -> str | None:
    """Another open change of the same proposer that says the very same."""
    mine = saga.proposal
    same = (one.saga for one in rivals if _is_alike(one.saga.proposal, mine))
    return next((one.change for one in same if one.proposal.spec == mine.spec), None)


def _replaced(saga: Saga, rivals: Iterable[Rival]) -> list[Loss]:
    """Older proposals of the same kind for the same replicas, as far as nothing was done yet."""
    mine = saga.proposal
    reason = f"change {saga.change} is a newer proposal of its kind for the same target"
    return [
        Loss(change=one.saga.change, rule="newer", reason=reason)
        for one in rivals
        if not one.saga.touched
        and _is_alike(one.saga.proposal, mine)
        and _same_replicas(one.saga.proposal, mine)
    ]


def _is_alike(one: Recommendation, other: Recommendation) -> bool:
    return (one.proposer, one.spec.kind) == (other.proposer, other.spec.kind)


def _same_replicas(one: Recommendation, other: Recommendation) -> bool:
    mine, theirs = _replicas(one), _replicas(other)
    return mine == theirs or not mine.isdisjoint(theirs)


def _replicas(proposal: Recommendation) -> frozenset[str]:
    return frozenset(getattr(proposal.spec, "replicas", ()))


def _goes_before(me: Rival, other: Rival, at: datetime, policy: Arbitration) -> str | None:
    """The rule by which the first goes before the second; None when it does not."""
    if other.saga.proposal.is_urgent(at):
        return None
    mine, theirs = _is_aged(me, at, policy), _is_aged(other, at, policy)
    if mine or theirs:
        return "patience" if mine and (not theirs or me.opened_at < other.opened_at) else None
    for name, left, right in zip(
        _NAMES,
        precedence(me.saga.proposal, policy),
        precedence(other.saga.proposal, policy),
        strict=True,
    ):
        if left != right:
            return name if left < right else None
    older = (me.opened_at, me.saga.change) < (other.opened_at, other.saga.change)
    return "age" if older else None


def _is_aged(one: Rival, at: datetime, policy: Arbitration) -> bool:
    return (at - one.opened_at).total_seconds() > policy.max_wait_s


def _gives_way(one: Rival, at: datetime, policy: Arbitration) -> bool:
    return one.saga.preempted < policy.max_preemptions and not _is_aged(one, at, policy)


def _ahead(one: Rival, me: Rival, at: datetime, policy: Arbitration) -> Loss:
    rule = _goes_before(one, me, at, policy) or "preemptions"
    return _loss(one.saga.change, one, rule)


def _loss(change: str, winner: Rival, rule: str) -> Loss:
    proposal = winner.saga.proposal
    reason = f"change {winner.saga.change} goes first by {rule} on {proposal.deployment}"
    return Loss(change=change, rule=rule, reason=reason)
