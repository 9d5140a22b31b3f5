"""Whether capacity holds at the forecast peak after a change and after losing replicas; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from pydantic import Field

from optiinfra.agents.resource.forecast import ForecastPolicy, LoadForecast
from optiinfra.schemas.answers import GOLDEN_SETTLE_S
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Market, Replica
from optiinfra.schemas.recommendation import (
    ChangeSpec,
    Consolidation,
    IdleShutdown,
    PredictiveScaling,
    Recommendation,
    SpotMigration,
    SpotReplacement,
)
from optiinfra.schemas.telemetry import Known, Reading, Unit, Unknown
from optiinfra.schemas.vote import Evidence, Verdict
from optiinfra.serving.curves import faster, is_slower, measured

OFFERED = "offered_rps"
"""The metric that the load history is made of."""
FORECAST = "forecast_peak_rps"
"""The metric of what was forecast: the highest load of the horizon, with head-room."""
TELEMETRY = "replica telemetry"
CARD = "perf card"


class ResourcePolicy(Value):
    """The numbers that a person may change; times in s."""

    sense_every_s: float = Field(default=30.0, gt=0)
    offered_window_s: float = Field(default=60.0, gt=0)
    """Over which arrivals are counted for one point of the load history."""
    history_s: float = Field(default=3 * 86_400.0, gt=0)
    vote_window_s: float = Field(default=300.0, gt=0)
    """Over which the length mix and the evidence of saturation are read."""
    stale_s: float = Field(default=30.0, gt=0)
    golden_settle_s: float = Field(default=GOLDEN_SETTLE_S, ge=0)
    """Load so recent is left out, since golden prompts in it may be unrecorded; at most a third of
    the window."""
    forecast: ForecastPolicy = ForecastPolicy()
    min_headroom: float = Field(default=1.0, ge=1)
    """Capacity left ÷ forecast peak that a change must keep."""
    zone_reclaim_share: float = Field(default=1.0, ge=0, le=1)
    """Share of one zone's spot replicas that a reclaim takes at once."""
    min_samples: int = Field(default=30, ge=1)
    """Requests that evidence of saturation needs."""
    saturated_waiting: float = Field(default=5.0, ge=0)
    """Mean queue of a replica that shows it to be full (the saturation threshold of llm-d)."""
    max_kv_usage: float = Field(default=0.95, gt=0, le=1)
    """Part of the KV cache that an engine with other knobs may have filled in staging."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reasons, before it becomes a vote."""

    verdict: Verdict
    reasons: tuple[str, ...]
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetAfter:
    """Replicas after a change, and how many of them may be lost at once."""

    replicas: int
    lost: int

    @property
    def left(self) -> int:
        return self.replicas - self.lost


@dataclass(frozen=True, slots=True)
class Served:
    """What one replica was seen to serve over the window, requests/s, and how well."""

    rps: Reading
    samples: int
    within_slo: bool | None
    """None where a latency is unknown."""
    waiting: Reading


@dataclass(frozen=True, slots=True)
class CapacityQuestion:
    """`capacity` is requests/s that one replica serves within its objective."""

    after: FleetAfter
    offered: Reading
    forecast: LoadForecast | Unknown
    capacity: Reading


def fleet_after(
    spec: ChangeSpec, serving: Sequence[Replica], tolerance: int, policy: ResourcePolicy
) -> FleetAfter | None:
    """The fleet once `spec` is carried out; None for kinds that are not modelled here.

    Replicas are lost to failures (`tolerance` at once) or to a reclaim of one spot zone, whichever
    takes more. A moved replica without a named zone is taken to stay in its own.
    """
    own = {one.id: one.instance.zone for one in serving}
    match spec:
        case SpotMigration() | SpotReplacement():
            kept = [one for one in serving if one.id not in spec.replicas]
            places = [(one.instance.market, one.instance.zone) for one in kept]
            # A reclaimed replica may be gone already, and is replaced all the same.
            urgent = isinstance(spec, SpotReplacement)
            moved = [name for name in spec.replicas if urgent or name in own]
            places += [(spec.to.market, spec.to.zone or own.get(name, "unknown")) for name in moved]
            count = len(places)
        case IdleShutdown() | Consolidation():
            kept = [one for one in serving if one.id not in spec.replicas]
            places = [(one.instance.market, one.instance.zone) for one in kept]
            count = len(places)
        case PredictiveScaling():
            places = [(one.instance.market, one.instance.zone) for one in serving]
            count = spec.to_replicas
        case _:
            return None
    zones = Counter(zone for market, zone in places if market is Market.SPOT)
    largest = max(zones.values(), default=0)
    reclaimed = ceil(policy.zone_reclaim_share * largest)
    return FleetAfter(count, max(tolerance, min(reclaimed, count)))


def capacity(card_rps: float, error_band: float, served: Served, policy: ResourcePolicy) -> Reading:
    """Requests/s of one replica: the card's, corrected by what was really seen.

    The card counts at the low end of its error band. A rate that was served within the objective
    is a lower bound; one served with a long queue and outside of the objective is an upper bound.
    """
    low = card_rps * (1 - error_band)
    error = card_rps - low
    if isinstance(served.rps, Unknown) or served.samples < policy.min_samples:
        return Known(value=low, error=error)
    if served.within_slo:
        return Known(value=max(low, served.rps.value), error=error)
    if served.within_slo is False and _is_full(served.waiting, policy):
        return Known(value=min(low, served.rps.value), error=error)
    return Known(value=low, error=error)


def _is_full(waiting: Reading, policy: ResourcePolicy) -> bool:
    return isinstance(waiting, Known) and waiting.value > policy.saturated_waiting


