"""Servers in containers, for test sessions on machines where a Docker engine answers."""

from __future__ import annotations

import http.client
import importlib.util
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import urlsplit

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.embedded.cluster import DATABASE, USER
from optiinfra.storage.embedded.nats import greets
from optiinfra.storage.embedded.postgres import accepts_logins
from optiinfra.storage.embedded.processes import wait_until

READY_TIMEOUT_S = 60.0
PASSWORD = secrets.token_urlsafe(12)


@dataclass(frozen=True, kw_only=True)
class Image:
    """One server's image; `url` has places for host and port."""

    name: str
    port: int
    url: str
    ready: Callable[[str, int], bool]
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def answers_http(path: str) -> Callable[[str, int], bool]:
    """A readiness test: GET `path` answers 200."""

    def ready(host: str, port: int) -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=1.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return ready


def answers_ping(host: str, port: int) -> bool:
    """Whether a Redis there answers PING."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as client:
            client.sendall(b"PING\r\n")
            return client.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


IMAGES = {
    "nats": Image(
        name="nats:2.12-alpine",
        port=4222,
        url=f"nats://{USER}:{PASSWORD}@{{host}}:{{port}}",
        ready=greets,
        command=("-js", "--user", USER, "--pass", PASSWORD),
    ),
    "postgres": Image(
        name="postgres:17-alpine",
        port=5432,
        url=f"postgresql://{USER}:{PASSWORD}@{{host}}:{{port}}/{DATABASE}",
        ready=accepts_logins,
        command=("postgres", "-c", "fsync=off"),
        environment={
            "POSTGRES_USER": USER,
            "POSTGRES_PASSWORD": PASSWORD,
            "POSTGRES_DB": DATABASE,
        },
    ),
    "clickhouse": Image(
        name="clickhouse/clickhouse-server:25.8-alpine",
        port=8123,
        url=f"http://{USER}:{PASSWORD}@{{host}}:{{port}}",
        ready=answers_http("/ping"),
        environment={"CLICKHOUSE_USER": USER, "CLICKHOUSE_PASSWORD": PASSWORD},
    ),
    "qdrant": Image(
        name="qdrant/qdrant:v1.15.5",
        port=6333,
        url="http://{host}:{port}",
        ready=answers_http("/readyz"),
    ),
    "redis": Image(
        name="redis:8-alpine", port=6379, url="redis://{host}:{port}/0", ready=answers_ping
    ),
}


@cache
def docker_answers(engine: str) -> bool:
    """Whether testcontainers is installed and a Docker engine answers at `engine` (its URL)."""
    if importlib.util.find_spec("testcontainers") is None:
        return False
    parts = urlsplit(engine)
    family = socket.AF_UNIX if parts.scheme == "unix" else socket.AF_INET
    address = parts.path if parts.scheme == "unix" else (parts.hostname, parts.port or 2375)
    with socket.socket(family) as client:
        client.settimeout(2.0)
        try:
            client.connect(address)
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in client.recv(64)
        except OSError:
            return False


@contextmanager
def open_container(part: str, engine: str) -> Iterator[str | None]:
    """The URL of `part` in a container of its own; None where Docker cannot run it.

    A machine whose engine answers but cannot fetch the image counts as one without Docker.
    """
    if not docker_answers(engine):
        yield None
        return
    from docker.errors import APIError  # type: ignore[import-untyped]
    from testcontainers.core.container import DockerContainer

    image = IMAGES[part]
    container = DockerContainer(image.name).with_exposed_ports(image.port)
    for name, value in image.environment.items():
        container = container.with_env(name, value)
    if image.command:
        container = container.with_command(list(image.command))
    try:
        container.start()
    except APIError:
        yield None
        return
    try:
        yield _ready_url(image, container.get_container_host_ip(), container.get_exposed_port)
    finally:
        container.stop()


def _ready_url(image: Image, host: str, exposed_port: Callable[[int], int]) -> str:
    port = int(exposed_port(image.port))
    if not wait_until(lambda: image.ready(host, port), READY_TIMEOUT_S):
        raise Unavailable(f"{image.name} did not become ready")
    return image.url.format(host=host, port=port)
