"""Servers for every suite: given by the environment, in containers, or embedded."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog
from hypothesis import settings
from xdist.remote import Producer

from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.testing.databases import Databases
from optiinfra.storage.testing.servers import (
    RedisServer,
    Sources,
    open_servers,
    reachable_home,
    running,
)
from tests.lanes import Lanes


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="what the fault suite's chances follow")
    parser.addoption("--at-length", action="store_true", help="all points of the fault suite")
    parser.addoption("--screenshots", type=Path, help="keep a picture of each page in this folder")


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: --seed {config.getoption('--seed')}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """`-n 2`: tests side by side, as `make test` runs them."""
    return Lanes(config, log)


def pytest_configure() -> None:
    """Properties are tried on the same cases each time; and Ctrl-C is heard.

    A shell that runs us in the background has us ignore Ctrl-C, and our children with us.
    """
    settings.register_profile("the same each time", derandomize=True, deadline=None)
    settings.load_profile("the same each time")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Commands set logging up for their whole process; the next test starts as it was before."""
    root, configured = logging.getLogger(), structlog.get_config()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    structlog.configure(**configured)


@pytest.fixture(scope="session")
def screenshots(pytestconfig: pytest.Config) -> Path | None:
    """Where pictures of the pages are kept; None: they are not."""
    folder: Path | None = pytestconfig.getoption("--screenshots")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def session_home() -> Iterator[Path]:
    """One temporary home of the whole session."""
    with reachable_home() as home:
        yield home


@pytest.fixture(scope="session")
def servers(session_home: Path) -> Iterator[Addresses]:
    """Every part, shared by the session: use tenants, databases and subjects of your own.

    chdb and Qdrant's local mode open their folder in this process only.
    """
    with open_servers(session_home, Sources.from_environment(os.environ)) as addresses:
        yield addresses


@pytest.fixture(scope="session")
def nats_url(servers: Addresses) -> str:
    """The shared NATS server with JetStream; streams of other tests are on it too."""
    return servers.nats_url


@pytest.fixture
def nats_server() -> Iterator[Callable[[], NatsServer]]:
    """Makes started NATS servers of the test's own, which it may stop, kill and start again."""
    with ExitStack() as stack:

        def make() -> NatsServer:
            server = NatsServer(stack.enter_context(reachable_home()) / "nats")
            stack.enter_context(running(server))
            return server

        yield make


@pytest.fixture
def postgres_server() -> Iterator[Callable[[], PostgresServer]]:
    """Makes started PostgreSQL servers of the test's own, for tests that break them."""
    with ExitStack() as stack:

        def make() -> PostgresServer:
            home = stack.enter_context(reachable_home())
            server = PostgresServer(home / "postgres", durable=False)
            stack.enter_context(running(server))
            return server

        yield make


@pytest.fixture(scope="session")
def redis_url(servers: Addresses, session_home: Path) -> Iterator[str]:
    """A real Redis: the session's, else a child of our own; skips where there is neither."""
    if servers.redis_url.startswith("redis"):
        yield servers.redis_url
        return
    if RedisServer.binary() is None:
        pytest.skip("no redis-server on this machine, and OPTIINFRA_TEST_REDIS_URL is not set")
    with running(RedisServer(session_home / "redis")) as url:
        yield url


@pytest.fixture(scope="session")
async def databases(servers: Addresses) -> AsyncIterator[Databases]:
    """Fresh databases on the session's PostgreSQL."""
    from optiinfra.storage.postgres.migrate import upgrade

    made = Databases(servers.postgres_url, upgrade)
    yield made
    await made.aclose()


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[str]:
    """The URL of a migrated, empty database of this test's own."""
    async with databases.fresh() as url:
        yield url


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Database]:
    """The fresh database, opened."""
    async with open_database(database) as opened:
        yield opened
