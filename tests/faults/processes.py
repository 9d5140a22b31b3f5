"""Child processes of the fault suite, kept alive as a supervisor would."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import httpx

from optiinfra.demo.children import child_environment
from tests.faults.child import Config
from tests.faults.forks import forked

RESTART_S = 0.2


class Life(Protocol):
    """A process from its start to its end."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    def kill(self) -> None: ...
    async def wait(self) -> int: ...


@dataclass(kw_only=True)
class Program:
    """A Python program: whenever its process ends, it is started again."""

    log: Path
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of its environment, without their `OPTIINFRA_`."""
    restarts: bool = True
    exits: list[int] = field(default_factory=list)
    process: Life | None = None
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def ended(self) -> None:
        """Until its process has ended for the first time."""
        async with asyncio.timeout(60):
            await self._over.wait()

    async def run(self) -> None:
        """Until cancelled; then it is killed."""
        try:
            while True:
                self.process = await self._start()
                self.exits.append(await self.process.wait())
                self._over.set()
                if not self.restarts:
                    return
                await asyncio.sleep(RESTART_S)
        finally:
            if self.process is not None and self.process.returncode is None:
                self.process.kill()
                await self.process.wait()

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    async def _start(self) -> Life:
        told = {f"OPTIINFRA_{name}": value for name, value in self.settings.items()}
        with self.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, *self.arguments,
                stdout=log, stderr=log, env={**child_environment(), **told},
            )  # fmt: skip


@dataclass(kw_only=True)
class Supervised(Program):
    """One role of the suite; each of its lives takes the next of its crashes."""

    config: Config
    crashes: list[tuple[str, int]] = field(default_factory=list)
    """Where it kills itself: one of them a life; after the last it lives on."""

    async def _start(self) -> Life:
        crash = self.crashes.pop(0) if self.crashes else None
        return forked(replace(self.config, crash=crash).text(), self.log)


@asynccontextmanager
async def supervised(roles: Sequence[Program]) -> AsyncIterator[None]:
    """Runs all of them for the block."""
    tasks = [asyncio.create_task(role.run()) for role in roles]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_up(url: str) -> None:
    """Until a program answers that it is in health."""
    async with asyncio.timeout(30), httpx.AsyncClient(trust_env=False) as http:
        while True:
            try:
                if (await http.get(f"{url}/healthz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
