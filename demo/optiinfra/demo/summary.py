"""The end of the story in numbers, computed from the event log and the gateway's counters; pure.

Each number says where it comes from, so that anybody can compute it again: from
`GET /api/v1/events` (or `optiinfra events replay`) and `GET /admin/counters` of the gateway.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from math import ceil
from statistics import median

from pydantic import Field

from optiinfra.agents.actuators.traffic import TrafficCounters
from optiinfra.demo.api import LoggedEvent
from optiinfra.demo.scenario import STAGE_OF, Play
from optiinfra.events.facts import (
    TERMINAL_FACTS,
    ApprovalGranted,
    ApprovalRequested,
    ChangeCompleted,
    ChangeVetoed,
    ExecutionStaged,
    GateAnswered,
    OutcomeRecorded,
    RecommendationProposed,
    change_of,
)
from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.ids import ChangeId
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rollout import StepKind
from optiinfra.schemas.telemetry import Known

_DECIDED = (ApprovalRequested, ApprovalGranted, ChangeVetoed)


class Requests(Value):
    """How the users' requests ended, as the gateway counted them."""

    served: int
    failed: int
    truncated: int


class BeforeAfter(Value):
    """A quantity before and after; None is unknown."""

    before: float | None
    after: float | None


class Quality(BeforeAfter):
    """Mean score of answers, 0-1; `interval` bounds the difference after - before."""

    interval: tuple[float, float] | None


class Decisions(Value):
    """Seconds from a proposal to the end of its votes; None without any."""

    median: float | None
    p95: float | None


class Summary(Value):
    """What `--json` prints in its last line."""

    plays: dict[Play, ChangeState | None]
    requests: Requests
    usd_per_hour: BeforeAfter
    ttft_p95_s: BeforeAfter
    tpot_p95_s: BeforeAfter
    quality: Quality
    decision_s: Decisions
    events: int = Field(ge=0)
    audit_ok: bool
    seed: int


def proposals(events: Iterable[LoggedEvent]) -> dict[ChangeId, Recommendation]:
    """All proposals by their change, in the order of the log; a repeated one counts once."""
    found: dict[ChangeId, Recommendation] = {}
    for event in events:
        if isinstance(event.fact, RecommendationProposed):
            found.setdefault(event.fact.recommendation.id, event.fact.recommendation)
    return found


def change_of_play(events: Sequence[LoggedEvent], play: Play) -> ChangeId | None:
    """The change that a play is about: the first of its kind on its deployment."""
    kind = "spot_replacement" if play is Play.RECLAIM else "spot_migration"
    deployment = STAGE_OF[play].deployment
    return next(
        (
            change
            for change, proposal in proposals(events).items()
            if proposal.deployment == deployment and proposal.spec.kind == kind
        ),
        None,
    )


def terminal_state(events: Iterable[LoggedEvent], change: ChangeId | None) -> ChangeState | None:
    """How a change ended; None when it did not (or there is none)."""
    ends = (TERMINAL_FACTS.get(e.kind) for e in events if change and change_of(e.fact) == change)
    return next((end for end in ends if end is not None), None)


def usd_per_hour(events: Sequence[LoggedEvent]) -> BeforeAfter:
    """Spend of all deployments together, from the log.

    Before: of each deployment the spend that its first proposal states. After: the spend that was
    read back last, by an outcome or by a step; where nothing was ever changed, the one before.
    """
    first: dict[str, float | None] = {}
    last: dict[str, float | None] = {}
    deployment_of = {change: one.deployment for change, one in proposals(events).items()}
    for event in events:
        fact = event.fact
        if isinstance(fact, RecommendationProposed):
            proposal = fact.recommendation
            first.setdefault(proposal.deployment, proposal.spend_usd_per_hour)
            last.setdefault(proposal.deployment, proposal.spend_usd_per_hour)
        elif isinstance(fact, ExecutionStaged):
            last[deployment_of[fact.change]] = fact.result.usd_per_hour
        elif isinstance(fact, OutcomeRecorded):
            reading = fact.outcome.usd_per_hour_after
            last[fact.outcome.deployment] = reading.value if isinstance(reading, Known) else None
    return BeforeAfter(before=_sum(first.values()), after=_sum(last.values()))


