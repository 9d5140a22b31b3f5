"""Runs one agent on the bus: registers it, keeps its heart beating, hands events to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol, runtime_checkable

import structlog

from optiinfra.agents.base.agent import Agent, Clock, Say
from optiinfra.events import facts as f
from optiinfra.events.bus import Bus
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.consume import Consumer, ConsumerSpec, Inbox
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.schemas.ids import NewId, derived_id

log = structlog.get_logger()


@runtime_checkable
class HearsSamples(Protocol):
    """An agent that also scores tapped answers, in batches."""

    async def samples_handler(self, events: Sequence[Event]) -> Sequence[f.Fact]: ...


@runtime_checkable
class HoldsStudies(Protocol):
    """An agent that also tries things out, for as long as that takes."""

    @property
    def study_every_s(self) -> float: ...

    async def study(self) -> Sequence[f.Fact]:
        """One round: proposals that follow from what was tried."""
        ...


class Proof(Protocol):
    """Where the coordinator's commands are written down."""

    async def require(self, event: Event) -> None:
        """Raises `Rejected` for a command that the coordinator did not give."""
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """Which instance this is."""

    tenant: str
    instance: str
    version: str


@dataclass(frozen=True, slots=True)
class Ports:
    """What the host needs of the outside."""

    bus: Bus
    publisher: Publisher
    inbox: Inbox
    proof: Proof
    clock: Clock
    new_id: NewId
    jitter: Callable[[], float]


@dataclass(slots=True)
class Work:
    """What the heartbeat tells."""

    handled: int = 0
    failed: int = 0
    busy_with: list[str] = field(default_factory=list)


