"""The numbers that the application agent decides by, and its vote on a change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from pydantic import Field

from optiinfra.agents.application.sequential import (
    BETS,
    Design,
    required_pairs,
)
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import QualityFloor
from optiinfra.schemas.recommendation import Recommendation, StagePlan
from optiinfra.schemas.telemetry import Known, Reading, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import AgentName, Evidence, Verdict

UNTOUCHED_KINDS = frozenset({"commitment_purchase", "gate_tightening"})
"""Kinds that alter no server and so no answer."""
URGENT_KINDS = frozenset({"spot_replacement"})
"""Kinds whose alternative is losing the replica: the same engine on another machine, in minutes."""


class ApplicationPolicy(Value):
    """The numbers behind the verdicts that are the same for all deployments.

    How much worse answers may become, and how sure the test has to be, each deployment says in its
    own `quality`.
    """

    bets: tuple[float, ...] = BETS
    stage_pairs: int = Field(default=20, ge=1)
    """Pairs that each stage has to add before it passes."""
    failure_rate: float = Field(default=0.01, gt=0, lt=1)
    """Hard floor: answers that fail or are none (empty, looping, unreadable)."""
    floor_alpha: float = Field(default=0.01, gt=0, lt=1)
    coverage_tolerance: float = Field(default=0.02, ge=0, lt=1)
    """How far the arms' shares of unscored answers may differ beyond three standard errors."""
    golden_per_look: int = Field(default=40, ge=1)
    golden_limit_s: float = Field(default=12.0, gt=0)
    """How long one golden run of a look may take; never past the request's deadline."""
    session_window_s: float = Field(default=5.0, ge=0)
    settle_s: float = Field(default=2.0, ge=0)
    """Stored readings are complete after this time."""
    recall_s: float = Field(default=21_600.0, gt=0)
    """How far before its stage a gate reads evidence of the rollout back, at most."""
    baseline_every_s: float = Field(default=300.0, gt=0)
    baseline_prompts: int = Field(default=40, ge=1)
    baseline_limit_s: float = Field(default=30.0, gt=0)
    baseline_max_age_s: float = Field(default=3600.0, gt=0)
    baseline_units: int = Field(default=20, ge=2)
    traffic_window_s: float = Field(default=300.0, gt=0)

    def design(self, quality: QualityFloor) -> Design:
        """A deployment's test; raises `Rejected` for bets that could ruin it."""
        return Design(quality.alpha, quality.beta, quality.max_relative_drop, self.bets)


@dataclass(frozen=True, slots=True)
class Baseline:
    """How good a deployment's answers are, from one golden run.

    `stdev` is over prompts; `pair_stdev` over the differences of two answers to one prompt, which
    is what a paired test has to see through.
    """

    at: datetime
    scorer: str
    units: int
    mean: float
    stdev: float
    pair_stdev: float


@dataclass(frozen=True, slots=True)
class VoteSight:
    """What is known when a vote is asked for.

    `baseline` is None when there is none that is fresh, and `missing` says why. `scored_per_s` is
    the measured rate of live sessions that could be scored, unknown without traffic.
    """

    quality: QualityFloor
    baseline: Baseline | None
    missing: str
    scored_per_s: Reading


@dataclass(frozen=True, slots=True)
class Ballot:
    """The verdict with its reasons, conditions and evidence."""

    verdict: Verdict
    reasons: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()


