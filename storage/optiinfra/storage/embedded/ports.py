"""Loopback ports that stay the same from one start to the next while nobody else takes them."""

from __future__ import annotations

import socket
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


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def kept_port(record: Path) -> int:
    """The port written in `record` if it is free, else a new one, written there."""
    try:
        port = int(record.read_text())
        if 0 < port < 65536 and is_free(port):
            return port
    except (FileNotFoundError, ValueError):
        pass
    port = free_port()
    record.write_text(f"{port}\n")
    return port
