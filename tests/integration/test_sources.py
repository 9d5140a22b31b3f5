"""Where the servers of the tests come from: addresses, containers, or this machine."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import asyncpg

from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.testing.containers import docker_answers
from optiinfra.storage.testing.servers import PARTS, Sources, open_servers
from tests.embedded_stand import PATIENCE_S, home

__all__ = ["home"]


def test_given_addresses_are_used_and_nothing_is_started(home: Path) -> None:
    given = {f"OPTIINFRA_TEST_{part.upper()}_URL": f"{part}://there" for part in PARTS}
    with open_servers(home, Sources.from_environment(given)) as addresses:
        there = {f"{part}_url": f"{part}://there" for part in PARTS}
        assert asdict(addresses) == {**there, "nats_role_urls": {}}
    assert list(home.iterdir()) == []
    assert Sources.from_environment({"OPTIINFRA_TEST_CONTAINERS": "0"}).docker is None
    assert Sources.from_environment({"DOCKER_HOST": "tcp://far:1"}).docker == "tcp://far:1"


def test_docker_is_used_only_where_an_engine_answers(home: Path) -> None:
    assert not docker_answers(f"unix://{home}/absent.sock")
    assert not docker_answers("tcp://127.0.0.1:9")
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(home / "docker.sock"))
        engine.listen()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(docker_answers, f"unix://{home}/docker.sock")
            connection, _ = engine.accept()
            with connection:
                connection.recv(64)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nOK")
            assert asked.result(PATIENCE_S)


async def test_each_test_gets_a_database_of_its_own(database: str, servers: Addresses) -> None:
    assert database != servers.postgres_url
    connection = await asyncpg.connect(database)
    tables = await connection.fetchval(
        "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
    )
    await connection.close()
    assert tables > 0
