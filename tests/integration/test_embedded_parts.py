"""What embedded servers are made of: ports, passwords, logs, and one child process."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from optiinfra.schemas.errors import Invariant, Unavailable
from optiinfra.storage.embedded import nats as nats_module
from optiinfra.storage.embedded import postgres as postgres_module
from optiinfra.storage.embedded.child import (
    LOG_LIMIT_BYTES,
    Child,
    ChildSpec,
    log_tail,
    trim_log,
)
from optiinfra.storage.embedded.credentials import kept_password
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.ports import free_port
from optiinfra.storage.embedded.processes import end_leftover
from optiinfra.storage.embedded.servers import EmbeddedServers
from tests.embedded_stand import PATIENCE_S, home, lives

__all__ = ["home"]


def test_a_taken_port_is_replaced(home: Path) -> None:
    server = NatsServer(home / "nats")
    first = server.start()
    server.stop()
    with socket.create_server(("127.0.0.1", int(first.rpartition(":")[2]))):
        assert server.start() != first
        server.stop()


def test_a_port_taken_at_the_last_moment_is_tried_again_elsewhere(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for module in (nats_module, postgres_module):
            choices = iter([taken.getsockname()[1]])
            monkeypatch.setattr(
                module, "kept_port", lambda *_, first=choices: next(first, None) or free_port()
            )
        with EmbeddedServers(home / "data", durable=False) as addresses:
            assert str(taken.getsockname()[1]) not in addresses.nats_url + addresses.postgres_url


def test_two_ports_of_one_server_are_never_the_same(home: Path) -> None:
    (home / "nats").mkdir()
    once = str(free_port())
    for record in ("port", "monitor-port"):  # as a start that chose one port twice has left them
        (home / "nats" / record).write_text(once)
    server = NatsServer(home / "nats")
    assert server.start().endswith(once)
    assert not server.monitor_url.endswith(once)
    server.stop()


def test_unreadable_credentials_are_named(home: Path) -> None:
    (home / "credentials").write_text("{")
    with pytest.raises(Invariant, match="credentials is not JSON"):
        kept_password(home, "nats")


def test_a_log_that_has_grown_is_put_aside_once(home: Path) -> None:
    log = home / "server.log"
    trim_log(log)
    log.write_bytes(b"x" * (LOG_LIMIT_BYTES + 1))
    trim_log(log)
    assert not log.exists()
    assert (home / "server.old.log").exists()
    assert log_tail(log) == "(empty)"


def test_a_process_that_ignores_the_order_to_stop_is_killed(home: Path) -> None:
    script = home / "stubborn"
    script.write_text(
        "trap '' TERM INT\ntouch " + str(home / "ready") + "\nwhile :; do sleep 1; done\n"
    )
    spec = ChildSpec(
        name="stubborn",
        argv=["/bin/sh", str(script)],
        marker=str(script),
        pid_path=home / "pid",
        log_path=home / "log",
        stop_signals=(signal.SIGTERM, signal.SIGINT),
    )
    for end in ("stop", "leftover"):
        child = Child(spec)
        child.start()
        assert child.becomes((home / "ready").exists, PATIENCE_S)
        pid = child.pid
        assert pid is not None
        if end == "leftover":
            assert end_leftover(pid, str(script), spec.stop_signals, patience_s=0.1)
        child.stop(timeout_s=0.1)
        assert not lives(pid)
        (home / "ready").unlink()


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    server = NatsServer(home / "nats")
    (home / "nats").mkdir()
    (home / "nats" / "store").write_text("not a folder")
    with pytest.raises(Unavailable, match=r"nats-server ended at its start(.|\n)*not a directory"):
        server.start()
    assert server.pid is None
