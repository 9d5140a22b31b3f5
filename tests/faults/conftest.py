"""What every story of the fault suite begins with: its seed, and servers of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.migrate import upgrade
from tests.faults.disk import SMALL, small_disk
from tests.faults.pipeline import Collector
from tests.faults.stand import Stand, opened


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What kill moments, orders and numbers follow from."""
    return int(request.config.getoption("--seed"))


@pytest.fixture
def at_length(request: pytest.FixtureRequest) -> bool:
    """Whether there is time for everything: `make faults`, not `make test`."""
    return bool(request.config.getoption("--at-length"))


@pytest.fixture
def server(nats_server: Callable[[], NatsServer]) -> NatsServer:
    return nats_server()


@pytest.fixture
async def stand(
    server: NatsServer, database: str, tmp_path: Path, seed: int
) -> AsyncIterator[Stand]:
    async with opened(server, database, tmp_path, seed) as made:
        yield made


@pytest.fixture
async def stand_alone(
    server: NatsServer, postgres_server: Callable[[], PostgresServer], tmp_path: Path, seed: int
) -> AsyncIterator[tuple[Stand, PostgresServer]]:
    """As `stand`, on a PostgreSQL that the story may break."""
    postgres = postgres_server()
    await upgrade(postgres.url)
    async with opened(server, postgres.url, tmp_path, seed) as made:
        yield made, postgres


@pytest.fixture
async def collector(
    nats_server: Callable[[], NatsServer], tmp_path: Path
) -> AsyncIterator[tuple[Collector, NatsServer]]:
    """A collector that is not started yet, and the broker that it hears."""
    server = nats_server()
    made = Collector(server.url, tmp_path / "clickhouse", tmp_path / "collector.log")
    try:
        yield made, server
    finally:
        await made.kill()


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small file system of the story's own; only root may have one."""
    with small_disk() as place:
        if place is None:
            pytest.skip("no small file system: mounting one takes root and its rights")
        yield place


@pytest.fixture
def broker_on_disk(disk: Path) -> Iterator[NatsServer]:
    server = NatsServer(disk / "nats")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def postgres_on_disk(disk: Path) -> Iterator[PostgresServer]:
    server = PostgresServer(disk / "postgres", durable=False)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def stand_on_broker(
    broker_on_disk: NatsServer, database: str, tmp_path: Path, seed: int
) -> AsyncIterator[Stand]:
    """As `stand`, with the broker alone on the small file system."""
    async with opened(broker_on_disk, database, tmp_path, seed, limits=SMALL) as made:
        yield made


@pytest.fixture
async def stand_on_postgres(
    server: NatsServer, postgres_on_disk: PostgresServer, tmp_path: Path, seed: int
) -> AsyncIterator[Stand]:
    """As `stand`, with PostgreSQL alone on the small file system."""
    await upgrade(postgres_on_disk.url)
    async with opened(server, postgres_on_disk.url, tmp_path, seed) as made:
        yield made
