"""Makes the roles that need no cloud: coordinator, collector, memory."""

from __future__ import annotations

from optiinfra.agents.memory import OutcomeMemory
from optiinfra.coordinator.policy_keeper import PolicyKeeper
from optiinfra.coordinator.process import Coordinator, CoordinatorPorts, Pace
from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import BusRole
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.policy_file import WatchedFile
from optiinfra.runtime.stores import Stores, jitter, new_id, now
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.postgres.inbox import PostgresInbox
from optiinfra.storage.telemetry import MetricSink, measured

_FAMILIES = ("performance", "resource", "cost", "quality")
_SCRAPES_A_BATCH, _LINGER_S = 2_000, 0.5
"""Few and large inserts: each is a part on the disk. Agents look at what is seconds old."""
_BATCHES = 2
"""While one is written, the next is read."""


def coordinator(fleet: Fleet, stores: Stores, file: WatchedFile) -> Coordinator:
    """Decides under the policy that stands in `file`, as it is and as it will be edited.

    Raises `Rejected` when the file has become wrong since it was checked.
    """
    stores = stores.acting_as(BusRole.COORDINATOR)
    policies = PolicyKeeper(fleet.tenant, file.first(), file, stores.database)
    ports = CoordinatorPorts(
        bus=stores.bus,
        publisher=stores.publisher("coordinator"),
        database=stores.database,
        cache=stores.cache,
        rules=policies.rules,
        clock=now,
        new_id=new_id,
        jitter=jitter,
        policies=policies,
    )
    return Coordinator(ports, Pace(agent_lost_after_s=fleet.timing.lost_after_s))


def collector(stores: Stores) -> Consumer:
    """Writes what was measured into ClickHouse."""
    stores = stores.acting_as(BusRole.COLLECTOR)
    return collecting(stores.bus, stores.publisher("collector"), stores.metrics)


def collecting(
    bus: Bus, publisher: Publisher, metrics: MetricStore, *, ack_wait_s: float = 30.0
) -> Consumer:
    """The collector on a bus and a store."""
    prefixes = tuple(f"metrics.{family}" for family in _FAMILIES)
    return Consumer(
        bus,
        ConsumerSpec(
            name="collector",
            stream=Stream.METRICS,
            prefixes=prefixes,
            batch=_SCRAPES_A_BATCH,
            linger_s=_LINGER_S,
            batches=_BATCHES,
            ack_wait_s=ack_wait_s,
            heartbeat_s=ack_wait_s / 3,
        ),
        handle=None,
        handle_batch=MetricSink(metrics),
        keep=measured,
        publisher=publisher,
        inbox=None,
        clock=now,
        jitter=jitter,
    )


def remembering(stores: Stores, memory: OutcomeMemory) -> Consumer:
    """Remembers how changes turned out."""
    stores = stores.acting_as(BusRole.COLLECTOR)
    return Consumer(
        stores.bus,
        ConsumerSpec(name="memory", stream=Stream.CHANGES, prefixes=("outcome.recorded",)),
        handle=memory.hear,
        handle_batch=None,
        publisher=stores.publisher("memory"),
        inbox=PostgresInbox(stores.database),
        clock=now,
        jitter=jitter,
    )
