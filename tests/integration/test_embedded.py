"""The embedded servers keep their data, outlive nothing, and come back after any end."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest

from optiinfra.schemas.errors import Conflict
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.embedded.servers import Addresses, EmbeddedServers
from tests.embedded_stand import PATIENCE_S, home, lives, until

__all__ = ["home"]
PARENT = """
import json, sys, threading
from dataclasses import asdict
from pathlib import Path
from optiinfra.storage.embedded.servers import EmbeddedServers

servers = EmbeddedServers(Path(sys.argv[1]), durable=False)
try:
    with servers as addresses:
        pids = [part.pid for part in servers.status()]
        print(json.dumps({"pids": pids, **asdict(addresses)}), flush=True)
        threading.Event().wait()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def family(pids: list[int]) -> list[int]:
    """These processes and their descendants."""
    found = [psutil.Process(pid) for pid in pids]
    return [process.pid for one in found for process in (one, *one.children(recursive=True))]


class Parent:
    """A process of its own that starts the servers, prints their addresses and waits."""

    def __init__(self, home: Path, *wrapper: str) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", PARENT, str(home)],
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout
        line = self.said.readline()
        if not line:
            self.said.close()
            raise AssertionError(f"the servers did not start: exit {self.process.wait(PATIENCE_S)}")
        started = json.loads(line)
        self.pids = family(started.pop("pids"))
        self.addresses = Addresses(**started)

    def end(self, number: int) -> None:
        os.killpg(self.process.pid, number)
        self.process.wait(PATIENCE_S)

    def all_are_gone(self) -> bool:
        return not any(lives(pid) for pid in self.pids)


@pytest.fixture
def parent(home: Path) -> Iterator[Callable[..., Parent]]:
    parents: list[Parent] = []

    def start(*wrapper: str) -> Parent:
        parents.append(Parent(home / "data", *wrapper))
        return parents[-1]

    yield start
    for one in parents:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)
        one.said.close()
        until(one.all_are_gone, "the children end")


async def note(addresses: Addresses) -> None:
    """Leave something in each server."""
    connection = await asyncpg.connect(addresses.postgres_url)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (at timestamptz DEFAULT now())")
    await connection.execute("INSERT INTO kept DEFAULT VALUES")
    await connection.close()
    client = await nats.connect(addresses.nats_url)
    await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
    await client.jetstream().publish("kept", b"x")
    await client.close()


async def noted(addresses: Addresses) -> tuple[int, int]:
    """How much was left in PostgreSQL and in NATS."""
    connection = await asyncpg.connect(addresses.postgres_url)
    rows = await connection.fetchval("SELECT count(*) FROM kept")
    await connection.close()
    client = await nats.connect(addresses.nats_url)
    stream = await client.jetstream().stream_info("KEPT")
    await client.close()
    return rows, stream.state.messages


async def test_a_second_start_keeps_data_and_addresses(home: Path) -> None:
    servers = EmbeddedServers(home / "data")
    with servers as first:
        await note(first)
        pids = family([part.pid for part in servers.status() if part.pid])
        assert all(part.healthy for part in servers.status())
    assert not any(lives(pid) for pid in pids)
    assert not any(part.healthy or part.pid for part in servers.status())
    with EmbeddedServers(home / "data") as second:
        assert second == first
        assert await noted(second) == (1, 1)


def test_stopping_takes_less_than_two_seconds_and_may_be_repeated(home: Path) -> None:
    servers = EmbeddedServers(home / "data", durable=False)
    servers.start()
    assert servers.start() == servers.start()
    began = time.monotonic()
    servers.stop()
    assert time.monotonic() - began < 2
    servers.stop()


def test_only_the_owner_can_read_passwords_and_the_status_shows_none(home: Path) -> None:
    servers = EmbeddedServers(home / "data", durable=False)
    with servers as addresses:
        passwords = [
            url.split(":")[2].split("@")[0] for url in (addresses.nats_url, addresses.postgres_url)
        ]
        shown = str(servers.status())
    assert len(set(passwords)) == 2
    assert all(len(password) >= 24 and password not in shown for password in passwords)
    readable = [
        path
        for path in (home / "data").rglob("*")
        if path.is_file()
        and path.stat().st_mode & 0o077
        and any(password in path.read_text(errors="replace") for password in passwords)
    ]
    assert readable == []


async def test_without_the_password_nobody_gets_in(home: Path) -> None:
    with EmbeddedServers(home / "data", durable=False) as addresses:
        wrong = addresses.postgres_url.replace("optiinfra:", "optiinfra:x", 1)
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(wrong)
        port = int(addresses.nats_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
            client.sendall(b"CONNECT {}\r\nPING\r\n")
            said = b"".join(iter(lambda: client.recv(4096), b""))
    assert b"-ERR 'Authorization Violation'" in said


def test_the_settings_are_those_promised(home: Path) -> None:
    server = NatsServer(home / "nats")
    server.start()
    config = (server.home / "nats-server.conf").read_text()
    server.stop()
    promised = (
        'sync_interval: "1s"',
        'ping_interval: "10s"',
        "ping_max: 2",
        "max_payload: 1048576",
    )
    for line in promised:
        assert line in config


async def test_postgres_is_durable_unless_told_otherwise(home: Path) -> None:
    server = PostgresServer(home / "postgres")
    connection = await asyncpg.connect(server.start())
    shown = {
        name: await connection.fetchval(f"SHOW {name}")
        for name in ("fsync", "synchronous_commit", "shared_buffers", "max_connections")
    }
    await connection.close()
    server.stop()
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "shared_buffers": "64MB",
        "max_connections": "100",
    }


