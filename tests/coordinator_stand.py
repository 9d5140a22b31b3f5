"""A coordinator on a real broker and a real PostgreSQL, with agents that always answer well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from optiinfra.coordinator.policy_keeper import PolicyKeeper
from optiinfra.coordinator.process import Coordinator, CoordinatorPorts, Pace
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.policy_file import WatchedFile, load_policy
from optiinfra.runtime.stores import jitter, new_id, now
from optiinfra.runtime.supervision import cancelled
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.redis import RegistryCache
from tests.factories import gate_answer, step_result, vote

RULES = Rules(
    approvals=(ApprovalRule(name="all", max_risk=Risk.LOW),),
    max_moving=1_000,
    movers_per_hour=1_000,
)
BRISK = Pace(timers_s=0.1, relay_s=0.2, agents_s=0.1, reconcile_s=0.5, agent_lost_after_s=1.0)


@dataclass
class Stand:
    """One bus and one database; coordinators and the cast run until the stand closes."""

    bus: Bus
    database: Database
    nats_url: str
    stack: AsyncExitStack
    asked: list[Event] = field(default_factory=list)
    """Execution commands as the cast heard them, repeats too."""

    @property
    def publisher(self) -> Publisher:
        return Publisher(self.bus, "test", now, new_id)

    async def coordinator(
        self,
        pace: Pace = BRISK,
        *,
        rules: Rules = RULES,
        policy: Path | None = None,
        kind: type[Coordinator] = Coordinator,
    ) -> Coordinator:
        """Starts one more, on a connection of its own; `policy` is a file that it watches."""
        bus = await Bus.connect(self.nats_url, name="coordinator")
        self.stack.push_async_callback(bus.close)
        cache = RegistryCache("memory://")
        self.stack.push_async_callback(cache.aclose)
        policies = None
        if policy is not None:
            file = WatchedFile(policy, load_policy)
            policies = PolicyKeeper("acme", file.first(), file, self.database)
        ports = CoordinatorPorts(
            bus=bus,
            publisher=Publisher(bus, "coordinator", now, new_id),
            database=self.database,
            cache=cache,
            rules=policies.rules if policies else lambda: rules,
            clock=now,
            new_id=new_id,
            jitter=jitter,
            policies=policies,
        )
        made = kind(ports, pace)
        self.runs(made.run)
        return made

    async def cast(self) -> None:
        """Starts the agents: they approve, execute at once, and let every gate pass."""
        consumer = Consumer(
            self.bus,
            ConsumerSpec(
                name="cast",
                stream=Stream.CHANGES,
                prefixes=("vote.requested", "execution.requested", "gate.requested"),
            ),
            handle=None,
            handle_batch=self._answer,
            publisher=self.publisher,
            inbox=None,
            clock=now,
            jitter=jitter,
        )
        self.runs(consumer.run)

    def runs(self, work: Callable[[], object]) -> asyncio.Task[None]:
        """Runs until the stand closes, or until the task that it gives is cancelled."""
        task: asyncio.Task[None] = asyncio.create_task(work())  # type: ignore[arg-type]
        self.stack.push_async_callback(ended, task)
        return task

    async def _answer(self, events: Sequence[Event]) -> Sequence[BaseException | None]:
        said = [fact for event in events for fact in self._facts(event)]
        failed = next((one for one in await self.say(*said) if one is not None), None)
        return [failed] * len(events)

    async def say(self, *facts: f.Fact) -> list[BaseException | None]:
        """Publishes, under the same id when the same fact is said again."""
        publisher = self.publisher
        results = await publisher.publish_many(
            [
                publisher.event(fact, tenant="acme", id=derived_id(fact.model_dump_json()))
                for fact in facts
            ]
        )
        return [one if isinstance(one, BaseException) else None for one in results]

    def _facts(self, event: Event) -> list[f.Fact]:
        match event.fact:
            case c.VoteRequested() as asked:
                return [vote(asked.change, agent, number=asked.round) for agent in VOTERS]
            case c.ExecutionRequested() as asked:
                self.asked.append(event)
                result = step_result(asked.step, asked.fence)
                return [f.ExecutionStaged(change=asked.change, result=result)]
            case c.GateRequested() as asked:
                return [
                    f.GateAnswered(
                        answer=gate_answer(asked.change, who, stage=asked.stage, look=asked.look)
                    )
                    for who in asked.assessors
                ]
            case _:
                return []

    async def propose(self, *proposals: Recommendation) -> None:
        said = await self.say(*(f.RecommendationProposed(recommendation=one) for one in proposals))
        assert not any(said)

    async def fetch(self, query: str, *arguments: object) -> list[dict[str, object]]:
        async with self.database.connection() as connection:
            return [dict(row) for row in await connection.fetch(query, *arguments)]

    async def until(self, query: str, *arguments: object, within_s: float = 30.0) -> None:
        """Until the query gives a row whose first column is true."""
        async with asyncio.timeout(within_s):
            while True:
                rows = await self.fetch(query, *arguments)
                if rows and all(rows[0].values()):
                    return
                await asyncio.sleep(0.02)

    async def until_completed(self, proposals: Sequence[Recommendation], within_s: float) -> None:
        try:
            await self.until(
                "SELECT count(*) = $1 FROM sagas WHERE state = 'completed'",
                len(proposals),
                within_s=within_s,
            )
        except TimeoutError:
            states = await self.fetch("SELECT state, count(*) FROM sagas GROUP BY state")
            raise AssertionError(states) from None


@asynccontextmanager
async def opened(nats_url: str, postgres_url: str) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        bus = await Bus.connect(nats_url, name="stand")
        stack.push_async_callback(bus.close)
        await topology.apply(bus)
        database = await stack.enter_async_context(open_database(postgres_url))
        yield Stand(bus, database, nats_url, stack)


async def ended(task: asyncio.Task[None]) -> None:
    """Ends a role as the product does, also where a driver has lost the first cancellation."""
    await cancelled([task])
    if not task.cancelled() and task.exception() is not None:
        raise AssertionError("a role has failed") from task.exception()
