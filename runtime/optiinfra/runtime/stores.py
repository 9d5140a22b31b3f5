"""Opens what a process needs of the outside, and closes it in order."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as distribution_version
from typing import Any

from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import BusRole
from optiinfra.events.publish import Publisher
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import uuid7
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.letters import Letters
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.redis import RegistryCache
from optiinfra.storage.telemetry import StoredTelemetry

LETTER_TIMEOUT_S = 5.0
_RANDOM = random.SystemRandom()


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    """A UUIDv7: ids made later sort later."""
    return uuid7(int(now().timestamp() * 1000), _RANDOM.getrandbits(74))


def jitter() -> float:
    """A factor of ± 20 % that keeps retries of many consumers apart."""
    return _RANDOM.uniform(0.8, 1.2)


def instance_name() -> str:
    """Names this process among others of its role."""
    return f"{socket.gethostname()}-{os.getpid()}"


def version() -> str:
    return distribution_version("optiinfra")


@dataclass(frozen=True, slots=True)
class Stores:
    """Everything open; made with `open_stores`."""

    addresses: Addresses
    bus: Bus
    database: Database
    metrics: MetricStore
    telemetry: StoredTelemetry
    cache: RegistryCache
    buses: Mapping[BusRole, Bus] = field(default_factory=dict)
    """Connections of roles that sign in with credentials of their own."""

    def acting_as(self, role: BusRole) -> Stores:
        """The same stores, with the bus as `role` is signed in there."""
        return replace(self, bus=self.buses.get(role, self.bus))

    def publisher(self, source: str) -> Publisher:
        return Publisher(self.bus, source, now, new_id)

    def letters(self) -> Letters:
        """Dead letters for who is signed in as an operator; a caller waits a few seconds only."""
        publisher = Publisher(self.bus, "operator", now, new_id, give_up_after_s=LETTER_TIMEOUT_S)
        return Letters(self.bus, self.database, publisher)


def required_addresses(**urls: str | None) -> Addresses:
    """Addresses from settings. Raises `Rejected` naming each store that has no URL."""
    missing = sorted(name for name, url in urls.items() if not url)
    if missing:
        names = ", ".join(f"OPTIINFRA_{name.upper()}" for name in missing)
        raise Rejected(
            f"no address for {', '.join(missing)}",
            hint=f"set {names}, or use `optiinfra up`, which starts embedded stores",
        )
    given: dict[str, Any] = {name: url for name, url in urls.items() if url}
    return Addresses(**given)


@asynccontextmanager
async def _signed_in(
    addresses: Addresses, roles: Collection[BusRole]
) -> AsyncIterator[dict[BusRole, Bus]]:
    """A connection to the bus for each role that has an address of its own there."""
    buses: dict[BusRole, Bus] = {}
    try:
        for role in roles:
            if role in addresses.nats_role_urls:
                buses[role] = await Bus.connect(addresses.nats_url_for(role), name=role.value)
        yield buses
    finally:
        await asyncio.gather(*(bus.close() for bus in buses.values()))


@asynccontextmanager
async def open_stores(
    addresses: Addresses, *, name: str, roles: Collection[BusRole] = ()
) -> AsyncIterator[Stores]:
    """Connects to all stores, and to the bus as each of `roles` that has an address there.

    Raises `Unavailable` naming the one that does not answer.
    """
    async with AsyncExitStack() as stack:
        bus = await Bus.connect(addresses.nats_url, name=name)
        stack.push_async_callback(bus.close)
        buses = await stack.enter_async_context(_signed_in(addresses, roles))
        database = await stack.enter_async_context(open_database(addresses.postgres_url))
        metrics = MetricStore(addresses.clickhouse_url)
        stack.push_async_callback(metrics.aclose)
        cache = RegistryCache(addresses.redis_url)
        stack.push_async_callback(cache.aclose)
        yield Stores(addresses, bus, database, metrics, StoredTelemetry(metrics), cache, buses)