def test_a_second_process_on_the_same_home_is_refused_by_name(
    home: Path, parent: Callable[..., Parent]
) -> None:
    first = parent()
    with pytest.raises(Conflict, match=f"in use by process {first.process.pid}"):
        EmbeddedServers(home / "data").start()
    assert not first.all_are_gone()


async def test_killing_the_parent_leaves_no_process_and_the_next_start_works(
    home: Path, parent: Callable[..., Parent]
) -> None:
    killed = parent()
    await note(killed.addresses)
    killed.end(signal.SIGKILL)
    with EmbeddedServers(home / "data", durable=False) as addresses:
        assert await noted(addresses) == (1, 1)
    until(killed.all_are_gone, "the children follow their parent")


def test_children_follow_a_killed_parent_without_a_next_start(
    parent: Callable[..., Parent],
) -> None:
    killed = parent()
    killed.end(signal.SIGKILL)
    until(killed.all_are_gone, "the children follow their parent")


def test_ctrl_c_stops_everything_in_order_within_two_seconds(
    home: Path, parent: Callable[..., Parent]
) -> None:
    interrupted = parent()
    began = time.monotonic()
    interrupted.end(signal.SIGINT)
    assert time.monotonic() - began < 2
    assert interrupted.said.readline() == "stopped\n"
    assert interrupted.all_are_gone()
    log = (home / "data" / "postgres" / "postgres.log").read_text()
    assert "database system is shut down" in log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_than_root_can_run_them(home: Path, parent: Callable[..., Parent]) -> None:
    """The user may read every file, since the interpreter may lie in root's home."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv on this machine")
    uid = pwd.getpwnam("daemon").pw_uid
    os.chown(home, uid, uid)
    may_read = [f"--{kind}-caps=-all,+dac_read_search" for kind in ("inh", "ambient")]
    first = parent(setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *may_read)
    assert {psutil.Process(pid).uids().real for pid in first.pids} == {uid}
    first.end(signal.SIGINT)
    assert first.said.readline() == "stopped\n"
    assert first.all_are_gone()


async def test_a_leftover_of_an_earlier_parent_is_ended_first(home: Path) -> None:
    left = NatsServer(home / "nats")
    left.start()
    pid, url = left.pid, left.url
    assert pid is not None
    (home / "nats" / "nats-server.pid").write_text(f"{pid}\n")
    fresh = NatsServer(home / "nats")
    assert fresh.start() == url
    assert fresh.pid != pid
    left.stop()
    fresh.stop()


def test_a_process_that_only_has_the_same_number_is_left_alone(home: Path) -> None:
    (home / "nats").mkdir()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (home / "nats" / "nats-server.pid").write_text(f"{stranger.pid}\n")
    server = NatsServer(home / "nats")
    server.start()
    server.stop()
    assert stranger.poll() is None
    stranger.communicate(b"\n")


def test_a_stale_claim_on_the_cluster_does_not_keep_postgres_from_starting(
    postgres_server: Callable[[], PostgresServer],
) -> None:
    server = postgres_server()
    server.kill()
    stranger = subprocess.Popen(["/bin/sleep", "60"], user=server.uid, cwd="/")
    record = next(server.home.rglob("cluster/data")) / "postmaster.pid"
    lines = record.read_text().splitlines()
    record.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
    server.start()
    assert server.healthy()
    assert stranger.poll() is None
    stranger.terminate()
    stranger.wait()


@pytest.mark.parametrize("fault", [PostgresServer.kill, PostgresServer.stop_immediately])
async def test_postgres_recovers_what_was_committed_before_a_fault(
    postgres_server: Callable[[], PostgresServer], fault: Callable[[PostgresServer], None]
) -> None:
    server = postgres_server()
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE TABLE kept (n int)")
    for number in range(3):
        await connection.execute("INSERT INTO kept VALUES ($1)", number)
        url = server.url
        fault(server)
        assert not server.healthy()
        assert server.start() == url
        connection.terminate()
        connection = await asyncpg.connect(server.url)
        assert await connection.fetchval("SELECT count(*) FROM kept") == number + 1
    await connection.close()


async def test_nats_comes_back_at_its_address_with_its_stream(
    nats_server: Callable[[], NatsServer],
) -> None:
    server = nats_server()
    url = server.url
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
    await client.jetstream().publish("kept", b"x")
    await client.close()
    server.kill()
    assert not server.healthy()
    assert server.start() == url
    client = await nats.connect(url)
    assert (await client.jetstream().stream_info("KEPT")).state.messages == 1
    await client.close()
