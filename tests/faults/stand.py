"""A broker, a database, a target that counts, and the roles as processes between them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.publish import SCHEDULES, Publisher
from optiinfra.events.replay import replay
from optiinfra.events.subjects import Stream
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.errors import OptiInfraError, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.database import Database, open_database
from tests.cost_stand import placement
from tests.factories import recommendation, replacing, rollout
from tests.faults.child import Config
from tests.faults.oracle import broken_promises
from tests.faults.processes import Program, Supervised, supervised
from tests.faults.target import Target

SETTLE_S = 90.0
_ENDED = "SELECT count(*) FROM sagas WHERE state IN ('completed', 'rolled_back', 'vetoed')"


@dataclass
class Stand:
    """What a story has at hand; `chance` follows from the seed alone."""

    nats: NatsServer
    database: Database
    postgres_url: str
    target: Target
    folder: Path
    bus: Bus
    chance: random.Random
    proposed: list[Recommendation] = field(default_factory=list)

    def config(self, role: str, **changes: Any) -> Config:
        values: dict[str, Any] = {
            "role": role,
            "nats_url": self.nats.url,
            "postgres_url": self.postgres_url,
            "target": str(self.folder / "target.sqlite"),
            "deployments": tuple(f"d-{n}" for n in range(256)),
        }
        return Config(**{**values, **changes})

    def role(
        self,
        role: str,
        crashes: Sequence[tuple[str, int]] = (),
        *,
        restarts: bool = True,
        **changes: Any,
    ) -> Supervised:
        return Supervised(
            log=self._log(role),
            config=self.config(role, **changes),
            crashes=list(crashes),
            restarts=restarts,
        )

    def module(self, name: str, *arguments: str) -> Program:
        """A module of the suite, as a process."""
        return Program(log=self._log(name), arguments=("-m", name, *arguments))

    def product(self, verb: str, **settings: str) -> Program:
        """A role as an operator starts it: `optiinfra VERB`."""
        given = {
            "HOME": str(self.folder / "home"),
            "NATS_URL": self.nats.url,
            "POSTGRES_URL": self.postgres_url,
            "CLICKHOUSE_URL": f"chdb://{self.folder}/none",
            "QDRANT_URL": f"local://{self.folder}/none",
            "REDIS_URL": "memory://",
        }
        arguments = ("-m", "optiinfra.runtime.cli", verb)
        return Program(log=self._log(verb), arguments=arguments, settings=given | settings)

    def _log(self, name: str) -> Path:
        path = self.folder / f"{name}-{len(list(self.folder.glob('*.log')))}.log"
        path.touch()
        return path

    def prepared(
        self, count: int, *, soak_s: float = 0.1, lost: bool = False
    ) -> list[Recommendation]:
        """Moves of as many deployments of their own, two stages each; not said yet.

        Of `lost` machines they are replacements, which one command carries out wholly.
        """
        first = len(self.proposed)
        made = [proposal(first + n, self.chance.getrandbits(64), soak_s) for n in range(count)]
        if lost:
            at = now() + timedelta(hours=9)
            made = [replacing(one, rollout(1.0), at) for one in made]
        for one in made:
            self.target.add(one.deployment)
        self.proposed += made
        return made

    async def propose(
        self, count: int, *, soak_s: float = 0.1, lost: bool = False
    ) -> list[Recommendation]:
        """As `prepared`, and said until the broker has acknowledged them."""
        made = self.prepared(count, soak_s=soak_s, lost=lost)
        await self.say(made)
        return made

    async def say(self, made: Sequence[Recommendation]) -> None:
        """Proposes until the broker has acknowledged every one."""
        facts = [f.RecommendationProposed(recommendation=one) for one in made]
        publisher = Publisher(self.bus, "cost", now, new_id)
        left = [
            publisher.event(fact, tenant="acme", id=derived_id("p", fact.recommendation.id))
            for fact in facts
        ]
        while left:
            results = await publisher.publish_many(left)
            left = [e for e, r in zip(left, results, strict=True) if isinstance(r, OptiInfraError)]

    async def keep_busy(
        self, done: Callable[[], bool], within_s: float = 150.0, *, lost: bool = False
    ) -> None:
        """Proposes whenever little is left to do, also of what is not yet heard, until `done`.

        One of each kind; with `lost` replacements of lost machines alone.
        """
        try:
            async with asyncio.timeout(within_s):
                while not done():
                    if len(self.proposed) - await self.count(_ENDED) < 2:
                        await self.propose(1, lost=lost)
                        await self.propose(1, lost=True)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(await self._told("it was not done in time")) from None

    async def count(self, query: str, *arguments: object) -> int:
        """The number that a query gives; -1 while the database is away."""
        try:
            async with self.database.connection() as connection:
                return int(await connection.fetchval(query, *arguments))
        except Unavailable:
            return -1

    async def until(self, query: str, least: int, within_s: float = SETTLE_S) -> None:
        """Until the query's number is at least `least`."""
        async with asyncio.timeout(within_s):
            while await self.count(query) < least:  # noqa: ASYNC110 - a database says when
                await asyncio.sleep(0.05)

    async def staged(self, least: int) -> None:
        await self.until(
            "SELECT count(*) FROM event_log WHERE type LIKE 'optiinfra.execution.staged.%'", least
        )

    async def settled(self, within_s: float = SETTLE_S) -> None:
        """Until every change has ended, all was said, and no promise is broken."""
        try:
            await self.until(
                "SELECT count(*) FROM sagas WHERE state IN ('completed', 'rolled_back', 'vetoed',"
                " 'failed', 'expired', 'rejected', 'superseded', 'cancelled')",
                len(self.proposed),
                within_s,
            )
            await self.until("SELECT 1 - count(*) FROM outbox WHERE sent_seq IS NULL", 1, 15)
        except TimeoutError:
            raise AssertionError(await self._told("not settled")) from None
        broken = await self.broken()
        assert not broken, await self._told("\n".join(broken))

    async def broken(self) -> list[str]:
        """What the oracle says of all that was proposed."""
        return await broken_promises(self.database, self.target, self.proposed)

    async def acknowledged(self) -> set[str]:
        """Ids of what the outbox has said, as far as the broker has acknowledged it."""
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                "SELECT event_id FROM outbox WHERE sent_seq IS NOT NULL AND stream = 'CHANGES'"
            )
        return {row["event_id"] for row in rows}

    async def said(self) -> set[str]:
        """Ids of what the stream of changes holds."""
        return {event.id async for _, event in replay(self.bus, stream=Stream.CHANGES)}

    async def until_scheduled(self, timer: str) -> None:
        """Until the broker holds the one timer of this name."""
        async with self.database.connection() as connection:
            event = await connection.fetchval("SELECT event_id FROM timers WHERE name = $1", timer)
        async with asyncio.timeout(SETTLE_S):
            while True:
                info = await self.bus.js.stream_info("TIMERS", f"{SCHEDULES}.>")
                if any(subject.endswith(event) for subject in info.state.subjects or ()):
                    return
                await asyncio.sleep(0.02)

    async def all_completed(self) -> None:
        """Settled, and nothing had to be undone."""
        await self.settled()
        done = await self.count("SELECT count(*) FROM sagas WHERE state = 'completed'")
        assert done == len(self.proposed), await self._told("not completed")

    async def dead_letters(self) -> int:
        return (await self.bus.js.stream_info("DLQ")).state.messages

    async def until_dead_letters(self, least: int) -> None:
        async with asyncio.timeout(30):
            while await self.dead_letters() < least:  # noqa: ASYNC110 - the broker says when
                await asyncio.sleep(0.1)

    async def _told(self, what: str) -> str:
        async with self.database.connection() as connection:
            rows = await connection.fetch(
                "SELECT state, body::jsonb ->> 'end_reason' AS why, count(*) AS n FROM sagas"
                " GROUP BY 1, 2"
            )
        states = "\n".join(f"{row['n']} {row['state']}: {row['why']}" for row in rows)
        logs = "\n".join(f"{p.name}:\n{p.read_text()[-1500:]}" for p in self.folder.glob("*.log"))
        return f"{what}\n{states}\n{logs}"


def proposal(number: int, salt: int, soak_s: float) -> Recommendation:
    plain = recommendation(
        f"{number}-{salt}", deployment=f"d-{number}", rollout=rollout(0.5, 1.0, soak_s=soak_s)
    )
    spec = plain.spec.model_copy(update={"replicas": (f"d-{number}-1",), "to": placement()})
    return plain.model_copy(update={"spec": spec, "proposed_at": now()})


@asynccontextmanager
async def opened(
    nats: NatsServer,
    postgres_url: str,
    folder: Path,
    seed: int,
    limits: topology.TopologyLimits | None = None,
) -> AsyncIterator[Stand]:
    async with AsyncExitStack() as stack:
        bus = await Bus.connect(nats.url, name="stand")
        stack.push_async_callback(bus.close)
        await topology.apply(bus, limits=limits)
        database = await stack.enter_async_context(open_database(postgres_url))
        target = Target(folder / "target.sqlite")
        chance = random.Random(seed)
        yield Stand(nats, database, postgres_url, target, folder, bus, chance)


@asynccontextmanager
async def playing(*roles: Program) -> AsyncIterator[None]:
    async with supervised(roles):
        yield
