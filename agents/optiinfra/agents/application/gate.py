"""The verdict of one look at a gate: pass, hold or roll back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from optiinfra.agents.application.policy import ApplicationPolicy
from optiinfra.agents.application.sequential import (
    Arm,
    Coverage,
    Design,
    Evidence,
    Interval,
    Observation,
    difference,
    floor_evidence,
    is_uneven,
    pairs_of,
    weigh,
)
from optiinfra.schemas.deployment import QualityFloor
from optiinfra.schemas.rollout import ArmEvidence, GateMetric, GateVerdict, SequentialEvidence
from optiinfra.schemas.telemetry import Known, Reading, Unit, Unknown, UnknownReason


@dataclass(frozen=True, slots=True)
class GateSight:
    """All that is known at one look; `units` hold one entry per session or golden prompt.

    `failures` says for each answer, in the order of time, whether it failed. `unreached` names
    replicas that could not be asked, with the reason. `twins` are the scores of golden prompts that
    the baseline answered twice, in the order of time.
    """

    at: datetime
    since: datetime
    has_both_arms: bool
    units: Sequence[Observation] = ()
    coverage: Mapping[Arm, Coverage] = field(default_factory=dict)
    coverage_apart: Sequence[Mapping[Arm, Coverage]] = ()
    """That of live and of golden answers, each by itself: the arms have them in other shares."""
    failures: Mapping[Arm, Sequence[bool]] = field(default_factory=dict)
    unreached: Mapping[str, str] = field(default_factory=dict)
    twins: Sequence[tuple[float, float]] = ()

    def covered(self, arm: Arm) -> Coverage:
        """How many of the arm's answers could be scored; none of none, where there were none."""
        return self.coverage.get(arm, Coverage(0, 0))


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The verdict with what it stands on; `is_regression` when the quality test itself crossed."""

    verdict: GateVerdict
    reason: str
    metrics: tuple[GateMetric, ...]
    quality: SequentialEvidence
    is_regression: bool


def judge_gate(policy: ApplicationPolicy, sight: GateSight, floor: QualityFloor) -> GateDecision:
    """Rolls back when any line says so; passes when all do; anything unknown holds."""
    design = policy.design(floor)
    pairs = pairs_of(sight.units)
    evidence = weigh(pairs, design)
    fresh = sum(pair.at >= sight.since for pair in pairs)
    quality = _quality_line(sight, evidence, _Stage(design, fresh, policy.stage_pairs))
    lines = (
        quality,
        _floor_line(policy, sight),
        _coverage_line(policy, sight),
        _control_line(sight, design),
        _reach_line(sight),
    )
    verdict = _worst(lines)
    telling = [line.detail for line in lines if line.verdict is verdict]
    return GateDecision(
        verdict=verdict,
        reason="; ".join(telling),
        metrics=lines,
        quality=_record(sight, evidence, design),
        is_regression=quality.verdict is GateVerdict.ROLL_BACK,
    )


@dataclass(frozen=True, slots=True)
class _Stage:
    design: Design
    fresh_pairs: int
    needed_pairs: int


def _worst(lines: Sequence[GateMetric]) -> GateVerdict:
    verdicts = {line.verdict for line in lines}
    for verdict in (GateVerdict.ROLL_BACK, GateVerdict.HOLD):
        if verdict in verdicts:
            return verdict
    return GateVerdict.PASS


def _quality_line(sight: GateSight, evidence: Evidence, stage: _Stage) -> GateMetric:
    verdict, detail = _quality_verdict(evidence, stage)
    if not sight.has_both_arms:
        verdict, detail = GateVerdict.HOLD, "no concurrent baseline to compare the canary with"
    return GateMetric(
        name="quality_drop_relative",
        unit=Unit.FRACTION,
        observed=_relative_drop(evidence),
        threshold=stage.design.margin,
        window_s=_window_s(sight),
        samples=evidence.pairs,
        verdict=verdict,
        detail=detail,
    )


def _quality_verdict(evidence: Evidence, stage: _Stage) -> tuple[GateVerdict, str]:
    means, design = _means(evidence), stage.design
    if evidence.e_rollback >= 1 / design.alpha:
        e = evidence.e_rollback
        return GateVerdict.ROLL_BACK, f"the canary answers worse: {means}, e-value {e:.3g}"
    if evidence.e_promote < 1 / design.beta:
        e, enough = evidence.e_promote, 1 / design.beta
        return GateVerdict.HOLD, f"not yet certain: {means}, e-value {e:.3g} of {enough:.0f}"
    if stage.fresh_pairs < stage.needed_pairs:
        seen = f"{stage.fresh_pairs} of {stage.needed_pairs}"
        return GateVerdict.HOLD, f"{seen} pairs seen in this stage"
    return GateVerdict.PASS, f"no drop beyond the margin: {means}"


def _means(evidence: Evidence) -> str:
    if evidence.mean_baseline is None or evidence.mean_canary is None:
        return "no pairs"
    return (
        f"{evidence.mean_canary:.3f} against {evidence.mean_baseline:.3f} over "
        f"{evidence.pairs} pairs"
    )


def _relative_drop(evidence: Evidence) -> Reading:
    """Half the width of the confidence sequence is the reading's error."""
    base, canary, bounds = evidence.mean_baseline, evidence.mean_canary, evidence.difference
    if base is None or canary is None or bounds is None:
        return Unknown(reason=UnknownReason.NO_TRAFFIC, detail="no pairs yet")
    if base == 0:
        return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail="the baseline scores 0 throughout")
    return Known(value=(base - canary) / base, error=(bounds.high - bounds.low) / 2 / base)


