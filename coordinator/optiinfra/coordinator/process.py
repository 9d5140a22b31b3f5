"""The coordinator as a process: consumers, timers, relay, registry, and recovery at start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from optiinfra.coordinator.announcer import Announcer
from optiinfra.coordinator.outlet import CrashPoint
from optiinfra.coordinator.policy_keeper import PolicyKeeper
from optiinfra.coordinator.provenance import Vouched
from optiinfra.coordinator.recovery import Reconciler, recover
from optiinfra.coordinator.runner import CONSUMER, Runner
from optiinfra.coordinator.timekeeping import (
    relay_outbox,
    relay_timers,
    sweep_agents,
    sweep_timers,
    tidy,
)
from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec, listen
from optiinfra.events.envelope import Event
from optiinfra.events.facts import AgentHeartbeat, AgentRegistered
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.events.topology import kept, message_id
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.ids import NewId
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.journal import require_journal
from optiinfra.storage.postgres.registry import saw
from optiinfra.storage.postgres.vouching import PortalWords
from optiinfra.storage.redis import RegistryCache

log = structlog.get_logger()

HEARS = (
    "recommendation.proposed",
    "vote.cast",
    "approval.granted",
    "approval.denied",
    "recommendation.snoozed",
    "recommendation.woken",
    "execution.started",
    "execution.staged",
    "execution.failed",
    "rollback.completed",
    "gate.answered",
    "quality.assessed",
    "quality.regressed",
    "outcome.recorded",
    "telemetry.gap",
    "agent.registered",
    "control.requested",
    "switch.turned",
)
"""What the coordinator takes in; the rest of the stream it says itself."""


@dataclass(frozen=True, slots=True)
class CoordinatorPorts:
    bus: Bus
    publisher: Publisher
    database: Database
    cache: RegistryCache
    rules: Callable[[], Rules]
    clock: Callable[[], datetime]
    new_id: NewId
    jitter: Callable[[], float]
    policies: PolicyKeeper | None = None
    """Keeps what `rules` gives; without it they are what they are for as long as the process."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the nets are looked after, s."""

    timers_s: float = 0.25
    relay_s: float = 1.0
    agents_s: float = 15.0
    reconcile_s: float = 30.0
    agent_lost_after_s: float = 45.0
    policy_s: float = 1.0
    tidy_s: float = 3_600.0
    keep_s: float = 31 * 86_400.0
    """Longer than the streams keep events: what comes again must still be known."""
    ack_wait_s: float = 30.0
    """After this the broker gives what a coordinator that has died had in hand to another."""


