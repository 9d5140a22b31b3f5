"""The servers that a test session uses: given ones, containers, or the embedded ones."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from optiinfra.storage.embedded.child import Child, ChildSpec
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.ports import LOOPBACK, kept_port
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.testing.containers import answers_ping, open_container

READY_TIMEOUT_S = 10.0
PARTS = ("nats", "postgres", "clickhouse", "qdrant", "redis")
DOCKER = "unix:///var/run/docker.sock"


class Startable(Protocol):
    """A server that gives its URL when started."""

    def start(self) -> str: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Sources:
    """Where each part may come from, in this order: a given URL, a container, the embedded one."""

    given: Mapping[str, str]
    docker: str | None = DOCKER

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """`OPTIINFRA_TEST_<PART>_URL` gives a URL; `OPTIINFRA_TEST_CONTAINERS=0` uses no Docker."""
        names = {part: f"OPTIINFRA_TEST_{part.upper()}_URL" for part in PARTS}
        given = {part: environment[name] for part, name in names.items() if environment.get(name)}
        if environment.get("OPTIINFRA_TEST_CONTAINERS") == "0":
            return cls(given, docker=None)
        return cls(given, docker=environment.get("DOCKER_HOST", DOCKER))

    def container(self, part: str) -> AbstractContextManager[str | None]:
        """The URL of `part` in a container of its own; None where there is no Docker."""
        return nullcontext() if self.docker is None else open_container(part, self.docker)


@contextmanager
def open_servers(home: Path, sources: Sources) -> Iterator[Addresses]:
    """Every part, each from its own source; stops what it started."""
    with ExitStack() as stack:

        def url(part: str, embedded: Callable[[], AbstractContextManager[str]]) -> str:
            if part in sources.given:
                return sources.given[part]
            return stack.enter_context(sources.container(part)) or stack.enter_context(embedded())

        yield Addresses(
            nats_url=url("nats", lambda: running(NatsServer(home / "nats"))),
            postgres_url=url(
                "postgres", lambda: running(PostgresServer(home / "postgres", durable=False))
            ),
            clickhouse_url=url("clickhouse", lambda: nullcontext(f"chdb://{home}/clickhouse")),
            qdrant_url=url("qdrant", lambda: nullcontext(f"local://{home}/qdrant")),
            redis_url=url("redis", lambda: nullcontext("memory://")),
        )


@contextmanager
def running(server: Startable) -> Iterator[str]:
    """A server started for the block; its URL."""
    try:
        yield server.start()
    finally:
        server.stop()


@contextmanager
def reachable_home() -> Iterator[Path]:
    """A temporary home that PostgreSQL's user can walk into, even when root runs the tests."""
    home = Path(tempfile.mkdtemp(prefix="optiinfra-test-"))
    home.chmod(0o711)
    try:
        yield home
    finally:
        shutil.rmtree(home)


class RedisServer:
    """A real redis-server as a child process, where the machine has one; nothing is kept."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._child: Child | None = None

    @staticmethod
    def binary() -> str | None:
        """The path of redis-server or valkey-server; None where neither is installed."""
        return shutil.which("redis-server") or shutil.which("valkey-server")

    def start(self) -> str:
        """Start and wait until it answers; the URL."""
        self.home.mkdir(parents=True, exist_ok=True)
        port = kept_port(self.home / "port")
        binary = self.binary() or "redis-server"
        options = ["--port", str(port), "--bind", LOOPBACK, "--save", "", "--dir", str(self.home)]
        options += ["--set-proc-title", "no"]
        self._child = Child(
            ChildSpec(
                name="redis-server",
                argv=[binary, *options],
                marker=str(self.home),
                pid_path=self.home / "redis.pid",
                log_path=self.home / "redis.log",
                stop_signals=(signal.SIGTERM,),
            )
        )
        self._child.start()
        if not self._child.becomes(lambda: answers_ping(LOOPBACK, port), READY_TIMEOUT_S):
            raise self._child.give_up()
        return f"redis://{LOOPBACK}:{port}/0"

    def stop(self) -> None:
        """Stop it. Idempotent."""
        if self._child is not None:
            self._child.stop()