def _record(sight: GateSight, evidence: Evidence, design: Design) -> SequentialEvidence:
    bounds, twins = evidence.difference, sight.twins
    squares = [(one - two) ** 2 for one, two in twins]
    return SequentialEvidence(
        pairs=evidence.pairs,
        e_rollback=evidence.e_rollback,
        e_promote=evidence.e_promote,
        alpha=design.alpha,
        beta=design.beta,
        margin=design.margin,
        mean_baseline=evidence.mean_baseline,
        mean_canary=evidence.mean_canary,
        difference_low=bounds.low if bounds else None,
        difference_high=bounds.high if bounds else None,
        baseline=_arm(sight, Arm.BASELINE),
        canary=_arm(sight, Arm.CANARY),
        twins=len(twins),
        twin_stdev=(sum(squares) / len(twins)) ** 0.5 if twins else None,
    )


def _arm(sight: GateSight, arm: Arm) -> ArmEvidence:
    covered = sight.covered(arm)
    units = sum(unit.arm is arm and unit.score is not None for unit in sight.units)
    return ArmEvidence(answers=covered.total, scored=covered.scored, units=units)


def _floor_line(policy: ApplicationPolicy, sight: GateSight) -> GateMetric:
    canary = sight.failures.get(Arm.CANARY, ())
    verdict, detail = _floor_verdict(policy, sight)
    observed: Reading = Unknown(reason=UnknownReason.NO_TRAFFIC, detail="no canary answers")
    if canary:
        observed = Known(value=sum(canary) / len(canary))
    return GateMetric(
        name="canary_failed_answers",
        unit=Unit.FRACTION,
        observed=observed,
        threshold=policy.failure_rate,
        window_s=_window_s(sight),
        samples=len(canary),
        verdict=verdict,
        detail=detail,
    )


def _floor_verdict(policy: ApplicationPolicy, sight: GateSight) -> tuple[GateVerdict, str]:
    canary = sight.failures.get(Arm.CANARY, ())
    if not canary:
        return GateVerdict.HOLD, "no canary answer was seen"
    told = f"{sum(canary)} of {len(canary)} canary answers failed or were empty"
    limit = 1 / policy.floor_alpha
    if floor_evidence(canary, policy.failure_rate) < limit:
        return GateVerdict.PASS, told
    baseline = sight.failures.get(Arm.BASELINE, ())
    if floor_evidence(baseline, policy.failure_rate) >= limit:
        return GateVerdict.HOLD, f"{told}, and the baseline fails too: not the change alone"
    return GateVerdict.ROLL_BACK, told


