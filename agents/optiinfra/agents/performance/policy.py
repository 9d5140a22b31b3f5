"""Whether a change is safe for the latency objectives, from what is measured and forecast; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, log
from typing import Literal

from pydantic import Field

from optiinfra.schemas.answers import GOLDEN_SETTLE_S
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.recommendation import (
    ChangeSpec,
    Consolidation,
    IdleShutdown,
    PredictiveScaling,
    SpotMigration,
    SpotReplacement,
)
from optiinfra.schemas.telemetry import Known, Reading, Unit, Unknown
from optiinfra.schemas.vote import Evidence, Verdict
from optiinfra.serving.simulation import LatencyForecast
from optiinfra.serving.windows import Pooled

MEASURED = "replica telemetry"
FORECAST = "perf card, scaled to the measured latency"


class PerformancePolicy(Value):
    """The numbers that a person may change; times in s."""

    sense_every_s: float = Field(default=5.0, gt=0)
    scrape_timeout_s: float = Field(default=2.0, gt=0)
    vote_window_s: float = Field(default=300.0, gt=0)
    stale_s: float = Field(default=30.0, gt=0)
    """A replica whose newest reading is older is unknown."""
    golden_settle_s: float = Field(default=GOLDEN_SETTLE_S, ge=0)
    """Load so recent is left out, since golden prompts in it may be unrecorded; at most a third of
    the window."""
    min_samples: int = Field(default=30, ge=1)
    """Requests that a p95 needs to decide anything."""
    min_scrapes: int = Field(default=3, ge=1)
    """Scrapes that the mean of a gauge needs to decide anything."""
    min_margin: float = Field(default=0.0, ge=0, lt=1)
    """Part of the objective that must be left over."""
    replicas_gone: int = Field(default=1, ge=0)
    """Replicas that may be lost after the change while the objective still holds."""
    baseline_ratio: float = Field(default=1.2, ge=1)
    """How many times worse than the concurrent baseline a canary has to be to be undone."""
    max_waiting: float = Field(default=5.0, ge=0)
    """Mean queue of a replica that is too long (the saturation threshold of llm-d)."""
    calibration_low: float = Field(default=0.5, gt=0)
    calibration_high: float = Field(default=3.0, ge=1)
    """Bounds of measured ÷ predicted: beyond them the card, not the load, is in doubt."""
    calibration_prior_samples: float = Field(default=50.0, ge=0)
    """Requests at which measured and predicted latency weigh the same."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reasons, before it becomes a vote."""

    verdict: Verdict
    reasons: tuple[str, ...]
    evidence: tuple[Evidence, ...] = ()
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Headcount:
    """Serving replicas now, after the change, and after it with some lost."""

    now: int
    after: int
    left: int


@dataclass(frozen=True, slots=True)
class VoteQuestion:
    """What a vote rests on; forecasts are of one replica, at the load that it would then carry.

    `current` is forecast at the present load, `reduced` with the replicas of `Headcount.left`.
    """

    slo: SLO
    heads: Headcount
    window_s: float
    ttft: Pooled
    tpot: Pooled
    offered: Reading
    current: LatencyForecast | Unknown
    reduced: LatencyForecast | Unknown
    each: Mapping[str, Pooled] = field(default_factory=dict)
    """TTFT of each replica alone."""


@dataclass(frozen=True, slots=True)
class ReplacementQuestion:
    """An urgent replacement: what happens without it, and with it."""

    slo: SLO
    leaving: int
    survivors: int
    offered: Reading
    without: LatencyForecast | Unknown
    replaced: LatencyForecast | Unknown


@dataclass(frozen=True, slots=True)
class _Line:
    """One latency against its objective: measured, and forecast for the replicas left."""

    name: str
    measured: Pooled
    limit: float
    reduced: Reading
    factor: float


def heads(spec: ChangeSpec, serving: int, policy: PerformancePolicy) -> Headcount | None:
    """Replica counts around a change; None for kinds whose effect on latency is not modelled."""
    match spec:
        case SpotMigration() | SpotReplacement():
            after = serving
        case PredictiveScaling():
            after = spec.to_replicas
        case IdleShutdown() | Consolidation():
            after = serving - len(spec.replicas)
        case _:
            return None
    return Headcount(serving, after, after - policy.replicas_gone)