class AgentHost:
    """One agent instance; `run` goes on until it is cancelled.

    A failing round of sensing is logged and tried again at the next tick; a failing handler is
    the consumer's matter (retry, then dead letter).
    """

    def __init__(
        self,
        agent: Agent,
        identity: Identity,
        ports: Ports,
        *,
        heartbeat_s: float = 15.0,
        ack_wait_s: float = 30.0,
    ) -> None:
        self._agent = agent
        self._identity = identity
        self._ports = ports
        self._heartbeat_s = heartbeat_s
        self._ack_wait_s = ack_wait_s
        self._work = Work()

    async def run(self) -> None:
        await self._register()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(), name=f"{self._agent.name}-heartbeat")
            group.create_task(self._sense(), name=f"{self._agent.name}-sense")
            if isinstance(self._agent, HoldsStudies):
                group.create_task(self._study(self._agent), name=f"{self._agent.name}-study")
            for consumer in self._consumers():
                group.create_task(consumer.run(), name=consumer.spec.name)

    def _consumers(self) -> list[Consumer]:
        name = self._agent.name.value
        made = []
        if self._agent.hears:
            spec = ConsumerSpec(
                name=name,
                stream=Stream.CHANGES,
                prefixes=self._agent.hears,
                ack_wait_s=self._ack_wait_s,
                heartbeat_s=self._ack_wait_s / 3,
            )
            made.append(self._consumer(spec, handle=self._handle))
        if isinstance(self._agent, HearsSamples):
            spec = ConsumerSpec(
                name=f"{name}-samples", stream=Stream.SAMPLES, prefixes=("sample.answer",)
            )
            made.append(self._consumer(spec, handle_batch=self._handle_samples))
        return made

    def _consumer(
        self,
        spec: ConsumerSpec,
        *,
        handle: Callable[[Event], Awaitable[None]] | None = None,
        handle_batch: Callable[[Sequence[Event]], Awaitable[Sequence[BaseException | None]]]
        | None = None,
    ) -> Consumer:
        ports = self._ports
        return Consumer(
            ports.bus,
            spec,
            handle=handle,
            handle_batch=handle_batch,
            publisher=ports.publisher,
            inbox=ports.inbox if handle else None,
            clock=ports.clock,
            jitter=ports.jitter,
        )

    async def _register(self) -> None:
        registered = f.AgentRegistered(
            tenant=self._identity.tenant,
            agent=self._agent.name.value,
            instance=self._identity.instance,
            version=self._identity.version,
            capabilities=self._agent.capabilities,
            at=self._ports.clock(),
        )
        await self._publish(registered, self._ports.new_id(), cause=None)
        log.info("agent.registered", agent=self._agent.name.value)

    async def _beat(self) -> None:
        while True:
            beat = f.AgentHeartbeat(
                tenant=self._identity.tenant,
                agent=self._agent.name.value,
                instance=self._identity.instance,
                version=self._identity.version,
                capabilities=self._agent.capabilities,
                busy_with=self._work.busy_with[-1] if self._work.busy_with else None,
                handled=self._work.handled,
                failed=self._work.failed,
                at=self._ports.clock(),
            )
            try:
                await self._publish(beat, self._ports.new_id(), cause=None)
            except OptiInfraError as failed:
                log.warning("agent.heartbeat_failed", reason=str(failed))
            await asyncio.sleep(self._heartbeat_s)

    async def _sense(self) -> None:
        await self._repeat("sense", self._agent.sense, lambda: self._agent.sense_every_s)

    async def _study(self, agent: HoldsStudies) -> None:
        await self._repeat("study", agent.study, lambda: agent.study_every_s)

    async def _repeat(
        self,
        what: str,
        look: Callable[[], Awaitable[Sequence[f.Fact]]],
        every_s: Callable[[], float],
    ) -> None:
        """One round after the other; one that fails is told and tried again."""
        while True:
            try:
                for fact in await look():
                    await self._publish(fact, self._id_of(fact, None, 0), cause=None)
            except OptiInfraError as failed:
                self._work.failed += 1
                log.warning(
                    "agent.round_failed",
                    agent=self._agent.name.value,
                    round=what,
                    reason=str(failed),
                )
            except Exception:
                self._work.failed += 1
                log.exception("agent.round_crashed", agent=self._agent.name.value, round=what)
            await asyncio.sleep(every_s())

    async def _handle(self, event: Event) -> None:
        self._require_served(event)
        await self._require_proof(event)
        doing = f"{event.fact.kind} {event.correlation or ''}".strip()
        self._work.busy_with.append(doing)
        try:
            facts = await self._agent.handle(event, self._say_for(event))
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._work.failed += 1
            raise
        finally:
            self._work.busy_with.remove(doing)
        for index, fact in enumerate(facts):
            await self._publish(fact, self._id_of(fact, event, index), cause=event)
        self._work.handled += 1

    def _require_served(self, event: Event) -> None:
        if event.tenant != self._identity.tenant:
            raise Rejected(f"tenant {event.tenant!r} is not served here")

    async def _require_proof(self, event: Event) -> None:
        """Nothing is done to the world on the word of the bus alone."""
        fact = event.fact
        if not isinstance(fact, ExecutionRequested | RollbackRequested):
            return
        if fact.executor is self._agent.name:
            await self._ports.proof.require(event)

    async def _handle_samples(self, events: Sequence[Event]) -> Sequence[BaseException | None]:
        assert isinstance(self._agent, HearsSamples)
        facts = await self._agent.samples_handler(events)
        batch = derived_id(*(event.id for event in events))
        made = [
            self._ports.publisher.event(
                fact, tenant=self._identity.tenant, id=derived_id(batch, index)
            )
            for index, fact in enumerate(facts)
        ]
        for result in await self._ports.publisher.publish_many(made):
            if isinstance(result, OptiInfraError):
                raise result
        self._work.handled += len(events)
        return [None] * len(events)

    def _say_for(self, event: Event) -> Say:
        """Numbers what is said, so that two facts of one kind are not taken for a repeat."""
        numbers = count(start=1)

        async def say(fact: f.Fact) -> None:
            await self._publish(fact, self._id_of(fact, event, -next(numbers)), cause=event)

        return say

    async def _publish(self, fact: f.Fact, name: str, *, cause: Event | None) -> None:
        change = f.change_of(fact)
        made = self._ports.publisher.event(
            fact,
            tenant=cause.tenant if cause else self._identity.tenant,
            id=name,
            correlation=change or (cause.correlation if cause else None),
            causation=cause.id if cause else None,
        )
        await self._ports.publisher.publish(made)

    def _id_of(self, fact: f.Fact, cause: Event | None, index: int) -> str:
        """The same fact gets the same id however often it is derived, so repeats are dropped."""
        match fact:
            case f.RecommendationProposed():
                return derived_id("proposed", fact.recommendation.id)
            case f.VoteCast():
                return derived_id("vote", fact.vote.change, fact.vote.agent, fact.vote.round)
            case f.GateAnswered():
                answer = fact.answer
                return derived_id("gate", answer.change, answer.stage, answer.look, answer.assessor)
            case _ if cause is not None:
                return derived_id(cause.id, fact.kind, index)
            case _:
                return self._ports.new_id()
