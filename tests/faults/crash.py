"""Named points at which a process kills itself, put around ports by whoever wires them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from optiinfra.agents.actuators.port import Launched, LaunchSpec
from optiinfra.events.acks import Outgoing
from optiinfra.events.envelope import Event, encode
from optiinfra.events.publish import Publisher
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.execution import Intent
from optiinfra.schemas.rollout import Step
from optiinfra.schemas.routing import RouteStatus, RouteTable
from optiinfra.storage.postgres.executions import ExecutionLog
from optiinfra.storage.postgres.inbox import PostgresInbox
from tests.faults.target import Target

COORDINATOR_POINTS = ("written", "committed", "published", "marked")
AGENT_POINTS = (
    "inbox.seen", "inbox.mark.before", "inbox.mark.after", "captured.before", "captured.after",
    "begin.before", "begin.after", "finish.before", "finish.after", "launch.before",
    "launch.after", "put.before", "put.after", "terminate.before", "terminate.after",
    "vote.cast.before", "vote.cast.after", "execution.started.before", "execution.started.after",
    "execution.staged.before", "execution.staged.after", "gate.answered.before",
    "gate.answered.after",
)  # fmt: skip


class Crash:
    """Kills this process (SIGKILL) when `point` is passed for the `nth` time, and stands still
    for a while whenever `stands_at` is."""

    def __init__(
        self, point: str | None = None, nth: int = 1, *, stands_at: str = "", stands_s: float = 0.0
    ) -> None:
        self._point = point
        self._left = nth
        self._stands_at = stands_at
        self._stands_s = stands_s

    def __call__(self, point: str) -> None:
        if point == self._stands_at:
            time.sleep(self._stands_s)
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class CrashingInbox(PostgresInbox):
    crash = Crash()

    async def seen(self, consumer: str, event_id: str) -> bool:
        found = await super().seen(consumer, event_id)
        self.crash("inbox.seen")
        return found

    async def mark(self, consumer: str, event_id: str) -> None:
        self.crash("inbox.mark.before")
        await super().mark(consumer, event_id)
        self.crash("inbox.mark.after")


class CrashingIntents(ExecutionLog):
    crash = Crash()

    async def captured(self, change: str) -> dict[str, Any] | None:
        self.crash("captured.before")
        found = await super().captured(change)
        self.crash("captured.after")
        return found

    async def begin(self, change: str, step: Step, fence: int, captured: dict[str, Any]) -> Intent:
        self.crash("begin.before")
        found = await super().begin(change, step, fence, captured)
        self.crash("begin.after")
        return found

    async def finish(self, change: str, step: Step, result: dict[str, Any]) -> None:
        self.crash("finish.before")
        await super().finish(change, step, result)
        self.crash("finish.after")


class CrashingTarget(Target):
    crash = Crash()
    slow_s = 0.0

    async def launch(self, spec: LaunchSpec) -> Launched:
        self.crash("launch.before")
        self.note_asked(spec.deployment)
        await asyncio.sleep(self.slow_s)
        done = await super().launch(spec)
        self.crash("launch.after")
        return done

    async def put(self, table: RouteTable) -> RouteStatus:
        self.crash("put.before")
        done = await super().put(table)
        self.crash("put.after")
        return done

    async def terminate(self, tenant: str, deployment: str, replica_id: str) -> bool:
        self.crash("terminate.before")
        done = await super().terminate(tenant, deployment, replica_id)
        self.crash("terminate.after")
        return done


class CrashingPublisher(Publisher):
    """Also says each event several times, if it is told so, under names of their own.

    What is said again gets through the broker's window for repeats, as it would after the window.
    """

    crash = Crash()
    times = 1
    numbers = count(1)

    async def publish(self, event: Event) -> int:
        self.crash(f"{event.fact.kind}.before")
        done = await super().publish(event)
        for _ in range(self.times - 1):
            await self._persist(self._repeated(event))
        self.crash(f"{event.fact.kind}.after")
        return done

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        done = await super().publish_many(events)
        if self.times > 1:
            for event in events:
                for _ in range(self.times - 1):
                    await self._persist(self._repeated(event))
        return done

    def _repeated(self, event: Event) -> Outgoing:
        """The message of an event that the broker does not know for a repeat."""
        subject, headers, body = encode(event)
        again = {**headers, "Nats-Msg-Id": f"{event.id}-{next(self.numbers)}"}
        return Outgoing(subject, again, body)
