"""The API over a full log on real servers, beside a bare FastAPI answer; and a decision's way."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import httpx
import psutil
from fastapi import FastAPI

from bench.api_load import Run, fill_figures, mixed
from optiinfra.coordinator.runner import Runner
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import Event, decode
from optiinfra.events.feed import Feed
from optiinfra.events.publish import Publisher
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.server import serve
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Market, Provider
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import (
    Placement,
    Recommendation,
    Risk,
    RolloutPlan,
    SpotMigration,
    StagePlan,
)
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.vote import VOTERS, AgentName, Verdict, Vote
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.chain import GENESIS
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.journal import link_of
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.redis import RegistryCache
from optiinfra.storage.testing.servers import reachable_home, running

TENANT = "bench"
EVENTS_A_CHANGE = 20
LOG_COLUMNS = (
    "event_id", "tenant", "chain", "version", "type", "subject", "source", "at", "said_at",
    "correlation", "causation", "body", "prev_hash", "hash",
)  # fmt: skip
HEADERS = {"Content-Type": "application/json"}


def new_id() -> str:
    return uuid4().hex


def now() -> datetime:
    return datetime.now(UTC)


def proposal(number: int) -> Recommendation:
    to = Placement(
        provider=Provider.AWS, instance_type="g5.xlarge", region="us-east-1", market=Market.SPOT
    )
    stages = tuple(StagePlan(share=s, soak_s=0, hold_limit_s=60) for s in (0.1, 0.5, 1.0))
    return Recommendation(
        id=derived_id("bench", number),
        tenant=TENANT,
        deployment=f"chat-{number % 40}",
        proposer=AgentName.COST,
        title=f"Move replica {number} to spot",
        spec=SpotMigration(replicas=(f"chat-{number}",), to=to),
        risk=Risk.HIGH,
        rollout=RolloutPlan(stages=stages),
        rollback_seconds=5.0,
        proposed_at=now() - timedelta(seconds=10_000_000 - number),
    )


def vote(change: str, agent: str, number: int = 1) -> f.VoteCast:
    cast = Vote(
        change=change, agent=agent, round=number, verdict=Verdict.APPROVE,
        reasons=("measured headroom is enough",), cast_at=now(),
    )  # fmt: skip
    return f.VoteCast(vote=cast)


def story(one: Recommendation) -> Iterator[f.Fact]:
    """What the log of a finished change holds, at its usual length."""
    yield f.RecommendationProposed(recommendation=one)
    yield f.ChangeOpened(change=one.id, deployment=one.deployment, rules_version="1")
    for agent in sorted(VOTERS):
        yield vote(one.id, agent)
    for look in range(EVENTS_A_CHANGE - 6):
        yield f.GateClosed(
            change=one.id, stage=look % 3, look=1 + look // 3, verdict="pass", reasons=("within",)
        )
    yield f.ChangeRejected(change=one.id, by="person:ana", reason="bench")


async def fill(database: Database, events: int) -> None:
    """`events` events of finished changes, hash-chained as the coordinator writes them."""
    per_copy = 200
    for first in range(0, events // EVENTS_A_CHANGE, per_copy):
        last = min(first + per_copy, events // EVENTS_A_CHANGE)
        log: list[tuple[object, ...]] = []
        sagas: list[tuple[object, ...]] = []
        recs: list[tuple[object, ...]] = []
        for one in map(proposal, range(first, last)):
            prev, version = GENESIS, 0
            for version, fact in enumerate(story(one), 1):
                said = Event(
                    id=new_id(), source="bench", tenant=TENANT, time=one.proposed_at, fact=fact
                )
                link = link_of(said, one.id, version, prev, one.proposed_at)
                prev = link.hash
                log.append(tuple(getattr(link, name) for name in LOG_COLUMNS))
            saga = Saga(
                change=one.id, version=version, state=ChangeState.REJECTED, recommendation=one
            )
            sagas.append(
                (one.id, TENANT, one.deployment, saga.state.value, version, prev,
                 saga.model_dump_json(), None, one.proposed_at, one.proposed_at)
            )  # fmt: skip
            recs.append(
                (one.id, TENANT, one.deployment, one.proposer.value, one.spec.kind,
                 one.risk.value, one.version_hash(), one.model_dump_json(), one.proposed_at)
            )  # fmt: skip
        await copy(database, log, sagas, recs)
    async with database.connection() as connection:
        await connection.execute("ANALYZE")


async def copy(database: Database, log: Any, sagas: Any, recs: Any) -> None:
    async with database.transaction() as connection:
        await connection.copy_records_to_table("event_log", records=log, columns=LOG_COLUMNS)
        await connection.copy_records_to_table("sagas", records=sagas, columns=(
            "change_id", "tenant", "deployment", "state", "version", "hash", "body",
            "moving_since", "opened_at", "updated_at"))  # fmt: skip
        await connection.copy_records_to_table("recommendations", records=recs, columns=(
            "id", "tenant", "deployment", "proposer", "kind", "risk", "version_hash", "body",
            "proposed_at"))  # fmt: skip


@dataclass(frozen=True)
class Child:
    """A server in a process of its own."""

    url: str
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU time that it has used, s."""
        spent = self.process.cpu_times()
        return spent.user + spent.system


