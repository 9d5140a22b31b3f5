"""The story's processes: started apart from the terminal, heard line by line, stopped in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.embedded.child import launched, log_tail

Line = dict[str, Any]
_LINE_BYTES = 1 << 20
_HIDDEN = ("AWS_", "OPTIINFRA_")


def child_environment(**extra: str) -> dict[str, str]:
    """Our environment without anybody's cloud or product settings, and with `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_HIDDEN)}
    return {**kept, **extra}


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A module to run with its arguments; `hear` gets every JSON line that it says."""

    name: str
    module: str
    arguments: Sequence[str]
    log_path: Path
    hear: Callable[[Line], None]
    env: Mapping[str, str] = field(default_factory=child_environment)


class Child:
    """One running process; it ends when we do, also when we are killed."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self._process: Process | None = None
        self._hearing: asyncio.Task[int] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def start(self) -> None:
        """Start it; what it is not ready for yet waits in its stdin."""
        spec = self.spec
        spec.log_path.parent.mkdir(parents=True, exist_ok=True)
        with spec.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *launched(None, signal.SIGTERM),
                *(sys.executable, "-m", spec.module, *spec.arguments),
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                env=dict(spec.env),
                limit=_LINE_BYTES,
                start_new_session=True,
            )
        self._hearing = asyncio.create_task(self._hear(self._process), name=f"hear-{spec.name}")

    async def _hear(self, process: Process) -> int:
        """Pass on what it says until it ends; its exit status."""
        assert process.stdout is not None
        async for raw in process.stdout:
            with suppress(ValueError):
                line = json.loads(raw)
                if isinstance(line, dict):
                    self.spec.hear(line)
        return await process.wait()

    async def must_live(self) -> NoReturn:
        """Wait for ever; raises `Unavailable` when it ends."""
        if self._hearing is not None:
            await asyncio.shield(self._hearing)
        raise self.ended()

    async def tell(self, **command: object) -> None:
        """Send one command. Raises `Unavailable` when it has ended."""
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(command).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as gone:
            raise self.ended() from gone

    async def stop(self, grace_s: float) -> None:
        """Ask it to stop and wait; whatever is left of its group after `grace_s` is killed."""
        process = self._process
        if process is None or self._hearing is None:
            return
        if process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()
            with suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await asyncio.shield(self._hearing)
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await self._hearing

    def ended(self) -> Unavailable:
        """The error to raise when it has ended by itself, with its last words."""
        status = self._process.returncode if self._process else None
        path = self.spec.log_path
        return Unavailable(
            f"{self.spec.name} ended by itself (exit status {status});"
            f" the end of {path}:\n{log_tail(path)}"
        )

    def late(self, what: str, waited_s: float) -> Unavailable:
        """The error to raise when it is not ready in time, with its last words."""
        path = self.spec.log_path
        return Unavailable(
            f"{what} was not ready within {waited_s:.0f} s; the end of {path}:\n{log_tail(path)}"
        )

    def _running(self) -> Process:
        if self._process is None:
            raise Unavailable(f"{self.spec.name} has not been started")
        return self._process


async def stdin_lines() -> AsyncIterator[Line]:
    """In a child: the commands of its parent until the parent closes the pipe or is gone."""
    reader = asyncio.StreamReader(limit=_LINE_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        async for raw in reader:
            yield json.loads(raw)
    finally:
        transport.close()


async def until_orphaned(then: Callable[[], None]) -> None:
    """In a child: calls `then` once the parent has closed our stdin or is gone."""
    async for _ in stdin_lines():
        continue
    then()


def say(event: str, **values: object) -> None:
    """In a child: one JSON line for its parent."""
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()
