"""Processes that begin as forks of one that has imported everything: most of a short life in the
suite would be importing."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from optiinfra.demo.children import child_environment

_CHILD = "tests.faults.child"
_MEASURED = "COVERAGE_PROCESS"
"""Begins the names of settings that would have each child measured: of one that is killed nothing
would come back."""


class Forked:
    """One process, in the manner of `asyncio.subprocess.Process`."""

    def __init__(self, process: ForkServerProcess) -> None:
        assert process.pid is not None
        self._process = process
        self._over = asyncio.Event()
        self.pid = process.pid
        self.returncode: int | None = None
        asyncio.get_running_loop().add_reader(process.sentinel, self._ended)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    async def wait(self) -> int:
        """Until it has ended; negative when a signal has ended it."""
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process.sentinel)
        self._process.join()
        self.returncode = self._process.exitcode
        self._process.close()
        self._over.set()


def forked(argument: str, log: Path) -> Forked:
    """The suite's child with its argument; what it says is appended to the log.

    Not in a thread: starting one also looks after those that have ended, as `Forked` does, and a
    cancellation would lose what was started.
    """
    process = _server().Process(target=_live, args=(argument, log), daemon=True)
    process.start()  # some milliseconds; the first one waits until all is imported
    return Forked(process)


@cache
def _server() -> ForkServerContext:
    """The process that forks; it ends with this one."""
    environment = {
        name: value for name, value in child_environment().items() if not name.startswith(_MEASURED)
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_CHILD])
    with patch.dict(os.environ, environment, clear=True):
        forkserver.ensure_running()
    return context


def _live(argument: str, log: Path) -> None:
    from tests.faults import child

    with log.open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    sys.exit(child.main(argument))