async def offer(client: aiohttp.ClientSession, paths: list[str], rate: float, into: Run) -> None:
    """Open loop: one request each 1/rate s whether or not the last one was answered."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def one(path: str, due: float) -> None:
        async with client.get(path) as answer:
            await answer.read()
        into.failed += answer.status != 200
        into.add(path, loop.time() - due)

    async with asyncio.TaskGroup() as group:
        for number, path in enumerate(paths):
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(one(path, max(due, loop.time() - 0.05)))


async def serve_api(database_url: str, nats_url: str, clickhouse_url: str, *, hello: bool) -> None:
    """A child process: the API, or one route that answers with nothing."""

    def started(url: str) -> None:
        sys.stdout.write(url + "\n")
        sys.stdout.flush()

    bus = await Bus.connect(nats_url, name="bench-api")
    async with open_database(database_url) as database:
        ports = api_ports(
            database,
            bus,
            Publisher(bus, "portal-api", now, new_id),
            metrics=MetricStore(clickhouse_url),
            cache=RegistryCache("memory://"),
        )
        app = create_app(ports)
        if hello:
            app = FastAPI(lifespan=app.router.lifespan_context)
            app.state.ports = ports
            app.add_api_route("/", lambda: {"hello": "world"})
        await serve(app, "127.0.0.1", 0, started=started)


@asynccontextmanager
async def child(*arguments: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.api", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        assert url, "the child did not start"
        yield Child(url, psutil.Process(process.pid))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def reads(serving: Child, bare: Child, token: str, options: argparse.Namespace) -> Any:
    """Rounds of both targets, interleaved."""
    api, hello = Run(), Run()
    changes = options.events // EVENTS_A_CHANGE
    count = int(options.rate * options.round_s)
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(serving.url, headers=headers) as client,
        aiohttp.ClientSession(bare.url) as greeting,
    ):
        await offer(client, mixed(60, changes, EVENTS_A_CHANGE, 0), 50.0, Run())
        await offer(greeting, ["/"] * 60, 50.0, Run())
        api.cpu_s, hello.cpu_s = -serving.cpu_s(), -bare.cpu_s()
        for number in range(options.rounds):
            await offer(
                client, mixed(count, changes, EVENTS_A_CHANGE, number + 1), options.rate, api
            )
            await offer(greeting, ["/"] * count, options.rate, hello)
    api.cpu_s += serving.cpu_s()
    hello.cpu_s += bare.cpu_s()
    return api.summary(), hello.summary()


class Deciding:
    """A coordinator on the stream, and when it had written each event into the log."""

    def __init__(self, database: Database, bus: Bus, publisher: Publisher) -> None:
        self._feed = Feed(bus)
        self.runner = Runner(database, publisher, Rules)
        self.logged: dict[str, asyncio.Future[float]] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        async with aclosing(self._feed.follow(0)) as messages:
            async for message in messages:
                event = decode(message.subject, message.headers, message.body)
                await self.runner.handle([event])
                self.logged.setdefault(event.id, loop.create_future()).set_result(loop.time())


async def decisions(database: Database, bus: Bus, url: str, token: str, count: int) -> list[float]:
    """From the POST of an approval to its event in the log, s."""
    publisher = Publisher(bus, "bench", now, new_id)
    deciding, loop = Deciding(database, bus, publisher), asyncio.get_running_loop()
    working = asyncio.create_task(deciding.run())
    headers = {"Authorization": f"Bearer {token}"}
    took: list[float] = []
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
            for number in range(count):
                one = proposal(10_000_000 + number).model_copy(
                    update={"deployment": f"decided-{number}"}
                )
                await opened(deciding.runner, publisher, one)
                began = loop.time()
                path = f"/api/v1/recommendations/{one.id}/approve"
                match = {"If-Match": f'"{one.version_hash()}"'}
                answer = await client.post(path, json={}, headers=match)
                assert answer.status_code == 202, answer.text
                name = answer.json()["event_id"]
                async with asyncio.timeout(20):
                    written = deciding.logged.setdefault(name, loop.create_future())
                    took.append(await written - began)
    finally:
        working.cancel()
        await asyncio.wait({working})
    return took


async def opened(runner: Runner, publisher: Publisher, one: Recommendation) -> None:
    said: list[f.Fact] = [
        f.RecommendationProposed(recommendation=one),
        *(vote(one.id, a) for a in VOTERS),
    ]
    events = [publisher.event(fact, tenant=TENANT) for fact in said]
    assert await runner.handle(events) == [None] * len(events)


async def bench(options: argparse.Namespace) -> dict[str, Any]:
    with reachable_home() as home:
        postgres, nats = PostgresServer(home / "postgres"), NatsServer(home / "nats")
        with running(postgres) as database_url, running(nats) as nats_url:
            await upgrade(database_url)
            bus = await Bus.connect(nats_url, name="bench")
            try:
                await topology.apply(bus)
                metrics_url = f"chdb://{home / 'clickhouse'}"
                async with open_database(database_url) as database:
                    await fill_figures(database, metrics_url, TENANT)
                    urls = (database_url, nats_url, metrics_url)
                    return await measured(database, bus, urls, options)
            finally:
                await bus.close()


async def measured(
    database: Database, bus: Bus, urls: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    began = time.perf_counter()
    await fill(database, options.events)
    sys.stderr.write(f"filled {options.events} events in {time.perf_counter() - began:.1f} s\n")
    access = AccessTokens(database)
    token = await access.issue(TENANT, "ana", Role.ADMIN, lasts_s=3_600)
    before = os.getloadavg()[0]
    async with child("--serve", *urls) as serving, child("--hello", *urls) as bare:
        api, hello = await reads(serving, bare, token, options)
        took = await decisions(database, bus, serving.url, token, options.decisions)
    took.sort()
    return {
        "bench": "api",
        "events": options.events,
        "rate_per_s": options.rate,
        "reads": api,
        "hello": hello,
        "p50_ratio": round(api["p50_ms"] / hello["p50_ms"], 2),
        "p95_ratio": round(api["p95_ms"] / hello["p95_ms"], 2),
        "decision_to_log_ms": {
            "p50": round(statistics.median(took) * 1e3, 1),
            "p95": round(took[int(len(took) * 0.95)] * 1e3, 1),
        },
        "load_1min": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "cpus": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="in the log (1000000 is full)")
    parser.add_argument("--rate", type=float, default=100.0, help="requests/s offered")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-s", type=float, default=5.0)
    parser.add_argument("--decisions", type=int, default=20)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--hello", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve or options.hello:
        urls = options.serve or options.hello
        asyncio.run(serve_api(*urls, hello=bool(options.hello)))
        return
    sys.stdout.write(json.dumps(asyncio.run(bench(options))) + "\n")


if __name__ == "__main__":
    main()
