"""When spot is worth proposing: for which replicas, for how much, at which risk; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import Field

from optiinfra.agents.base.recent import RecentChange, held_back
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Deployment, Market, Provider, Replica, ReplicaState
from optiinfra.schemas.money import HOURS_PER_MONTH, Interval
from optiinfra.schemas.recommendation import Placement, Risk, RolloutPlan, StagePlan
from optiinfra.schemas.telemetry import Known, Unknown
from optiinfra.serving.prices import CONFIDENCE, InterruptionBand, PriceBand

_STAGES = (
    StagePlan(share=0.1, soak_s=300.0, hold_limit_s=900.0),
    StagePlan(share=0.5, soak_s=600.0, hold_limit_s=900.0),
    StagePlan(share=1.0, soak_s=900.0, hold_limit_s=900.0),
)


class CostPolicy(Value):
    """The numbers that a person may change; times in s unless the name says otherwise."""

    min_saving_fraction: float = Field(default=0.15, ge=0, lt=1)
    availability_target: float = Field(default=0.995, gt=0, lt=1)
    min_extra: int = Field(default=1, ge=0)
    start_up_s: float = Field(default=420.0, gt=0)
    fallback_hours: float = Field(default=24.0, ge=0, le=HOURS_PER_MONTH)
    max_replicas_per_change: int = Field(default=8, ge=1)
    cooldown_s: float = Field(default=86_400.0, ge=0)
    rest_after_reclaim_s: float = Field(default=3_600.0, ge=0)
    """No spot migration while a `spot_replacement` is open, and for so long after it ended."""
    notice_grace_s: float = Field(default=1_800.0, ge=0)
    migration: RolloutPlan = RolloutPlan(stages=_STAGES)
    replacement: RolloutPlan = RolloutPlan(
        stages=(StagePlan(share=1.0, soak_s=0.0, hold_limit_s=60.0),),
        gates=(),
        look_every_s=1.0,
    )
    """Ungated: the replaced machine goes away whatever a gate says."""
    drain_timeout_s: float = Field(default=300.0, gt=0)
    reclaim_drain_lead_s: float = Field(default=45.0, ge=0)
    """A reclaimed replica gets no new request from this long before it goes, ready or not."""
    expected_rollback_s: float = Field(default=60.0, ge=0)


class MachineKind(NamedTuple):
    """What is bought: machines of one kind have one price in each market."""

    provider: Provider
    instance_type: str
    region: str


@dataclass(frozen=True, slots=True)
class PricedReplica:
    """A replica with its hourly price in the market that it was bought in."""

    replica: Replica
    price: PriceBand | Unknown


@dataclass(frozen=True, slots=True)
class SpotOffer:
    """What one kind of machine costs on spot, and how often it is taken away.

    `live` says why the cloud's own quotes were not believed, None when they were. `zones` are the
    region's, those with a believable price first, cheapest first.
    """

    spot: PriceBand | Unknown
    interruption: InterruptionBand | None
    zones: tuple[str, ...] = ()
    live: Unknown | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """One deployment as it was read, priced."""

    deployment: Deployment
    replicas: tuple[PricedReplica, ...]
    offers: Mapping[MachineKind, SpotOffer]


@dataclass(frozen=True, slots=True)
class MigrationPlan:
    """Replicas of one kind that move to spot, with the forecast."""

    kind: MachineKind
    replicas: tuple[Replica, ...]
    saving_usd_per_month: Interval
    spend_usd_per_hour: float
    on_demand: PriceBand
    spot: PriceBand
    interruption: InterruptionBand
    extra: int
    risk: Risk
    risk_reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoProposal:
    """Why nothing is proposed; always logged."""

    reason: str


def machine_kind(replica: Replica) -> MachineKind:
    machine = replica.instance
    return MachineKind(machine.provider, machine.instance_type, machine.region)


def spend(replicas: Sequence[PricedReplica]) -> Known | Unknown:
    """USD per hour of all replicas, ± half of their bands; unknown when one of them is."""
    bands = []
    for priced in replicas:
        if isinstance(priced.price, Unknown):
            detail = f"{priced.replica.id}: {priced.price.detail or priced.price.reason}"
            return Unknown(reason=priced.price.reason, detail=detail)
        bands.append(priced.price)
    return Known(
        value=math.fsum(band.mid for band in bands),
        error=math.fsum((band.high - band.low) / 2 for band in bands),
    )


def suppressed(
    recent: Sequence[RecentChange], now: datetime, policy: CostPolicy
) -> NoProposal | None:
    """Why a proposal of the kind of `recent` is not made again now, None when it may be."""
    reason = held_back(recent, now, policy.cooldown_s)
    return NoProposal(reason) if reason is not None else None


def resting(
    replacements: Sequence[RecentChange], now: datetime, policy: CostPolicy
) -> NoProposal | None:
    """Why no migration is proposed so soon after a reclaim, None when it may be."""
    for change in replacements:
        ended_at = change.ended_at
        if ended_at is None or now < ended_at + timedelta(seconds=policy.rest_after_reclaim_s):
            return NoProposal(f"replacement {change.id} of reclaimed machines is {change.state}")
    return None


def epoch(recent: Sequence[RecentChange], now: datetime, policy: CostPolicy) -> str:
    """What sets the id of a proposal apart from that of the same one made earlier.

    The last change that ended, so that the same history gives the same id; before any, a window of
    time.
    """
    ended = [(change.ended_at, change.id) for change in recent if change.ended_at is not None]
    if ended:
        return max(ended)[1]
    return f"window-{int(now.timestamp() // max(policy.cooldown_s, 1.0))}"


def extra_replicas(replicas: int, interruption: InterruptionBand, policy: CostPolicy) -> int:
    """The least over-provision that keeps `replicas` spot machines above the availability target.

    Binomial tail of machines lost within one start-up time at the upper end of the interruption
    band; never under `min_extra`, because reclaims of one zone come together.
    """
    exposure = policy.start_up_s / (HOURS_PER_MONTH * 3_600.0)
    lost = 1 - (1 - min(interruption.high, 0.999)) ** exposure
    extra, covered = 0, (1 - lost) ** replicas
    while covered < policy.availability_target and extra < replicas:
        extra += 1
        chance = math.comb(replicas, extra) * lost**extra * (1 - lost) ** (replicas - extra)
        covered += chance
    return max(extra, policy.min_extra)


def on_demand_needed(needed: int, extra: int, ready_spot: int) -> int:
    """On-demand replicas beside `ready_spot` spot ones: min(N, N + extra - ready spot).

    SpotHedge (Mao et al., SkyServe, EuroSys 2025), floored at 0.
    """
    return max(0, min(needed, needed + extra - ready_spot))


def movable_count(fleet: Fleet, extra: int) -> int:
    """How many on-demand replicas may become spot at the fleet's present size.

    The fleet needs `needed` replicas: its size less the declared failure tolerance, at least the
    declared minimum. The largest count is taken after which the on-demand replicas that stay are
    at least what SpotHedge asks for.
    """
    total = len(fleet.replicas)
    on_demand = sum(_in_market(priced, Market.ON_DEMAND) for priced in fleet.replicas)
    spot = sum(_in_market(priced, Market.SPOT) for priced in fleet.replicas)
    needed = max(fleet.deployment.min_replicas, total - fleet.deployment.failure_tolerance)
    for moved in range(on_demand, 0, -1):
        if total - spot - moved >= on_demand_needed(needed, extra, spot + moved):
            return moved
    return 0


def saving(
    on_demand: PriceBand, offer: tuple[PriceBand, InterruptionBand], count: int, policy: CostPolicy
) -> Interval:
    """USD a month that `count` replicas save, at 730 h, never above what they cost now.

    A month costs each replica `interruptions x (fallback hours x (on-demand - spot) + start-up
    hours x on-demand)` of it. The low bound pairs the dearest spot price with the most
    interruptions, the high bound the cheapest with the fewest.
    """
    spot, interruption = offer

    def month(spot_price: float, interruptions: float) -> float:
        gained = on_demand.mid - spot_price
        overlap = policy.start_up_s / 3_600.0 * on_demand.mid
        lost = interruptions * (policy.fallback_hours * max(gained, 0.0) + overlap)
        return count * (HOURS_PER_MONTH * gained - lost)

    forecast = Interval(
        low=month(spot.high, interruption.high),
        mid=month(spot.mid, interruption.mid),
        high=month(spot.low, interruption.low),
        confidence=CONFIDENCE,
    )
    return forecast.capped(count * on_demand.mid * HOURS_PER_MONTH)


def migration_risk(
    interruption: InterruptionBand, share_of_fleet: float, live: Unknown | None
) -> tuple[Risk, tuple[str, ...]]:
    """Risk of moving a share of the fleet to spot, with the reasons."""
    reasons = [f"AWS interrupts {interruption.label} of these spot instances in a month"]
    rank = 0 if interruption.high <= 0.05 else 1 if interruption.high <= 0.20 else 2
    if share_of_fleet > 0.5:
        rank += 1
        reasons.append(f"{share_of_fleet:.0%} of the fleet moves")
    if live is not None:
        rank = max(rank, 1)
        reasons.append(f"the spot price is the price list's, not live: {live.detail}")
    return (Risk.LOW, Risk.MEDIUM, Risk.HIGH)[min(rank, 2)], tuple(reasons)


def plan_migration(fleet: Fleet, policy: CostPolicy) -> MigrationPlan | NoProposal:
    """The spot migration that saves most, or why there is none."""
    if not fleet.deployment.interruptible:
        return NoProposal("the deployment is not declared interruptible")
    unsettled = [
        priced.replica.id
        for priced in fleet.replicas
        if priced.replica.state is not ReplicaState.SERVING
    ]
    if unsettled:
        return NoProposal(f"not serving, so the fleet is not settled: {', '.join(unsettled)}")
    spent = spend(fleet.replicas)
    if isinstance(spent, Unknown):
        return NoProposal(f"the spend is unknown ({spent.reason}): {spent.detail}")
    plans = [_plan_kind(fleet, kind, spent.value, policy) for kind in _on_demand_kinds(fleet)]
    good = [plan for plan in plans if isinstance(plan, MigrationPlan)]
    if good:
        return max(good, key=lambda plan: plan.saving_usd_per_month.mid)
    refused = [plan.reason for plan in plans if isinstance(plan, NoProposal)]
    return NoProposal("; ".join(refused) or "no replica runs on demand")


def migration_placement(plan: MigrationPlan) -> Placement:
    """Spot, in whichever zone the actuator spreads to; no fallback, which would save nothing."""
    return Placement(
        provider=plan.kind.provider,
        instance_type=plan.kind.instance_type,
        region=plan.kind.region,
        market=Market.SPOT,
    )


def replacement_placement(replica: Replica, offer: SpotOffer | None) -> Placement:
    """Spot in another zone than the reclaimed one, which rests; on demand when there is none."""
    kind = machine_kind(replica)
    others = [zone for zone in offer.zones if zone != replica.instance.zone] if offer else []
    return Placement(
        provider=kind.provider,
        instance_type=kind.instance_type,
        region=kind.region,
        zone=others[0] if others else None,
        market=Market.SPOT,
        fallback_market=Market.ON_DEMAND,
    )


def hurry_until(reclaim_at: datetime, now: datetime) -> datetime | None:
    """When a replacement stops being urgent: at the reclaim, None once that has passed."""
    return reclaim_at if now < reclaim_at else None


def outdated(reclaim_at: datetime, now: datetime, policy: CostPolicy) -> bool:
    """Whether a reclaim notice is too old to act on."""
    return now > reclaim_at + timedelta(seconds=policy.notice_grace_s)


def _plan_kind(
    fleet: Fleet, kind: MachineKind, spent: float, policy: CostPolicy
) -> MigrationPlan | NoProposal:
    candidates = [
        priced
        for priced in fleet.replicas
        if machine_kind(priced.replica) == kind and _in_market(priced, Market.ON_DEMAND)
    ]
    terms = _terms(fleet.offers.get(kind), candidates[0].price)
    if isinstance(terms, NoProposal):
        return NoProposal(f"{kind.instance_type}: {terms.reason}")
    on_demand, spot, interruption = terms
    extra = extra_replicas(len(fleet.replicas), interruption, policy)
    count = min(len(candidates), movable_count(fleet, extra), policy.max_replicas_per_change)
    if count == 0:
        return NoProposal(_too_few(fleet, extra))
    forecast = saving(on_demand, (spot, interruption), count, policy)
    if forecast.low <= 0 or forecast.mid < _least(count, on_demand, policy):
        return NoProposal(f"{kind.instance_type}: spot saves ${forecast.mid:.0f}/month, too little")
    live = fleet.offers[kind].live
    risk, reasons = migration_risk(interruption, count / len(fleet.replicas), live)
    chosen = sorted((priced.replica for priced in candidates), key=lambda replica: replica.id)
    return MigrationPlan(
        kind=kind,
        replicas=tuple(chosen[:count]),
        saving_usd_per_month=forecast,
        spend_usd_per_hour=spent,
        on_demand=on_demand,
        spot=spot,
        interruption=interruption,
        extra=extra,
        risk=risk,
        risk_reasons=reasons,
    )


def _terms(
    offer: SpotOffer | None, on_demand: PriceBand | Unknown
) -> tuple[PriceBand, PriceBand, InterruptionBand] | NoProposal:
    """On-demand price, spot price and interruption band, or which of them is unknown."""
    if isinstance(on_demand, Unknown):
        return NoProposal(f"the on-demand price is unknown: {on_demand.detail}")
    if offer is None:
        return NoProposal("the cloud offers no spot price")
    if isinstance(offer.spot, Unknown):
        return NoProposal(f"the spot price is unknown: {offer.spot.detail}")
    if offer.interruption is None:
        return NoProposal("the interruption rate is unknown")
    return on_demand, offer.spot, offer.interruption


def _too_few(fleet: Fleet, extra: int) -> str:
    declared = fleet.deployment
    return (
        f"{extra} replica(s) must be spare while spot ones are reclaimed: {len(fleet.replicas)} "
        f"run, {declared.min_replicas} are the declared minimum, {declared.failure_tolerance} may "
        "fail"
    )


def _least(count: int, on_demand: PriceBand, policy: CostPolicy) -> float:
    return policy.min_saving_fraction * count * on_demand.mid * HOURS_PER_MONTH


def _on_demand_kinds(fleet: Fleet) -> list[MachineKind]:
    return sorted(
        {machine_kind(p.replica) for p in fleet.replicas if _in_market(p, Market.ON_DEMAND)}
    )


def _in_market(priced: PricedReplica, market: Market) -> bool:
    return priced.replica.instance.market is market
