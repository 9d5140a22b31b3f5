"""The note that `up` leaves of itself in its home, so that it can be found and stopped."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

FILE = "up.pid"


def write(home: Path) -> None:
    """Notes this process."""
    (home / FILE).write_text(f"{os.getpid()} {psutil.Process().create_time()}")


def forget(home: Path) -> None:
    (home / FILE).unlink(missing_ok=True)


def running(home: Path) -> psutil.Process | None:
    """The `up` process of a home, None when there is none; never a later one with its number."""
    try:
        pid, started = (home / FILE).read_text().split()
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(started)) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
