"""When an engine is tuned, what is proposed of it, and whether that is safe for latency; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from pydantic import Field

from optiinfra.agents.performance.policy import Judgement
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import SLO, Deployment
from optiinfra.schemas.recommendation import Recommendation, Risk, RolloutPlan
from optiinfra.schemas.telemetry import Known, Reading, Unit
from optiinfra.schemas.tuning import TuningTrial
from optiinfra.schemas.vote import AgentName, Evidence, Verdict
from optiinfra.serving.bottleneck import Finding
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.curves import (
    arranged,
    faster,
    is_no_worse,
    is_slower,
    measured,
    spec_of,
    words,
)

STAGING = "replay of its own traffic on a staging replica"


class Tuning(Value):
    """Whether and how the engine of a deployment is tuned on a staging replica.

    A staging replica costs as much as any other for as long as a study lasts.
    """

    trials: int = Field(default=10, ge=2, description="configurations that one study tries at most")
    budget_s: float = Field(
        default=7_200.0, gt=0, description="after so long no further configuration is tried"
    )
    window_s: float = Field(
        default=300.0, gt=0, description="telemetry that a bottleneck is found in"
    )
    traffic_s: float = Field(
        default=3_600.0, gt=0, description="how far back sampled requests are replayed from"
    )
    requests: int = Field(default=200, ge=10, description="requests of one replay at most")
    min_requests: int = Field(
        default=50, ge=1, description="sampled requests below which nothing is tried"
    )
    measure_s: float = Field(
        default=20.0,
        ge=0,
        description="how long a replay is measured at least, after one and half as long to warm up",
    )
    beside_best: bool = Field(
        default=False,
        description="keep the best staging replica and measure each other one in turns with it:"
        " for machines whose speed drifts, at the price of a second staging replica",
    )
    saturation: float = Field(
        default=8.0,
        ge=1,
        description="how many times the present output tokens/s a replay asks for",
    )
    min_gain: float = Field(
        default=0.1, ge=0, description="gain of throughput below which nothing is proposed"
    )
    kv_limit: float = Field(
        default=0.95, gt=0, le=1, description="part of the KV cache that a replay may fill"
    )
    every_s: float = Field(default=60.0, gt=0, description="how often a bottleneck is looked for")
    cooldown_s: float = Field(
        default=86_400.0, ge=0, description="rest after a study, and after an unwanted proposal"
    )
    ready_s: float = Field(
        default=900.0, gt=0, description="time for a staging replica until it serves"
    )


def common_cause(findings: Iterable[Finding]) -> Finding | None:
    """The finding that most replicas share; None where none was found on any replica."""
    named = [one for one in findings if one.cause not in (Cause.NONE, Cause.UNKNOWN)]
    if not named:
        return None
    [(cause, _)] = Counter(one.cause for one in named).most_common(1)
    return next(one for one in named if one.cause is cause)


def proposal(
    deployment: Deployment,
    finding: Finding,
    trials: Sequence[TuningTrial],
    best: TuningTrial | None,
    policy: Tuning,
    *,
    id: str,  # noqa: A002 - the field's name
    rollout: RolloutPlan,
    rollback_s: float,
    now: datetime,
) -> Recommendation | str:
    """The change to the best of the trials, the present configuration first; or why there is none.

    Only knobs that differ from the present ones are turned.
    """
    if best is None or best is trials[0]:
        return f"none of {len(trials)} configurations is better than the present one"
    gain = faster(trials[0], best)
    if gain is None:
        return f"the present configuration could not be measured: {trials[0].reason}"
    if gain < 1 + policy.min_gain:
        return f"the best is {gain:.2f} times as fast, {1 + policy.min_gain:.2f} is wanted"
    was = trials[0].knobs
    spec = spec_of({name: v for name, v in best.knobs.items() if was.get(name) != v})
    if spec is None:
        return f"no single change turns {words(best.knobs)}"
    return Recommendation(
        id=id,
        tenant=deployment.tenant,
        deployment=deployment.id,
        proposer=AgentName.PERFORMANCE,
        title=f"Start {deployment.id} with {words(best.knobs)}: {gain:.1f} times the tokens/s",
        spec=spec,
        risk=Risk.MEDIUM,
        risk_reasons=(
            "every replica is replaced by one that starts with other knobs",
            "the gain was measured on a replay, which is not tomorrow's traffic",
        ),
        evidence=(*_effect(trials[0], best, gain), *finding.evidence),
        curve=arranged(trials, best),
        rollout=rollout,
        rollback_seconds=rollback_s,
        proposed_at=now,
    )


def vote_on_tuning(proposal: Recommendation, slo: SLO) -> Judgement:
    """Approve what was measured to serve more, with latencies under their objectives or no worse.

    Abstains where it was not measured.
    """
    found = measured(proposal)
    if isinstance(found, str):
        return Judgement(Verdict.ABSTAIN, (found,))
    now, then = found
    gain = faster(now, then)
    pairs = (
        ("TTFT p95", now.ttft_p95_s, then.ttft_p95_s, slo.ttft_p95_s),
        ("TPOT p95", now.tpot_p95_s, then.tpot_p95_s, slo.tpot_p95_s),
    )
    evidence = _effect(now, then, gain)
    if gain is None:
        return Judgement(Verdict.ABSTAIN, ("its throughput was not measured",), evidence)
    worse = [f"it serves {gain:.2f} times the tokens/s"] if is_slower(gain) else []
    for name, before, after, objective in pairs:
        if not (isinstance(before, Known) and isinstance(after, Known)):
            return Judgement(Verdict.ABSTAIN, (f"its {name} was not measured",), evidence)
        if not is_no_worse(after.value, before.value, objective):
            worse.append(
                f"{name} is {after.value:.3g} s in staging, {before.value:.3g} s now, over"
                f" {objective:.3g} s"
            )
    if worse:
        return Judgement(Verdict.REJECT, tuple(worse), evidence)
    reason = (
        f"in staging {gain:.1f} times the tokens/s, with no latency over its objective or worse"
    )
    return Judgement(Verdict.APPROVE, (reason,), evidence)


def _effect(now: TuningTrial, then: TuningTrial, gain: float | None) -> tuple[Evidence, ...]:
    rows: list[tuple[str, Unit, Reading]] = [
        ("tokens_per_s_now", Unit.PER_SECOND, now.tokens_per_s),
        ("tokens_per_s_then", Unit.PER_SECOND, then.tokens_per_s),
        ("ttft_p95_s_now", Unit.SECONDS, now.ttft_p95_s),
        ("ttft_p95_s_then", Unit.SECONDS, then.ttft_p95_s),
        ("tpot_p95_s_now", Unit.SECONDS, now.tpot_p95_s),
        ("tpot_p95_s_then", Unit.SECONDS, then.tpot_p95_s),
        ("kv_usage_peak_then", Unit.FRACTION, then.kv_usage_peak),
    ]
    if gain is not None:
        rows.append(("throughput_gain", Unit.COUNT, Known(value=gain)))
    return tuple(
        Evidence(name=name, unit=unit, reading=reading, samples=then.served, source=STAGING)
        for name, unit, reading in rows
    )
