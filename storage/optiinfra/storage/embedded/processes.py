"""What the operating system knows of a process by its id: its command line, and how to end it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

POLL_S = 0.01


def command_line(pid: int) -> str | None:
    """The command line of a living process, arguments joined by spaces; None when it is gone.

    A zombie has no command line and counts as gone.
    """
    proc = Path("/proc")
    if (proc / "self").exists():
        try:
            raw = (proc / str(pid) / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return raw.replace(b"\0", b" ").decode(errors="replace").strip() or None
    listing = subprocess.run(  # noqa: S603
        ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    )
    return listing.stdout.strip() or None


def runs(pid: int, marker: str) -> bool:
    """Whether `pid` lives and is the process whose command line contains `marker`."""
    line = command_line(pid)
    return line is not None and marker in line


def signal_quietly(pid: int, number: int) -> None:
    """Send a signal to a process that may have gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Ask `condition` until it holds (True) or `timeout_s` has passed (False)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def end_leftover(pid: int, marker: str, signals: Sequence[int], patience_s: float = 2.0) -> bool:
    """End a process that an earlier parent left behind; whether there was one.

    Only a process whose command line contains `marker` is touched, since ids are used again.
    The signals are tried in turn, each for `patience_s`, then SIGKILL.
    """
    if not runs(pid, marker):
        return False
    for number in (*signals, signal.SIGKILL):
        signal_quietly(pid, number)
        if wait_until(lambda: not runs(pid, marker), patience_s):
            return True
    return True
