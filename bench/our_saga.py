"""Our saga as a contestant: a coordinator and the agents as processes, real NATS and PostgreSQL.

A saga: a proposal of 1 KB, three votes, approval by a rule, one step that is carried out: six
durable steps, with inbox, outbox, hash chain and trace. `--gated` asks two assessors besides, and
for the finish after them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from bench.peers.rounds import answer_rounds, measured
from optiinfra.coordinator.process import Coordinator, CoordinatorPorts
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.loop import run, settle_heap
from optiinfra.runtime.stores import jitter, new_id, now
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.embedded.servers import Addresses, EmbeddedServers
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.redis import RegistryCache
from tests.factories import gate_answer, recommendation, replacing, rollout, step_result, vote

RULES = Rules(
    approvals=(ApprovalRule(name="all", max_risk=Risk.LOW),),
    max_moving=1_000_000,
    movers_per_hour=None,
)
HEARS = ("vote.requested", "execution.requested", "gate.requested", "change.completed")
TRACE = "00-{}-{}-01"


def proposal(*, gated: bool) -> Recommendation:
    """A proposal of 1 KB, on a target of its own."""
    name = new_id()
    plain = recommendation(
        name, deployment=f"d-{name}", rollout=rollout(1.0), risk_reasons=("x" * 190,)
    )
    at = plain.proposed_at + timedelta(days=9_999)
    return plain if gated else replacing(plain, plain.rollout, at)


class Agents:
    """Voters, executor and assessors that answer at once, and whoever proposes and waits."""

    def __init__(self, bus: Bus, *, gated: bool) -> None:
        self.publisher = Publisher(bus, "bench", now, new_id)
        self._gated = gated
        self._ended: dict[str, asyncio.Future[None]] = {}
        self.consumer = Consumer(
            bus,
            ConsumerSpec(name="bench", stream=Stream.CHANGES, prefixes=HEARS),
            handle=None,
            handle_batch=self._answer,
            publisher=self.publisher,
            inbox=None,
            clock=now,
            jitter=jitter,
        )

    def proposal(self) -> Recommendation:
        """Another one of the kind that is measured."""
        return proposal(gated=self._gated)

    async def one(self) -> None:
        """One saga, from its proposal to its end."""
        proposed = self.proposal()
        ended = self._ended[proposed.id] = asyncio.get_running_loop().create_future()
        fact = f.RecommendationProposed(recommendation=proposed)
        await self.publisher.publish(_traced(self.publisher.event(fact, tenant="acme")))
        await ended

    async def _answer(self, events: Sequence[Event]) -> Sequence[BaseException | None]:
        said = [
            self.publisher.event(
                fact, tenant="acme", id=derived_id(event.id, index), causation=event.id
            )
            for event in events
            for index, fact in enumerate(self._facts(event.fact))
        ]
        results = await self.publisher.publish_many([_traced(one) for one in said])
        failed = next((one for one in results if isinstance(one, BaseException)), None)
        return [failed] * len(events)

    def _facts(self, fact: f.Fact) -> list[f.Fact]:
        match fact:
            case c.VoteRequested():
                return [vote(fact.change, agent, number=fact.round) for agent in VOTERS]
            case c.ExecutionRequested():
                result = step_result(fact.step, fact.fence)
                return [f.ExecutionStaged(change=fact.change, result=result)]
            case c.GateRequested():
                return [
                    f.GateAnswered(
                        answer=gate_answer(fact.change, who, stage=fact.stage, look=fact.look)
                    )
                    for who in fact.assessors
                ]
            case f.ChangeCompleted(change=change) if change in self._ended:
                self._ended.pop(change).set_result(None)
            case _:
                pass
        return []


def _traced(event: Event) -> Event:
    trace = event.traceparent or TRACE.format(event.id, event.id[:16])
    return event.model_copy(update={"traceparent": trace})


@asynccontextmanager
async def agents(addresses: Addresses, *, gated: bool) -> AsyncIterator[Agents]:
    """Agents on the bus, until the block ends."""
    bus = await Bus.connect(addresses.nats_url, name="bench")
    made = Agents(bus, gated=gated)
    task = asyncio.create_task(made.consumer.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()


def ports_on(bus: Bus, database: Database, cache: RegistryCache, rules: Rules) -> CoordinatorPorts:
    """The ports of a coordinator under fixed rules."""
    return CoordinatorPorts(
        bus=bus,
        publisher=Publisher(bus, "coordinator", now, new_id),
        database=database,
        cache=cache,
        rules=lambda: rules,
        clock=now,
        new_id=new_id,
        jitter=jitter,
    )


async def coordinate(addresses: Addresses) -> None:
    """A coordinator as `optiinfra coordinator` has it, without its settings."""
    bus = await Bus.connect(addresses.nats_url, name="coordinator")
    cache = RegistryCache(addresses.redis_url)
    async with open_database(addresses.postgres_url, connections=8) as database:
        settle_heap()
        await Coordinator(ports_on(bus, database, cache, RULES)).run()


async def prepare(addresses: Addresses) -> None:
    """Tables and streams."""
    await upgrade(addresses.postgres_url)
    bus = await Bus.connect(addresses.nats_url, name="bench")
    await topology.apply(bus)
    await bus.close()


@contextlib.contextmanager
def coordinator(addresses: Addresses) -> Iterator[subprocess.Popen[bytes]]:
    """A coordinator in a process of its own."""
    given = json.dumps(asdict(addresses))
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.our_saga", "--coordinator", given],
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def servers() -> Iterator[Addresses]:
    """Embedded servers in a folder that PostgreSQL's user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        with EmbeddedServers(Path(folder) / "home") as addresses:
            yield addresses


async def _contest(addresses: Addresses, options: argparse.Namespace) -> None:
    async with agents(addresses, gated=options.gated) as made:
        if not options.sagas:
            await answer_rounds(made.one)
            return
        await measured(made.one, 4, 20)
        found = json.loads(await measured(made.one, options.in_flight, options.sagas))
    ordered = sorted(found["latencies"])
    told = {
        "per_s": len(ordered) / found["took_s"],
        "p50_ms": ordered[len(ordered) // 2] * 1e3,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1e3,
    }
    sys.stdout.write(json.dumps(told) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--gated", action="store_true", help="two assessors judge the stage")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--sagas", type=int, default=0, help="0: rounds are read from the input")
    options = parser.parse_args()
    if options.coordinator:
        run(coordinate(Addresses(**json.loads(options.coordinator))))
        return
    with servers() as addresses:
        asyncio.run(prepare(addresses))
        with coordinator(addresses):
            run(_contest(addresses, options))


if __name__ == "__main__":
    main()