class Coordinator:
    """Runs until cancelled. Any number may run at once; PostgreSQL keeps them in order."""

    def __init__(
        self,
        ports: CoordinatorPorts,
        pace: Pace | None = None,
        *,
        crash_point: CrashPoint = lambda _name: None,
    ) -> None:
        self._ports = ports
        self._pace = pace or Pace()
        self._announcer = Announcer(ports.publisher)
        self._reconciler = Reconciler(
            ports.database,
            self._announcer,
            lambda: kept(ports.bus, Stream.CHANGES),
            lambda sequence: message_id(ports.bus, Stream.CHANGES, sequence),
        )
        self._reload = asyncio.Event()
        self.runner = Runner(
            ports.database,
            self._announcer,
            ports.rules,
            policies=ports.policies,
            heard_until=self._heard_until,
            crash_point=crash_point,
        )
        self._consumers = self._made_consumers()

    async def run(self) -> None:
        """Finishes what was left half done, then takes new work.

        Raises `Unavailable` when the database has no tables or a store stays away.
        """
        await require_journal(self._ports.database)
        await self._refresh_policy()
        await self._recover()
        pace = self._pace
        async with asyncio.TaskGroup() as group:
            for consumer in self._consumers:
                group.create_task(consumer.run(), name=consumer.spec.name)
            group.create_task(self.runner.outlet.run(), name="outlet")
            group.create_task(self._hear_heartbeats(), name="heartbeats")
            group.create_task(self._keep_policy(), name="policy")
            group.create_task(self._reconcile_when_back(), name="reconciler-at-once")
            for name, every_s, work in (
                ("timers", pace.timers_s, self._sweep_timers),
                ("relay", pace.relay_s, self._relay),
                ("agents", pace.agents_s, self._sweep_agents),
                ("reconciler", pace.reconcile_s, self._reconcile),
                ("tidying", pace.tidy_s, self._tidy),
            ):
                group.create_task(_every(name, every_s, work), name=name)

    def reload(self) -> None:
        """Looks at the policy file now instead of within a second."""
        self._reload.set()

    async def _refresh_policy(self) -> None:
        if self._ports.policies is not None:
            await self._ports.policies.refresh(self.runner.outlet.take)

    async def _keep_policy(self) -> None:
        """As `_every`, and at once when `reload` is called."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.policy_s):
                    await self._reload.wait()
            self._reload.clear()
            try:
                await self._refresh_policy()
            except OptiInfraError as failed:
                log.warning("coordinator.work_failed", work="policy", reason=str(failed))

    async def _recover(self) -> None:
        await recover(
            self._ports.database,
            self._announcer,
            self.runner.handle,
            self._reconciler,
            self._heard_until(),
        )

    def _heard_until(self) -> datetime | None:
        return self._consumers[0].heard_until()

    def _made_consumers(self) -> list[Consumer]:
        ports, wait_s = self._ports, self._pace.ack_wait_s
        specs = [
            ConsumerSpec(
                name=name,
                stream=stream,
                prefixes=prefixes,
                ack_wait_s=wait_s,
                heartbeat_s=wait_s / 3,
            )
            for name, stream, prefixes in (
                (CONSUMER, Stream.CHANGES, HEARS),
                (f"{CONSUMER}-timers", Stream.TIMERS, ("timer.fired",)),
            )
        ]
        return [
            Consumer(
                ports.bus,
                spec,
                handle=None,
                handle_batch=Vouched(PortalWords(ports.database), self.runner.handle),
                publisher=ports.publisher,
                inbox=None,
                clock=ports.clock,
                jitter=ports.jitter,
            )
            for spec in specs
        ]

    async def _sweep_timers(self) -> int:
        return await sweep_timers(self._ports.database, self.runner.handle, self._heard_until())

    async def _relay(self) -> int:
        relayed = await relay_outbox(self._ports.database, self._announcer)
        return relayed + await relay_timers(self._ports.database, self._announcer)

    async def _reconcile(self) -> int:
        return await self._reconciler.reconcile()

    async def _reconcile_when_back(self) -> None:
        """A broker that was away may have come back with less than it had."""
        back = asyncio.Event()
        remove = self._ports.bus.on_reconnect(back.set)
        try:
            while True:
                await back.wait()
                back.clear()
                try:
                    await self._reconcile()
                except OptiInfraError as failed:
                    log.warning("coordinator.work_failed", work="reconciler", reason=str(failed))
        finally:
            remove()

    async def _tidy(self) -> int:
        return await tidy(self._ports.database, keep_s=self._pace.keep_s)

    async def _sweep_agents(self) -> int:
        lost = await sweep_agents(
            self._ports.database,
            self.runner.handle,
            lost_after_s=self._pace.agent_lost_after_s,
            new_id=self._ports.new_id,
        )
        return len(lost)

    async def _hear_heartbeats(self) -> None:
        async for event in listen(self._ports.bus, "agent.heartbeat"):
            if isinstance(event.fact, AgentHeartbeat):
                await self._note(event.fact)

    async def _note(self, beat: AgentHeartbeat) -> None:
        """A heartbeat is worth little: what cannot be stored now comes again in seconds."""
        try:
            if not await saw(self._ports.database, beat):
                await self._register_again(beat)
            facts = {"instance": beat.instance, "version": beat.version}
            await self._ports.cache.heartbeat(beat.tenant, beat.agent, at=beat.at, facts=facts)
        except OptiInfraError as failed:
            log.warning("agent.heartbeat_not_kept", agent=beat.agent, reason=str(failed))

    async def _register_again(self, beat: AgentHeartbeat) -> None:
        """An agent that counted as lost, or whose registration was lost, is heard again."""
        fact = AgentRegistered(
            tenant=beat.tenant,
            agent=beat.agent,
            instance=beat.instance,
            version=beat.version,
            capabilities=beat.capabilities,
            at=beat.at,
        )
        event = Event(
            id=self._ports.new_id(),
            source=CONSUMER,
            tenant=beat.tenant,
            time=self._ports.clock(),
            fact=fact,
        )
        await self.runner.handle([event])


async def _every(name: str, seconds: float, work: Callable[[], Awaitable[int]]) -> None:
    """Repeats `work`; a failure is logged and tried again, so that one bad moment ends nothing."""
    while True:
        try:
            await work()
        except OptiInfraError as failed:
            log.warning("coordinator.work_failed", work=name, reason=str(failed))
        await asyncio.sleep(seconds)
