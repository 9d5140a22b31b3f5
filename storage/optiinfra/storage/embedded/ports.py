"""Loopback ports that stay the same from one start to the next while nobody else takes them."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

LOOPBACK = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, no two the same: asked for one by one, they may be."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """A port that nobody listens on now."""
    return free_ports(1)[0]


def kept_port(record: Path, *others: int) -> int:
    """The port written in `record` if it is free, else a new one, written there.

    None of `others`: ports that are spoken for, but which nobody listens on yet.
    """
    try:
        port = int(record.read_text())
        if 0 < port < 65536 and port not in others and is_free(port):
            return port
    except (FileNotFoundError, ValueError):
        pass
    port = next(one for one in free_ports(len(others) + 1) if one not in others)
    record.write_text(f"{port}\n")
    return port
