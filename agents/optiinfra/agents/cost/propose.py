"""Words plans as recommendations, with the evidence that they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from optiinfra.agents.base.recent import RecentChange
from optiinfra.agents.cost.policy import (
    CostPolicy,
    MigrationPlan,
    SpotOffer,
    epoch,
    hurry_until,
    migration_placement,
    replacement_placement,
)
from optiinfra.schemas.deployment import Deployment, Replica
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation, Risk, SpotMigration, SpotReplacement
from optiinfra.schemas.telemetry import Known, Unit, Unknown
from optiinfra.schemas.vote import AgentName, Evidence
from optiinfra.serving.prices import InterruptionBand, PriceBand, Shape


def migration(
    deployment: Deployment,
    plan: MigrationPlan,
    policy: CostPolicy,
    *,
    recent: Sequence[RecentChange],
    fleet_size: int,
    live: Unknown | None,
    shape: Shape | None,
    now: datetime,
) -> Recommendation:
    """The proposal of a spot migration; the same content and history give the same id."""
    spec = SpotMigration(
        replicas=tuple(replica.id for replica in plan.replicas), to=migration_placement(plan)
    )
    count, kind = len(plan.replicas), plan.kind
    return Recommendation(
        id=derived_id(
            deployment.tenant,
            deployment.id,
            spec.kind,
            *spec.replicas,
            spec.to.model_dump_json(),
            epoch(recent, now, policy),
        ),
        tenant=deployment.tenant,
        deployment=deployment.id,
        proposer=AgentName.COST,
        title=(
            f"Move {count} of {fleet_size} replicas of {deployment.id} to spot "
            f"{kind.instance_type} in {kind.region}"
        ),
        spec=spec,
        saving_usd_per_month=plan.saving_usd_per_month,
        spend_usd_per_hour=plan.spend_usd_per_hour,
        price_source=plan.spot.source,
        risk=plan.risk,
        risk_reasons=plan.risk_reasons,
        evidence=_migration_evidence(plan, fleet_size, live, shape),
        rollout=policy.migration,
        rollback_seconds=policy.expected_rollback_s,
        cannot_be_undone=(
            "once finished, the on-demand machines are gone; new ones take minutes to start",
        ),
        proposed_at=now,
    )


def replacement(
    deployment: Deployment,
    replicas: Sequence[Replica],
    reclaim_at: datetime,
    policy: CostPolicy,
    *,
    offer: SpotOffer | None,
    spend: Known | Unknown,
    now: datetime,
) -> Recommendation:
    """The proposal to replace spot replicas that are being reclaimed; urgent until they go."""
    ordered = sorted(replicas, key=lambda replica: replica.id)
    names = tuple(replica.id for replica in ordered)
    to = replacement_placement(ordered[0], offer)
    where = f"zone {to.zone}" if to.zone else "another zone"
    return Recommendation(
        id=replacement_id(deployment, ordered),
        tenant=deployment.tenant,
        deployment=deployment.id,
        proposer=AgentName.COST,
        title=f"Replace {', '.join(names)} of {deployment.id} in {where} before spot reclaims it",
        spec=SpotReplacement(replicas=names, to=to, reclaim_at=reclaim_at),
        spend_usd_per_hour=spend.value if isinstance(spend, Known) else None,
        price_source=offer.spot.source if offer and isinstance(offer.spot, PriceBand) else None,
        risk=Risk.LOW,
        risk_reasons=(
            "the machine goes away whether or not this is done; the replacement serves before that",
            "on-demand capacity is the fallback when spot has none",
        ),
        evidence=(
            _evidence("spend_usd_per_hour", Unit.USD_PER_HOUR, spend, "priced fleet"),
            _evidence(
                "seconds_to_reclaim",
                Unit.SECONDS,
                Known(value=(reclaim_at - now).total_seconds()),
                "EC2 spot interruption warning",
            ),
        ),
        rollout=policy.replacement,
        rollback_seconds=policy.expected_rollback_s,
        cannot_be_undone=("the reclaimed machine does not come back",),
        proposed_at=now,
        urgent_until=hurry_until(reclaim_at, now),
    )


def replacement_id(deployment: Deployment, replicas: Sequence[Replica]) -> str:
    """The id that the same reclaimed machines always give."""
    machines = sorted(replica.instance.id for replica in replicas)
    return derived_id(deployment.tenant, deployment.id, "spot_replacement", *machines)


def _migration_evidence(
    plan: MigrationPlan, fleet_size: int, live: Unknown | None, shape: Shape | None
) -> tuple[Evidence, ...]:
    dollars = Unit.USD_PER_HOUR
    rows = [
        _evidence(
            "spend_usd_per_hour", dollars, Known(value=plan.spend_usd_per_hour), "priced fleet"
        ),
        _price("on_demand_usd_per_hour", plan.on_demand),
        _price("spot_usd_per_hour", plan.spot),
        _interruption(plan.interruption),
        _evidence("replicas_moved", Unit.COUNT, Known(value=len(plan.replicas)), "fleet"),
        _evidence("fleet_replicas", Unit.COUNT, Known(value=fleet_size), "fleet"),
        _evidence("spare_replicas_needed", Unit.COUNT, Known(value=plan.extra), "spot mix policy"),
    ]
    if live is not None:
        rows.append(_evidence("live_spot_usd_per_hour", dollars, live, "spot price history"))
    if shape is not None:
        memory = Known(value=shape.gpu_memory_gib * 1024**3)
        rows.append(_evidence("gpu_memory_bytes", Unit.BYTES, memory, shape.gpu))
        rows.append(_evidence("gpus", Unit.COUNT, Known(value=shape.gpus), shape.gpu))
    return tuple(rows)


def _price(name: str, band: PriceBand) -> Evidence:
    source = f"{band.source.name} of {band.source.as_of:%Y-%m-%dT%H:%MZ}"
    reading = Known(value=band.mid, error=max(band.high - band.mid, band.mid - band.low))
    return _evidence(name, Unit.USD_PER_HOUR, reading, source)


def _interruption(band: InterruptionBand) -> Evidence:
    reading = Known(value=band.mid, error=(band.high - band.low) / 2)
    source = f"AWS interruption band {band.label} a month"
    return _evidence("interruptions_per_month", Unit.FRACTION, reading, source)


def _evidence(name: str, unit: Unit, reading: Known | Unknown, source: str) -> Evidence:
    return Evidence(name=name, unit=unit, reading=reading, source=source)