def calibration(measured: Pooled, predicted_s: float, policy: PerformancePolicy) -> float:
    """Factor from predicted to real latency: `(measured ÷ predicted)^(n ÷ (n + n₀))`, clipped.

    n requests were measured and n₀ is the policy's prior: few of them leave the card's word as it
    is. 1 where nothing can be compared.
    """
    if not isinstance(measured.reading, Known) or measured.reading.value <= 0 or predicted_s <= 0:
        return 1.0
    weight = measured.samples / (measured.samples + policy.calibration_prior_samples)
    factor = exp(weight * log(measured.reading.value / predicted_s))
    return min(max(factor, policy.calibration_low), policy.calibration_high)


def vote(question: VoteQuestion, policy: PerformancePolicy) -> Judgement:
    """Approve when the objective holds now and with `replicas_gone` lost after the change."""
    lines = _lines(question, policy)
    evidence = _evidence(question, lines, policy)
    missing = _missing(question, policy)
    if missing:
        return Judgement(Verdict.ABSTAIN, missing, evidence)
    if question.heads.left < 1:
        reason = (
            f"{question.heads.after} replica(s) after the change:"
            f" none is left when {policy.replicas_gone} is lost"
        )
        return Judgement(Verdict.REJECT, (reason,), evidence)
    broken = [text for line in lines for text in _violations(line, question.heads, policy)]
    if broken:
        return Judgement(Verdict.REJECT, tuple(broken), evidence)
    return Judgement(Verdict.APPROVE, _margins(lines, question.heads), evidence)


def vote_on_replacement(question: ReplacementQuestion) -> Judgement:
    """Approve a replacement that leaves each replica less load than doing nothing would."""
    evidence = _replacement_evidence(question)
    if question.survivors == 0:
        reason = f"without it no replica is left: all {question.leaving} are being reclaimed"
        return Judgement(Verdict.APPROVE, (reason,), evidence)
    if isinstance(question.offered, Unknown):
        reason = f"offered load is unknown: {_why(question.offered)}"
        return Judgement(Verdict.ABSTAIN, (reason,), evidence)
    total = question.survivors + question.leaving
    load = (
        f"doing nothing leaves {question.offered.value / question.survivors:.3g} requests/s to each"
        f" of {question.survivors} replica(s), replacing {question.offered.value / total:.3g}"
        f" to each of {total}"
    )
    latency = _compared(question)
    return Judgement(Verdict.APPROVE, (load, *latency), evidence)


def _lines(question: VoteQuestion, policy: PerformancePolicy) -> tuple[_Line, _Line]:
    slo = question.slo
    return (
        _line("ttft_p95_s", question.ttft, slo.ttft_p95_s, question, policy),
        _line("tpot_p95_s", question.tpot, slo.tpot_p95_s, question, policy),
    )


def _line(
    name: Literal["ttft_p95_s", "tpot_p95_s"],
    measured: Pooled,
    limit: float,
    question: VoteQuestion,
    policy: PerformancePolicy,
) -> _Line:
    current, reduced = question.current, question.reduced
    predicted_s = 0.0 if isinstance(current, Unknown) else getattr(current, name)
    factor = calibration(measured, predicted_s, policy)
    if isinstance(reduced, Unknown):
        return _Line(name, measured, limit, reduced, factor)
    value: float = getattr(reduced, name) * factor
    if isinstance(measured.reading, Known) and question.heads.left <= question.heads.now:
        # More load on each replica does not make it faster, whatever a clipped factor says.
        value = max(value, measured.reading.value)
    reading = Known(value=value, error=value * reduced.error_band)
    return _Line(name, measured, limit, reading, factor)


def _missing(question: VoteQuestion, policy: PerformancePolicy) -> tuple[str, ...]:
    """What is unknown although the decision needs it."""
    needed: list[tuple[str, Reading | LatencyForecast]] = [
        ("TTFT p95", question.ttft.reading),
        ("TPOT p95", question.tpot.reading),
        ("offered load", question.offered),
        ("forecast at the present load", question.current),
    ]
    if question.heads.left >= 1:
        needed.append(("forecast with fewer replicas", question.reduced))
    unknown = [f"{name} is unknown: {_why(r)}" for name, r in needed if isinstance(r, Unknown)]
    if not unknown and question.ttft.samples < policy.min_samples:
        unknown.append(
            f"only {question.ttft.samples} requests in {question.window_s:.0f} s,"
            f" {policy.min_samples} are needed for a p95"
        )
    return tuple(unknown)


