"""Full disks without what makes them harmless, to see what they take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from nats.errors import Error

from optiinfra.events.consume import Consumer
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.database import Connection, Database, open_database
from optiinfra.storage.postgres.migrate import upgrade
from tests.bus_stand import Stand, new_id, now, running, stand, until
from tests.faults.disk import NOTE, SMALL, filled, told
from tests.faults.test_sabotage_bus import Careless, consumer

Make = Callable[[], NatsServer]
_SAID = 100


class Untyped(Database):
    """Gives the driver's errors as they come."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with self._pool.acquire() as held:
            yield held


@pytest.mark.parametrize(("made", "is_told"), [(Publisher, True), (Careless, False)])
async def test_without_acknowledgements_a_full_disk_takes_what_was_said_and_nobody_is_told(
    broker_on_disk: NatsServer,
    disk: Path,
    made: type[Publisher],
    is_told: bool,  # noqa: FBT001
) -> None:
    async with stand(broker_on_disk.url, limits=SMALL) as s:
        publisher = made(s.bus, "test", now, new_id, give_up_after_s=2.0)
        said = await told(publisher, _SAID)
        await s.bus.client.flush()
        ballast = filled(disk)
        said += await told(publisher, _SAID)
        await s.bus.client.flush()
        ballast.unlink()
        await asyncio.to_thread(broker_on_disk.kill)
        await asyncio.to_thread(broker_on_disk.start)
        assert (said < 2 * _SAID) == is_told
        assert (await kept(s) >= said) == is_told


async def kept(s: Stand) -> int:
    """How many messages lie in the stream, once the broker answers."""
    looking = s.bus.client.jetstream(timeout=0.5)
    async with asyncio.timeout(30):
        while True:
            with suppress(Error):
                return (await looking.stream_info("CHANGES")).state.messages
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(("made", "is_held"), [(Database, True), (Untyped, False)])
async def test_without_typed_errors_a_full_disk_under_postgres_costs_dead_letters(
    nats_server: Make,
    postgres_on_disk: PostgresServer,
    disk: Path,
    made: type[Database],
    is_held: bool,  # noqa: FBT001
) -> None:
    await upgrade(postgres_on_disk.url)
    async with stand(nats_server().url) as s, open_database(postgres_on_disk.url) as opened:
        database, handled = made(opened._pool, opened.engine), set()

        async def handle(event: Event) -> None:
            async with database.connection() as connection:
                await connection.execute(NOTE)
            handled.add(event.id)

        ballast = filled(disk)
        working = consumer(s, Consumer, handle)
        async with running(working):
            [said] = await s.say(1)
            await until(lambda: working.stats.retried > 5 or working.stats.dead_lettered == 1)
            ballast.unlink()
            await until(lambda: working.stats.acked + working.stats.dead_lettered == 1)
        assert handled == ({said.id} if is_held else set())
        assert len(await s.dead_letters()) == (0 if is_held else 1)
