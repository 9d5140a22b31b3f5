"""A server process that is ours: apart from the terminal, dead when we are, stopped in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.embedded import launcher
from optiinfra.storage.embedded.processes import end_leftover, wait_until

LOG_LIMIT_BYTES = 4 << 20
LOG_TAIL_BYTES = 1500


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """How to run one server; `marker` is a word of the command line that no other process has."""

    name: str
    argv: Sequence[str]
    marker: str
    pid_path: Path
    log_path: Path
    stop_signals: Sequence[int]
    uid: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)


class Child:
    """One run of a server process.

    The kernel's death signal follows the *thread* that forked, so a thread of our own forks and
    stays for as long as the child lives.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self._forker: ThreadPoolExecutor | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self) -> None:
        """Start the process; it may take a while to become ready."""
        trim_log(self.spec.log_path)
        self._forker = ThreadPoolExecutor(1, thread_name_prefix=f"forker-{self.spec.name}")
        self._process = self._forker.submit(self._fork).result()
        self.spec.pid_path.write_text(f"{self._process.pid}\n")

    def _fork(self) -> subprocess.Popen[bytes]:
        prefix = launched(self.spec.uid, self.spec.stop_signals[0])
        with self.spec.log_path.open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                [*prefix, *self.spec.argv],
                cwd="/",
                env=dict(self.spec.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def becomes(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `ready` holds; False when the process ended or the time ran out before."""
        wait_until(lambda: self.pid is None or ready(), timeout_s)
        return self.pid is not None and ready()

    def request_stop(self) -> None:
        """Ask for an orderly stop and return at once."""
        if self.pid is not None and self._process is not None:
            self._process.send_signal(self.spec.stop_signals[0])

    def stop(self, timeout_s: float = 1.5) -> None:
        """Stop in order, within `timeout_s` for each signal, then by SIGKILL. Idempotent."""
        for number in (*self.spec.stop_signals, signal.SIGKILL):
            if self._process is None:
                break
            self._process.send_signal(number)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                continue
            break
        self._forget()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End the process by one signal, as a fault would, and wait for its end."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
        self._forget()

    def _forget(self) -> None:
        self._process = None
        self.spec.pid_path.unlink(missing_ok=True)
        if self._forker is not None:
            self._forker.shutdown()
            self._forker = None

    def give_up(self) -> Unavailable:
        """Stop a child that did not become ready; the error to raise, with the end of its log."""
        doing = "ended at its start" if self.pid is None else "did not become ready"
        self.stop()
        tail = log_tail(self.spec.log_path)
        return Unavailable(f"{self.spec.name} {doing}; the end of {self.spec.log_path}:\n{tail}")


def launched(uid: int | None, death_signal: int) -> list[str]:
    """The beginning of a command line that runs the rest as `uid` and dies with this thread."""
    user = "-" if uid is None else str(uid)
    arguments = [user, str(int(death_signal)), str(os.getpid())]
    return [sys.executable, "-I", "-S", launcher.__file__, *arguments]


def end_recorded_leftover(pid_path: Path, marker: str, signals: Sequence[int]) -> None:
    """End the process that an earlier run recorded, if it is still there and still ours."""
    try:
        pid = int(pid_path.read_text())
    except (FileNotFoundError, ValueError):
        return
    end_leftover(pid, marker, signals)
    pid_path.unlink(missing_ok=True)


def trim_log(path: Path) -> None:
    """Keep one older log once the log has grown past its limit."""
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".old.log"))


def log_tail(path: Path) -> str:
    """The last lines of a log, for an error message."""
    if not path.exists():
        return "(empty)"
    return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