def _violations(line: _Line, heads: Headcount, policy: PerformancePolicy) -> list[str]:
    limit = line.limit * (1 - policy.min_margin)
    found = []
    measured = line.measured.reading
    if isinstance(measured, Known) and measured.value > limit:
        found.append(
            f"{line.name} is {measured.value:.3g} now, over {limit:.3g}"
            f" ({line.measured.samples} requests)"
        )
    if isinstance(line.reduced, Known) and line.reduced.value > limit:
        found.append(
            f"{line.name} is forecast at {line.reduced.value:.3g} with {heads.left} replica(s)"
            f" left, over {limit:.3g}"
        )
    return found


def _margins(lines: tuple[_Line, ...], heads: Headcount) -> tuple[str, ...]:
    return tuple(
        f"{line.name}: margin {1 - line.measured.reading.value / line.limit:.0%} now,"
        f" {1 - line.reduced.value / line.limit:.0%} forecast with {heads.left} replica(s) left"
        for line in lines
        if isinstance(line.measured.reading, Known) and isinstance(line.reduced, Known)
    )


def _evidence(
    question: VoteQuestion, lines: tuple[_Line, ...], policy: PerformancePolicy
) -> tuple[Evidence, ...]:
    found = [
        Evidence(
            name="offered_rps", unit=Unit.PER_SECOND, reading=question.offered,
            window_s=question.window_s, source=MEASURED,
        ),
        _count("replicas_serving", question.heads.now),
        _count("replicas_left", question.heads.left),
    ]  # fmt: skip
    for line in lines:
        found.append(
            Evidence(
                name=line.name, unit=Unit.SECONDS, reading=line.measured.reading,
                threshold=line.limit, window_s=question.window_s,
                samples=line.measured.samples, source=MEASURED,
            )
        )  # fmt: skip
        found.append(
            Evidence(
                name=f"{line.name}_with_replicas_left", unit=Unit.SECONDS,
                reading=line.reduced, threshold=line.limit,
                source=f"{FORECAST} (× {line.factor:.2f})",
            )
        )  # fmt: skip
    return (*found, *_worst_replica(question, policy))


def _worst_replica(question: VoteQuestion, policy: PerformancePolicy) -> tuple[Evidence, ...]:
    """The slowest replica that has requests enough to be judged alone."""
    judged = [
        (seen.reading.value, name, seen)
        for name, seen in question.each.items()
        if isinstance(seen.reading, Known) and seen.samples >= policy.min_samples
    ]
    if not judged:
        return ()
    _, name, seen = max(judged, key=lambda one: one[0])
    worst = Evidence(
        name="ttft_p95_s_of_the_slowest_replica", unit=Unit.SECONDS, reading=seen.reading,
        threshold=question.slo.ttft_p95_s, window_s=question.window_s, samples=seen.samples,
        source=f"{MEASURED} of {name}",
    )  # fmt: skip
    return (worst,)


def _compared(question: ReplacementQuestion) -> tuple[str, ...]:
    without, replaced = question.without, question.replaced
    if isinstance(without, Unknown) or isinstance(replaced, Unknown):
        return ()
    reason = (
        f"TTFT p95 is forecast at {without.ttft_p95_s:.3g} s without and"
        f" {replaced.ttft_p95_s:.3g} s with it (objective {question.slo.ttft_p95_s:g} s)"
    )
    return (reason,)


def _replacement_evidence(question: ReplacementQuestion) -> tuple[Evidence, ...]:
    found = [
        Evidence(
            name="offered_rps", unit=Unit.PER_SECOND, reading=question.offered, source=MEASURED
        ),
        _count("replicas_surviving", question.survivors),
        _count("replicas_leaving", question.leaving),
    ]
    for name, forecast in (("without", question.without), ("replaced", question.replaced)):
        reading: Reading = (
            forecast
            if isinstance(forecast, Unknown)
            else Known(value=forecast.ttft_p95_s, error=forecast.ttft_p95_s * forecast.error_band)
        )
        found.append(
            Evidence(
                name=f"ttft_p95_s_{name}", unit=Unit.SECONDS, reading=reading,
                threshold=question.slo.ttft_p95_s, source="perf card",
            )
        )  # fmt: skip
    return tuple(found)


def _count(name: str, value: int) -> Evidence:
    reading = Known(value=float(value))
    return Evidence(name=name, unit=Unit.COUNT, reading=reading, source="actuator")


def _why(unknown: Unknown) -> str:
    return unknown.detail or unknown.reason.value
