"""Mechanisms switched off, through wiring: what keeps a promise must be missed when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from optiinfra.agents.base.host import AgentHost
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Job
from optiinfra.coordinator.process import Coordinator, CoordinatorPorts
from optiinfra.events.consume import Consumer
from optiinfra.runtime.stores import new_id
from optiinfra.schemas.execution import Intent
from optiinfra.schemas.rollout import Step
from optiinfra.storage.postgres.executions import ExecutionLog
from optiinfra.storage.postgres.journal import Batch, Journal
from optiinfra.storage.postgres.view import Question
from tests.faults.crash import CrashingIntents


class ForgetfulIntents(ExecutionLog):
    """Knows of no step that was begun: every command looks like the first."""

    async def begin(self, change: str, step: Step, fence: int, captured: dict[str, Any]) -> Intent:
        return Intent(change, step, fence, captured, None, True)

    async def captured(self, change: str) -> dict[str, Any] | None:
        return None


class ForgetfulExecutor(Executor):
    """Names its launches by the moment, not by the change: a second try is another launch."""

    def _job(self, command: Any, step: Step, stop_at: float, captured: Any) -> Job:
        job = super()._job(command, step, stop_at, captured)
        return _Nameless(**{name: getattr(job, name) for name in job.__slots__})


class _Nameless(Job):
    def launch_token(self, index: int, generation: int) -> str:
        return new_id()


class WithoutRelay(Coordinator):
    """What was not published at once is never published."""

    async def _relay(self) -> int:
        return 0

    async def _recover(self) -> None:
        """Nothing is finished at the start."""


class WithoutReconciler(Coordinator):
    """A broker that has lost its tail is believed."""

    async def _reconcile(self) -> int:
        return 0


class WithoutSweep(Coordinator):
    """Timers are left to the broker alone."""

    async def _sweep_timers(self) -> int:
        return 0


class WithoutInbox(Coordinator):
    """What was handled is forgotten at once: whatever comes again counts as new."""

    def __init__(self, ports: CoordinatorPorts, *rest: Any, **more: Any) -> None:
        super().__init__(ports, *rest, **more)
        self.runner._journal = _Forgetful(ports.database)


class _Forgetful(Journal):
    @asynccontextmanager
    async def batch(
        self, tenants: Iterable[str], asked: Question | None = None
    ) -> AsyncIterator[Batch]:
        async with super().batch(tenants, asked) as opened:
            yield opened
            if asked is not None:
                await opened.forget(asked.consumer, asked.events)


class Unlocked(Journal):
    """Coordinators decide beside each other, each without what the other is about to write."""

    @asynccontextmanager
    async def batch(
        self, tenants: Iterable[str], asked: Question | None = None
    ) -> AsyncIterator[Batch]:
        async with super().batch((), asked) as opened:
            yield opened


class WithoutBeats(AgentHost):
    """Says nothing to the broker while it works."""

    def _consumers(self) -> list[Consumer]:
        made = super()._consumers()
        for consumer in made:
            consumer._beat = _silence  # type: ignore[method-assign]
        return made


async def _silence() -> None:
    await asyncio.Event().wait()


class _Sabotage:
    """Chooses the wired parts by the names of what is switched off."""

    def coordinator(self, without: Sequence[str]) -> type[Coordinator]:
        parts: dict[str, type[Coordinator]] = {
            "relay": WithoutRelay,
            "reconciler": WithoutReconciler,
            "sweep": WithoutSweep,
            "inbox": WithoutInbox,
        }
        return next((parts[name] for name in without if name in parts), Coordinator)

    def intents(self, without: Sequence[str]) -> type[ExecutionLog]:
        return ForgetfulIntents if "intents" in without else CrashingIntents

    def host(self, without: Sequence[str]) -> type[AgentHost]:
        return WithoutBeats if "beats" in without else AgentHost

    def executor(self, without: Sequence[str]) -> type[Executor]:
        return ForgetfulExecutor if "tokens" in without else Executor


SABOTAGE = _Sabotage()
