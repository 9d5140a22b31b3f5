"""The emulated engine as a process of its own, which breaks where its batch says so."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from optiinfra.twin import emulator
from optiinfra.twin.engine import Engine

DOES_NOT_START, RUNS_OUT_OF_MEMORY, LOADS_FOR_EVER = 301, 302, 303


def _killed(self: Engine, stream: Any) -> None:
    """What the kernel does to a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(argv: list[str]) -> int:
    batch = int(argv[argv.index("--max-num-seqs") + 1])
    if batch == DOES_NOT_START:
        print("no room for the KV cache", file=sys.stderr)
        return 1
    if batch == LOADS_FOR_EVER:
        time.sleep(3_600)
    if batch == RUNS_OUT_OF_MEMORY:
        Engine.submit = _killed  # type: ignore[method-assign]
    return emulator.main(argv)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