def vote(question: CapacityQuestion, policy: ResourcePolicy) -> Judgement:
    """Approve when what is left after a loss carries the forecast peak."""
    evidence = _evidence(question, policy)
    missing = [
        f"{name} is unknown: {reading.detail or reading.reason}"
        for name, reading in (
            ("offered load", question.offered),
            ("forecast load", question.forecast),
            ("capacity of a replica", question.capacity),
        )
        if isinstance(reading, Unknown)
    ]
    if (
        isinstance(question.offered, Unknown)
        or isinstance(question.forecast, Unknown)
        or isinstance(question.capacity, Unknown)
    ):
        return Judgement(Verdict.ABSTAIN, tuple(missing), evidence)
    return _weighed(question.after, question.forecast, question.capacity, policy, evidence)


def vote_on_replacement(after: FleetAfter, leaving: int) -> Judgement:
    """A replacement is weighed against losing the replicas without one: it is never less."""
    reason = (
        f"doing nothing leaves {after.replicas - leaving} replica(s), replacing {after.replicas}"
    )
    evidence = (
        _count("replicas_after", after.replicas),
        _count("replicas_without_it", after.replicas - leaving),
    )
    return Judgement(Verdict.APPROVE, (reason,), evidence)


def vote_on_tuning(proposal: Recommendation, policy: ResourcePolicy) -> Judgement:
    """Approve other knobs with which a replica was measured to serve as much, in its memory."""
    found = measured(proposal)
    if isinstance(found, str):
        return Judgement(Verdict.ABSTAIN, (found,))
    now, then = found
    gain, peak = faster(now, then), then.kv_usage_peak
    evidence = (
        _staged("tokens_per_s_now", Unit.PER_SECOND, now.tokens_per_s),
        _staged("tokens_per_s_then", Unit.PER_SECOND, then.tokens_per_s),
        _staged("kv_usage_peak_then", Unit.FRACTION, peak, policy.max_kv_usage),
    )
    if gain is None or isinstance(peak, Unknown):
        what = "throughput" if gain is None else "use of the KV cache"
        return Judgement(Verdict.ABSTAIN, (f"its {what} was not measured",), evidence)
    if is_slower(gain):
        less = f"a replica serves {gain:.2f} times the tokens/s: the fleet would be too small"
        return Judgement(Verdict.REJECT, (less,), evidence)
    if peak.value > policy.max_kv_usage:
        full = f"a replay fills {peak.value:.0%} of the KV cache, over {policy.max_kv_usage:.0%}"
        return Judgement(Verdict.REJECT, (full,), evidence)
    reason = f"the same replicas serve {gain:.1f} times the tokens/s within their memory"
    return Judgement(Verdict.APPROVE, (reason,), evidence)


def _staged(name: str, unit: Unit, reading: Reading, threshold: float | None = None) -> Evidence:
    return Evidence(name=name, unit=unit, reading=reading, threshold=threshold, source="staging")


def desired_replicas(peak_rps: float, capacity_rps: float) -> int | None:
    """`⌈λ̂ / μ⌉`, at least 1; None when a replica serves nothing within its objective."""
    return max(1, ceil(peak_rps / capacity_rps)) if capacity_rps > 0 else None


def _weighed(
    after: FleetAfter,
    forecast: LoadForecast,
    each: Known,
    policy: ResourcePolicy,
    evidence: tuple[Evidence, ...],
) -> Judgement:
    total = max(0, after.left) * each.value
    needed = forecast.high_rps * policy.min_headroom
    desired = desired_replicas(forecast.high_rps, each.value)
    numbers = (
        f"{max(0, after.left)} of {after.replicas} replica(s) left after losing {after.lost} serve"
        f" {total:.3g} requests/s within the objective; the peak of the next"
        f" {forecast.horizon_s:.0f} s is forecast at {forecast.high_rps:.3g}"
        f" ({desired if desired is not None else 'no number of'} replica(s) wanted for it)"
    )
    if after.left < 1 or total < needed:
        return Judgement(Verdict.REJECT, (f"too little capacity: {numbers}",), evidence)
    return Judgement(Verdict.APPROVE, (numbers,), evidence)


def _evidence(question: CapacityQuestion, policy: ResourcePolicy) -> tuple[Evidence, ...]:
    forecast = question.forecast
    found = [
        Evidence(
            name=OFFERED, unit=Unit.PER_SECOND, reading=question.offered,
            window_s=policy.offered_window_s, source=TELEMETRY,
        ),
        Evidence(
            name="capacity_rps_per_replica", unit=Unit.PER_SECOND, reading=question.capacity,
            source=f"{CARD}, corrected by telemetry",
        ),
        _count("replicas_after", question.after.replicas),
        _count("replicas_lost", question.after.lost),
    ]  # fmt: skip
    if isinstance(forecast, Unknown):
        return (*found, _forecast_evidence(FORECAST, Unit.PER_SECOND, forecast))
    high, mid = forecast.high_rps, forecast.mid_rps
    peak = Known(value=high, error=high - mid)
    source = f"{forecast.method} forecast over {forecast.bins} steps"
    return (
        *found,
        _forecast_evidence(FORECAST, Unit.PER_SECOND, peak, source),
        _forecast_evidence("forecast_coverage", Unit.FRACTION, forecast.coverage, source),
    )


def _forecast_evidence(
    name: str, unit: Unit, reading: Reading, source: str = "load history"
) -> Evidence:
    return Evidence(name=name, unit=unit, reading=reading, source=source)


def _count(name: str, value: int) -> Evidence:
    reading = Known(value=float(value))
    return Evidence(name=name, unit=Unit.COUNT, reading=reading, source="actuator")
