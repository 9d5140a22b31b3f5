"""What `doctor` looks at in the stores that have a URL: reachable, signed in, up to date."""

from __future__ import annotations

from contextlib import AsyncExitStack

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.runtime.findings import Finding, Level, checking
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.shelf import QdrantShelf
from optiinfra.schemas.errors import Conflict
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.journal import require_journal
from optiinfra.storage.redis import RegistryCache

_TIMEOUT_S = 5.0


async def look_at_stores(settings: Settings) -> list[Finding]:
    """One finding or two for each URL; the embedded ones are the machine's matter."""
    found: list[Finding] = []
    async with AsyncExitStack() as stack:
        if settings.nats_url:
            await _nats(settings.nats_url, stack, found)
        if settings.postgres_url:
            with checking(found, "postgres_url") as said:
                database = await stack.enter_async_context(
                    open_database(settings.postgres_url, connections=1)
                )
                await require_journal(database)
                said("signed in, and the tables are there")
        if settings.clickhouse_url:
            with checking(found, "clickhouse_url", _todo("clickhouse")):
                metrics = MetricStore(settings.clickhouse_url)
                stack.push_async_callback(metrics.aclose)
                await metrics.ping()
        if settings.qdrant_url:
            with checking(found, "qdrant_url", _todo("qdrant")):
                shelf = QdrantShelf(settings.qdrant_url)
                stack.push_async_callback(shelf.aclose)
                await shelf.ping()
        if settings.redis_url:
            with checking(found, "redis_url", _todo("redis")):
                cache = RegistryCache(settings.redis_url)
                stack.push_async_callback(cache.aclose)
                await cache.ping()
    return found


def _todo(store: str) -> str:
    return f"check OPTIINFRA_{store.upper()}_URL and that the server runs"


async def _nats(url: str, stack: AsyncExitStack, found: list[Finding]) -> None:
    with checking(found, "nats_url") as said:
        bus = await Bus.connect(url, name="doctor", timeout_s=_TIMEOUT_S)
        stack.push_async_callback(bus.close)
        said("signed in")
        try:
            await topology.require(bus)
        except Conflict as drifted:
            found.append(
                Finding(Level.FAIL, "streams", drifted.message, "run: optiinfra topology apply")
            )
        else:
            found.append(Finding(Level.OK, "streams", "as they should be"))
