"""Mechanisms switched off, through wiring: what keeps a promise must be missed when it is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optiinfra.agents.cost.execute import Executor
from optiinfra.agents.cost.job import Job
from optiinfra.coordinator.process import Coordinator
from optiinfra.runtime.stores import new_id
from optiinfra.schemas.execution import Intent
from optiinfra.schemas.rollout import Step
from optiinfra.storage.postgres.executions import ExecutionLog
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


class _Sabotage:
    """Chooses the wired parts by the names of what is switched off."""

    def coordinator(self, without: Sequence[str]) -> type[Coordinator]:
        parts: dict[str, type[Coordinator]] = {
            "relay": WithoutRelay,
            "reconciler": WithoutReconciler,
            "sweep": WithoutSweep,
        }
        return next((parts[name] for name in without if name in parts), Coordinator)

    def intents(self, without: Sequence[str]) -> type[ExecutionLog]:
        return ForgetfulIntents if "intents" in without else CrashingIntents

    def executor(self, without: Sequence[str]) -> type[Executor]:
        return ForgetfulExecutor if "tokens" in without else Executor


SABOTAGE = _Sabotage()
