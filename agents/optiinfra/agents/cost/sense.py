"""Looks at the fleets and at the notices of spot machines that are about to go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import structlog

from optiinfra.agents.actuators.port import Actuator
from optiinfra.agents.collectors.interruptions import Interruptions, ReclaimNotice
from optiinfra.agents.cost.policy import PricedReplica, spend
from optiinfra.events.facts import MetricsMeasured
from optiinfra.schemas.deployment import Deployment, Provider, Replica
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason
from optiinfra.serving.prices import PriceBand

METRIC_SPEND = "usd_per_hour"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Seen:
    """A deployment and its replicas as the clouds show them; unknown when one cannot be asked."""

    deployment: Deployment
    replicas: tuple[Replica, ...] | Unknown


@dataclass(frozen=True, slots=True)
class Reclaim:
    """A notice with the replica on the instance that goes."""

    notice: ReclaimNotice
    deployment: Deployment
    replica: Replica


async def look(deployment: Deployment, actuators: Mapping[Provider, Actuator]) -> Seen:
    """Replicas of a deployment on all providers, sorted by id."""
    found: list[Replica] = []
    for provider, actuator in actuators.items():
        try:
            found += await actuator.replicas(deployment.tenant, deployment.id)
        except (Unavailable, Rejected) as error:
            _log.warning(
                "fleet.unknown", deployment=deployment.id, provider=provider, error=str(error)
            )
            unknown = Unknown(reason=UnknownReason.UNREACHABLE, detail=str(error))
            return Seen(deployment, unknown)
    return Seen(deployment, tuple(sorted(found, key=lambda replica: replica.id)))


async def waiting_notices(sources: Sequence[Interruptions]) -> list[ReclaimNotice]:
    """Notices of all sources; one that cannot be asked now is asked again at the next look."""
    found: list[ReclaimNotice] = []
    for source in sources:
        try:
            found += await source.notices()
        except (Unavailable, Rejected) as error:
            _log.warning("interruptions.unknown", error=str(error))
    return found


def matched(notices: Sequence[ReclaimNotice], seen: Sequence[Seen]) -> list[Reclaim]:
    """Notices about machines of ours that are still there."""
    machines = {
        replica.instance.id: (view.deployment, replica)
        for view in seen
        if not isinstance(view.replicas, Unknown)
        for replica in view.replicas
    }
    return [
        Reclaim(notice, *machines[notice.instance_id])
        for notice in notices
        if notice.instance_id in machines
    ]


def spending(
    deployment: Deployment, replicas: Sequence[PricedReplica] | Unknown, at: datetime
) -> MetricsMeasured:
    """What each replica costs and what all do, USD per hour; unknown stays unknown."""
    if isinstance(replicas, Unknown):
        samples: tuple[Sample, ...] = (_sample(replicas, at),)
    else:
        samples = (
            *(_replica_sample(priced, at) for priced in replicas),
            _sample(spend(replicas), at),
        )
    return MetricsMeasured(
        tenant=deployment.tenant, deployment=deployment.id, family="cost", samples=samples
    )


def _replica_sample(priced: PricedReplica, at: datetime) -> Sample:
    machine, price = priced.replica.instance, priced.price
    labels = {"market": machine.market.value, "instance_type": machine.instance_type}
    if isinstance(price, PriceBand):
        labels["price_source"] = f"{price.source.name} of {price.source.as_of:%Y-%m-%d}"
    sample = _sample(spend((priced,)), at)
    return sample.model_copy(update={"replica": priced.replica.id, "labels": labels})


def _sample(reading: Known | Unknown, at: datetime) -> Sample:
    return Sample(metric=METRIC_SPEND, unit=Unit.USD_PER_HOUR, reading=reading, at=at)
