"""A real PostgreSQL as a child process, on loopback, with a password; the cluster is kept."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

from optiinfra.storage.embedded.child import Child, ChildSpec, end_recorded_leftover, log_tail
from optiinfra.storage.embedded.cluster import DATABASE, ENV, FAST, IMMEDIATE, USER, Cluster
from optiinfra.storage.embedded.credentials import kept_password
from optiinfra.storage.embedded.places import (
    UNPRIVILEGED_UID,
    make_private_folder,
    place_for_another_user,
)
from optiinfra.storage.embedded.ports import LOOPBACK, kept_port

READY_TIMEOUT_S = 60.0
START_ATTEMPTS = 5
STOP_SIGNALS = (FAST, IMMEDIATE)
PROTOCOL_3_0 = 196608
PASSING_TROUBLES = ("Address already in use", "still in use")

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "512MB",
    "synchronous_commit": "on",
    "dynamic_shared_memory_type": "mmap",
    "io_method": "sync",
    "jit": "off",
    "log_checkpoints": "off",
}
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer:
    """One PostgreSQL whose cluster, port and password live in `home`; it can be started again.

    Run by root, the server runs as user 65534, since PostgreSQL refuses root. Where that user
    cannot reach `home`, the cluster lies in a place derived from it (`cluster.data`).
    `durable=False` gives up the safety of power cuts for speed: tests only.
    """

    def __init__(self, home: Path, *, durable: bool = True) -> None:
        self.home = home.absolute()
        self.durable = durable
        self.uid = UNPRIVILEGED_UID if os.geteuid() == 0 else None
        self._pid_path = self.home / "postgres.pid"
        self._password = ""
        self._port = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where clients connect, with the password, to the database `optiinfra`."""
        return f"postgresql://{USER}:{self._password}@{LOOPBACK}:{self._port}/{DATABASE}"

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster while it runs."""
        return self._child.pid if self._child else None

    def start(self) -> str:
        """Make the cluster if there is none, start, wait until it accepts logins; the URL.

        `Unavailable` with the end of the server's log when it does not.
        """
        if self.pid is not None:
            return self.url
        self.stop()
        cluster = self._open_cluster()
        for attempt in range(1, START_ATTEMPTS + 1):
            child = self._launch(cluster)
            if child.becomes(self.healthy, READY_TIMEOUT_S):
                return self.url
            failure = child.give_up()
            if attempt == START_ATTEMPTS or not _may_pass(child):
                raise failure
        raise AssertionError

    def _open_cluster(self) -> Cluster:
        make_private_folder(self.home)
        self._password = kept_password(self.home, "postgres")
        folder = self.home if self.uid is None else place_for_another_user(self.home)
        cluster = Cluster(folder, uid=self.uid, durable=self.durable)
        end_recorded_leftover(self._pid_path, str(cluster.data), STOP_SIGNALS)
        cluster.ensure(self._password)
        return cluster

    def _launch(self, cluster: Cluster) -> Child:
        self._port = kept_port(self.home / "port")
        settings = SETTINGS | {"port": str(self._port)} | ({} if self.durable else NOT_DURABLE)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._child = Child(
            ChildSpec(
                name="postgres",
                argv=[str(cluster.binaries / "postgres"), "-D", str(cluster.data), *options],
                marker=str(cluster.data),
                pid_path=self._pid_path,
                log_path=self.home / "postgres.log",
                stop_signals=STOP_SIGNALS,
                uid=self.uid,
                env=ENV,
            )
        )
        self._child.start()
        return self._child

    def healthy(self) -> bool:
        """Whether the server answers a login with a question for the password."""
        return self.pid is not None and accepts_logins(LOOPBACK, self._port)

    def request_stop(self) -> None:
        """Ask for a fast shutdown and return at once; `stop` waits for it."""
        if self._child is not None:
            self._child.request_stop()

    def stop(self) -> None:
        """Fast shutdown (clients are cut, the log is checkpointed), else immediate. Idempotent."""
        if self._child is not None:
            self._child.stop()

    def stop_immediately(self) -> None:
        """SIGQUIT: no checkpoint, the next start recovers from the log; a fault for tests."""
        if self._child is not None:
            self._child.kill(IMMEDIATE)

    def kill(self) -> None:
        """SIGKILL of the postmaster, as a fault would."""
        if self._child is not None:
            self._child.kill()


def accepts_logins(host: str, port: int) -> bool:
    """Whether a PostgreSQL there answers a login of `optiinfra` with a question for its password.

    A server that is starting or stopping answers with an error instead (protocol 3.0, startup).
    """
    body = struct.pack("!I", PROTOCOL_3_0)
    body += f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
    try:
        with socket.create_connection((host, port), timeout=1.0) as client:
            client.sendall(struct.pack("!I", len(body) + 4) + body)
            return client.recv(64)[:1] == b"R"
    except OSError:
        return False


def _may_pass(child: Child) -> bool:
    """Whether the start failed for a port just taken or for backends still dying."""
    tail = log_tail(child.spec.log_path)
    return any(trouble in tail for trouble in PASSING_TROUBLES)
