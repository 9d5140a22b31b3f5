"""Sagas a second and latency from proposed to completed, on the real bus and PostgreSQL.

Every saga: a proposal, three votes in parallel, approval by policy, one stage (executed by a no-op,
read by two assessors), a finishing step. All durable, all through JetStream. Beside it, in the same
run, the limit: as many transactions of one row as a saga has, on as many connections.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import psutil

from optiinfra.coordinator.process import Coordinator, CoordinatorPorts, Pace
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.consume import Consumer, ConsumerSpec
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.runtime.stores import jitter, new_id, now
from optiinfra.schemas.approval_rules import ApprovalRule
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.embedded.servers import Addresses, EmbeddedServers
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.redis import RegistryCache
from tests.factories import gate_answer, recommendation, rollout, step_result, vote

RULES = Rules(
    name="bench",
    approvals=(ApprovalRule(name="all", max_risk=Risk.LOW),),
    max_moving=1_000_000,
    movers_per_hour=1_000_000,
)
PADDING = "x" * 512


class Driver:
    """Proposes, answers, and times each saga."""

    def __init__(self, bus: Bus, publisher: Publisher) -> None:
        self._bus = bus
        self._publisher = publisher
        self._ended: dict[str, asyncio.Future[float]] = {}
        self._decided: dict[str, float] = {}
        self.decision_s: list[float] = []

    def consumers(self) -> list[Consumer]:
        answers: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("voters", ("vote.requested",)),
            ("executor", ("execution.requested",)),
            ("assessors", ("gate.requested",)),
            ("watcher", ("change.approved", "change.completed")),
        )
        return [self._consumer(name, prefixes) for name, prefixes in answers]

    def _consumer(self, name: str, prefixes: tuple[str, ...]) -> Consumer:
        return Consumer(
            self._bus,
            ConsumerSpec(name=f"bench-{name}", stream=Stream.CHANGES, prefixes=prefixes),
            handle=None,
            handle_batch=self._answer,
            publisher=self._publisher,
            inbox=None,
            clock=now,
            jitter=jitter,
        )

    async def _answer(self, events: Sequence[Event]) -> Sequence[BaseException | None]:
        said = [fact for event in events for fact in self._facts(event.fact)]
        await self._publisher.publish_many(
            [
                self._publisher.event(fact, tenant="acme", id=derived_id(fact.model_dump_json()))
                for fact in said
            ]
        )
        return [None] * len(events)

    def _facts(self, fact: f.Fact) -> list[f.Fact]:
        match fact:
            case c.VoteRequested():
                return [vote(fact.change, agent) for agent in VOTERS]
            case c.ExecutionRequested():
                return [
                    f.ExecutionStaged(change=fact.change, result=step_result(fact.step, fact.fence))
                ]
            case c.GateRequested():
                return [
                    f.GateAnswered(
                        answer=gate_answer(fact.change, who, stage=fact.stage, look=fact.look)
                    )
                    for who in fact.assessors
                ]
            case f.ChangeApproved():
                self._decided[fact.change] = time.perf_counter()
            case f.ChangeCompleted():
                self._ended[fact.change].set_result(time.perf_counter())
            case _:
                pass
        return []

    async def one(self) -> float:
        name = new_id()
        proposal = recommendation(
            name,
            deployment=f"d-{name}",
            rollout=rollout(1.0),
            risk_reasons=(PADDING,),
        )
        ended = asyncio.get_running_loop().create_future()
        self._ended[proposal.id] = ended
        began = time.perf_counter()
        fact = f.RecommendationProposed(recommendation=proposal)
        await self._publisher.publish(self._publisher.event(fact, tenant="acme"))
        took = float(await ended) - began
        self.decision_s.append(self._decided.pop(proposal.id) - began)
        return took


async def _measure(driver: Driver, in_flight: int, count: int) -> dict[str, float]:
    turns = asyncio.Semaphore(in_flight)
    latencies: list[float] = []
    driver.decision_s.clear()

    async def one() -> None:
        async with turns:
            latencies.append(await driver.one())

    cpu, began = _cpu_s(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())
    took = time.perf_counter() - began
    return {
        "per_s": count / took,
        "p50_ms": _quantile(latencies, 0.50) * 1e3,
        "p99_ms": _quantile(latencies, 0.99) * 1e3,
        "decision_p50_ms": _quantile(driver.decision_s, 0.50) * 1e3,
        "decision_p95_ms": _quantile(driver.decision_s, 0.95) * 1e3,
        "cpu_ms": (_cpu_s() - cpu) / count * 1e3,
    }


async def _transactions(database: Database, connections: int, count: int) -> float:
    """Durable one-row transactions a second: the floor under any saga on this disk."""
    turns = asyncio.Semaphore(connections)

    async def one(number: int) -> None:
        async with turns, database.connection() as connection:
            await connection.execute(
                "INSERT INTO inbox (consumer, event_id) VALUES ('bench', $1)", str(number)
            )

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    rate = count / (time.perf_counter() - began)
    async with database.connection() as connection:
        await connection.execute("DELETE FROM inbox WHERE consumer = 'bench'")
    return rate


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _cpu_s() -> float:
    """CPU seconds of this process and the servers under it."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


async def _with_coordinator(
    addresses: Addresses, work: Callable[[Driver, Database], Awaitable[None]]
) -> None:
    await upgrade(addresses.postgres_url)
    bus = await Bus.connect(addresses.nats_url, name="bench")
    await topology.apply(bus)
    cache = RegistryCache(addresses.redis_url)
    async with open_database(addresses.postgres_url, connections=8) as database:
        ports = CoordinatorPorts(
            bus=bus,
            publisher=Publisher(bus, "coordinator", now, new_id),
            database=database,
            cache=cache,
            rules=lambda: RULES,
            clock=now,
            new_id=new_id,
            jitter=jitter,
        )
        driver = Driver(bus, Publisher(bus, "bench", now, new_id))
        tasks = [asyncio.create_task(Coordinator(ports, Pace()).run())]
        tasks += [asyncio.create_task(consumer.run()) for consumer in driver.consumers()]
        try:
            await work(driver, database)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    await cache.aclose()
    await bus.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", default="1,16,64")
    parser.add_argument("--sagas", type=int, default=150, help="at each number in flight")
    options = parser.parse_args()
    levels = [int(level) for level in options.in_flight.split(",")]
    results: dict[str, dict[str, float]] = {}
    floors: dict[str, float] = {}

    async def work(driver: Driver, database: Database) -> None:
        await _measure(driver, 4, 8)
        for level in levels:
            floors[str(level)] = await _transactions(database, min(level, 8), 300)
            count = max(20, options.sagas // (5 if level == 1 else 1))
            results[str(level)] = await _measure(driver, level, count)

    with tempfile.TemporaryDirectory() as folder, EmbeddedServers(Path(folder) / "home") as at:
        asyncio.run(_with_coordinator(at, work))
    print(f"{'in flight':>9} {'sagas/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>7} {'tx/s':>7}")
    for level, row in results.items():
        print(
            f"{level:>9} {row['per_s']:8.1f} {row['p50_ms']:8.1f} {row['p99_ms']:8.1f}"
            f" {row['cpu_ms']:7.2f} {floors[level]:7.0f}"
        )
    summary = {
        "bench": "saga",
        "ours": results,
        "one_row_transactions_per_s": floors,
        "sagas_per_transaction": {
            level: row["per_s"] / floors[level] for level, row in results.items()
        },
        "load": os.getloadavg()[0],
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