def _coverage_line(policy: ApplicationPolicy, sight: GateSight) -> GateMetric:
    canary, baseline = _least_alike(sight, policy.coverage_tolerance)
    uneven = is_uneven(canary, baseline, policy.coverage_tolerance)
    observed: Reading = Unknown(reason=UnknownReason.NO_TRAFFIC, detail="an arm has no answers")
    if canary.total and baseline.total:
        observed = Known(value=abs(canary.missing_share - baseline.missing_share))
    shares = (
        f"{canary.scored} of {canary.total} canary and {baseline.scored} of {baseline.total} "
        "baseline answers could be scored"
    )
    return GateMetric(
        name="unscored_difference",
        unit=Unit.FRACTION,
        observed=observed,
        threshold=policy.coverage_tolerance,
        window_s=_window_s(sight),
        samples=canary.total + baseline.total,
        verdict=GateVerdict.HOLD if uneven else GateVerdict.PASS,
        detail=f"uneven: {shares}" if uneven else shares,
    )


def _least_alike(sight: GateSight, tolerance: float) -> tuple[Coverage, Coverage]:
    """Coverage of canary and baseline over the kind of answers in which they differ most."""
    apart = [(one[Arm.CANARY], one[Arm.BASELINE]) for one in sight.coverage_apart]
    apart = [(one, two) for one, two in apart if one.total and two.total]
    return max(
        apart or [(sight.covered(Arm.CANARY), sight.covered(Arm.BASELINE))],
        key=lambda p: (
            is_uneven(p[0], p[1], tolerance),
            abs(p[0].missing_share - p[1].missing_share),
        ),
    )


def _control_line(sight: GateSight, design: Design) -> GateMetric:
    """The baseline against itself: two answers to one prompt must not differ on average."""
    twins = sight.twins
    observed: Reading = Unknown(reason=UnknownReason.NO_TRAFFIC, detail="no prompt asked twice")
    verdict, detail = GateVerdict.PASS, "no prompt was answered twice by the baseline"
    if twins:
        gains = np.array([first - second for first, second in twins])
        bounds = difference(gains, replace(design, alpha=design.alpha / 2))
        observed = Known(value=float(gains.mean()), error=(bounds.high - bounds.low) / 2)
        verdict, detail = _control_verdict(bounds, len(twins))
    return GateMetric(
        name="baseline_twin_difference",
        unit=Unit.SCORE,
        observed=observed,
        threshold=0.0,
        window_s=_window_s(sight),
        samples=len(twins),
        verdict=verdict,
        detail=detail,
    )


def _control_verdict(bounds: Interval, twins: int) -> tuple[GateVerdict, str]:
    between = f"by {bounds.low:+.3f} to {bounds.high:+.3f} over {twins} prompts"
    if bounds.low > 0 or bounds.high < 0:
        why = "the baseline does not agree with itself, so nothing can be compared with it"
        return GateVerdict.HOLD, f"{why}: its second answers differ {between}"
    return GateVerdict.PASS, f"the baseline agrees with itself: its second answers differ {between}"


def _reach_line(sight: GateSight) -> GateMetric:
    told = ", ".join(f"{name} ({why})" for name, why in sorted(sight.unreached.items()))
    return GateMetric(
        name="unreached_replicas",
        unit=Unit.COUNT,
        observed=Known(value=len(sight.unreached)),
        threshold=0.0,
        window_s=0.0,
        verdict=GateVerdict.HOLD if told else GateVerdict.PASS,
        detail=f"not reached: {told}" if told else "every replica answered",
    )


def _window_s(sight: GateSight) -> float:
    return max(0.0, (sight.at - sight.since).total_seconds())