def latency(
    events: Sequence[LoggedEvent], counters: TrafficCounters, kind: str, change: ChangeId | None
) -> BeforeAfter:
    """p95 over all streamed requests of the replicas that a change replaced, and of the new ones.

    Which replicas these are says the log (the proposal, and the arms of the last apply step); how
    fast they answered say the gateway's histograms (`ttft` or `tpot`).
    """
    proposal = proposals(events).get(change or "")
    old = set(getattr(proposal.spec, "replicas", ())) if proposal else set()
    new = set(_canaries(events, change))
    return BeforeAfter(
        before=counters.quantile_s(kind, 0.95, old) if old else None,
        after=counters.quantile_s(kind, 0.95, new) if new else None,
    )


def quality(events: Iterable[LoggedEvent], change: ChangeId | None) -> Quality:
    """The last quality evidence of a change's gates: both arms' means and the 95 % sequence."""
    found = [
        event.fact.answer.quality
        for event in events
        if isinstance(event.fact, GateAnswered) and event.fact.answer.change == change
    ]
    evidence = next((one for one in reversed(found) if one is not None and one.pairs), None)
    if evidence is None:
        return Quality(before=None, after=None, interval=None)
    low, high = evidence.difference_low, evidence.difference_high
    return Quality(
        before=evidence.mean_baseline,
        after=evidence.mean_canary,
        interval=None if low is None or high is None else (low, high),
    )


def decision_times(events: Iterable[LoggedEvent]) -> list[float]:
    """Seconds from `recommendation.proposed` to the first word after the votes, for each change.

    That word is `approval.requested` (a person is asked), `approval.granted` (a policy says yes)
    or `change.vetoed`: the time that a person thinks is not counted.
    """
    began: dict[ChangeId, datetime] = {}
    taken: dict[ChangeId, float] = {}
    for event in events:
        change = change_of(event.fact)
        if change is None:
            continue
        if isinstance(event.fact, RecommendationProposed):
            began.setdefault(change, event.at)
        elif change in began and isinstance(event.fact, _DECIDED):
            taken.setdefault(change, (event.at - began[change]).total_seconds())
    return list(taken.values())


def summarise(
    events: Sequence[LoggedEvent],
    counters: TrafficCounters,
    *,
    plays: Sequence[Play],
    audit_ok: bool,
    seed: int,
) -> Summary:
    """The whole summary; `events` is the log in its order."""
    migration = change_of_play(events, Play.MIGRATION)
    totals, taken = counters.totals, sorted(decision_times(events))
    return Summary(
        plays={
            play: terminal_state(events, change_of_play(events, play)) if play in plays else None
            for play in Play
        },
        requests=Requests(served=totals.served, failed=totals.failed, truncated=totals.truncated),
        usd_per_hour=usd_per_hour(events),
        ttft_p95_s=latency(events, counters, "ttft", migration),
        tpot_p95_s=latency(events, counters, "tpot", migration),
        quality=quality(events, migration),
        decision_s=Decisions(
            median=median(taken) if taken else None,
            p95=taken[ceil(0.95 * len(taken)) - 1] if taken else None,
        ),
        events=len(events),
        audit_ok=audit_ok,
        seed=seed,
    )


def _canaries(events: Sequence[LoggedEvent], change: ChangeId | None) -> tuple[str, ...]:
    """The replicas that carry a change, from its last step or its completion."""
    found: tuple[str, ...] = ()
    for event in events:
        fact = event.fact
        if isinstance(fact, ExecutionStaged) and fact.change == change:
            if fact.result.step.kind is not StepKind.ROLLBACK:
                found = fact.result.arms.canary
        elif isinstance(fact, ChangeCompleted) and fact.change == change:
            found = fact.arms.canary or found
    return found


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    present = [value for value in known if value is not None]
    return round(sum(present), 6) if known and len(present) == len(known) else None