def judge_vote(policy: ApplicationPolicy, proposal: Recommendation, sight: VoteSight) -> Ballot:
    """Approves when a drop by the margin would be seen within the rollout.

    Abstains without a fresh baseline; rejects a plan without a quality gate, or one that is over
    before the test could tell. Urgent replacements need the baseline only.
    """
    if proposal.spec.kind in UNTOUCHED_KINDS:
        return Ballot(Verdict.APPROVE, (f"a {_words(proposal)} alters no server and no answer",))
    baseline = sight.baseline
    if baseline is None:
        return Ballot(Verdict.ABSTAIN, (f"no quality baseline to compare with: {sight.missing}",))
    told = _baseline_evidence(policy, baseline)
    if baseline.units < policy.baseline_units:
        few = f"the baseline rests on {baseline.units} units, {policy.baseline_units} are needed"
        return Ballot(Verdict.ABSTAIN, (few,), evidence=told)
    if proposal.spec.kind in URGENT_KINDS:
        why = "the replica is lost otherwise, and the same engine takes its place"
        return Ballot(Verdict.APPROVE, (why,), evidence=told)
    if AgentName.APPLICATION not in proposal.rollout.gates:
        no_gate = "the rollout has no quality gate, so a drop would go unseen"
        return Ballot(Verdict.REJECT, (no_gate,), evidence=told)
    return _detectable(policy, proposal, sight, baseline)


def _detectable(
    policy: ApplicationPolicy, proposal: Recommendation, sight: VoteSight, baseline: Baseline
) -> Ballot:
    design = policy.design(sight.quality)
    needed = required_pairs(baseline.mean, baseline.pair_stdev, design)
    offered = pairs_offered(policy, proposal, sight.scored_per_s)
    drop = f"a drop of {design.margin:.0%}"
    told = (*_baseline_evidence(policy, baseline), _pairs_evidence(needed, offered))
    if needed is None:
        never = f"at a mean score of {baseline.mean:.3f}, {drop} cannot be told from noise"
        return Ballot(Verdict.REJECT, (never,), evidence=told)
    if needed > offered:
        short = f"{drop} needs {needed} pairs to be seen, the rollout gives {offered:.0f}"
        return Ballot(Verdict.REJECT, (short,), evidence=told)
    return Ballot(
        Verdict.APPROVE,
        (f"{drop} is seen within {needed} of the {offered:.0f} pairs that the rollout gives",),
        (f"each stage passes the quality gate (margin {design.margin:.0%})",),
        told,
    )


def pairs_offered(
    policy: ApplicationPolicy, proposal: Recommendation, scored_per_s: Reading
) -> float:
    """Pairs that a rollout can see at most before its holds run out: golden ones of each look,
    and live ones, of which the smaller arm sets the number. Unknown traffic adds none."""
    per_s = scored_per_s.value if isinstance(scored_per_s, Known) else 0.0
    look_every_s = proposal.rollout.look_every_s
    return sum(
        policy.golden_per_look * (stage.hold_limit_s // look_every_s + 1)
        + per_s * min(stage.share, 1 - stage.share) * _length_s(stage)
        for stage in proposal.rollout.stages
    )


def _length_s(stage: StagePlan) -> float:
    return stage.soak_s + stage.hold_limit_s


def _words(proposal: Recommendation) -> str:
    return proposal.spec.kind.replace("_", " ")


def _baseline_evidence(policy: ApplicationPolicy, baseline: Baseline) -> tuple[Evidence, ...]:
    source = f"golden prompts, {baseline.scorer}"
    return (
        Evidence(
            name="baseline_quality",
            unit=Unit.SCORE,
            reading=Known(value=baseline.mean, error=1.96 * baseline.stdev / baseline.units**0.5),
            window_s=policy.baseline_max_age_s,
            samples=baseline.units,
            source=source,
        ),
        Evidence(
            name="baseline_pair_stdev",
            unit=Unit.SCORE,
            reading=Known(value=baseline.pair_stdev),
            samples=baseline.units,
            source=source,
        ),
    )


def _pairs_evidence(needed: int | None, offered: float) -> Evidence:
    reading: Reading = Unknown(reason=UnknownReason.IMPLAUSIBLE, detail="no number is enough")
    if needed is not None:
        reading = Known(value=needed)
    return Evidence(
        name="pairs_to_see_a_drop",
        unit=Unit.COUNT,
        reading=reading,
        threshold=offered,
        source="power of the betting test at the baseline's mean and spread",
    )
