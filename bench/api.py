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
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
from fastapi import FastAPI

from bench.api_load import Asked, Run, mixed
from bench.api_log import EVENTS_A_CHANGE, TENANT, fill_log, new_id, now, proposal, vote
from bench.fleet import declare_fleet, deployments, fill_metrics
from optiinfra.coordinator.runner import Runner
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import decode
from optiinfra.events.feed import Feed
from optiinfra.events.publish import Publisher
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.server import serve
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.redis import RegistryCache
from optiinfra.storage.testing.servers import reachable_home, running


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
    asked = Asked(options.events, EVENTS_A_CHANGE, deployments(options.replicas), options.days)
    count = int(options.rate * options.round_s)
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(serving.url, headers=headers) as client,
        aiohttp.ClientSession(bare.url) as greeting,
    ):
        await offer(client, mixed(60, asked, 0), 50.0, Run())
        await offer(greeting, ["/"] * 60, 50.0, Run())
        api.cpu_s, hello.cpu_s = -serving.cpu_s(), -bare.cpu_s()
        for number in range(options.rounds):
            await offer(client, mixed(count, asked, number + 1), options.rate, api)
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
                one = proposal(number, f"decided-{new_id()}").model_copy(update={"id": new_id()})
                await opened(deciding.runner, publisher, one)
                began = loop.time()
                path = f"/api/v1/recommendations/{one.id}/approve"
                match = {"If-Match": f'"{one.version_hash}"'}
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


@contextmanager
def home_at(folder: Path | None) -> Iterator[Path]:
    """A folder that is kept, or one of its own."""
    if folder is None:
        with reachable_home() as home:
            yield home
    else:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        yield folder


async def bench(options: argparse.Namespace) -> dict[str, Any]:
    with home_at(options.home) as home, reachable_home() as fresh:
        postgres, nats = PostgresServer(home / "postgres"), NatsServer(fresh / "nats")
        with running(postgres) as database_url, running(nats) as nats_url:
            await upgrade(database_url)
            bus = await Bus.connect(nats_url, name="bench")
            try:
                await topology.apply(bus)
                async with open_database(database_url) as database:
                    filled = await fill(database, home, options)
                    urls = (database_url, nats_url, f"chdb://{home / 'clickhouse'}")
                    return filled | await measured(database, bus, urls, options)
            finally:
                await bus.close()


async def fill(database: Database, home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What is missing of the log and of the metrics."""
    began = time.perf_counter()
    await declare_fleet(database, TENANT, options.replicas)
    rows = await fill_metrics(home / "clickhouse", TENANT, options.replicas, options.days)
    metrics_s = time.perf_counter() - began
    async with database.connection() as connection:
        if not await connection.fetchval("SELECT EXISTS (SELECT 1 FROM outcomes)"):
            await fill_log(database, options.events, options.replicas)
        events = await connection.fetchval("SELECT count(*) FROM event_log")
        recommendations = await connection.fetchval("SELECT count(*) FROM recommendations")
    return {
        "bench": "api", "events": events, "recommendations": recommendations,
        "replicas": options.replicas, "days": options.days, "metric_rows": rows,
        "fill_s": {
            "metrics": round(metrics_s, 1),
            "log": round(time.perf_counter() - began - metrics_s, 1),
        },
    }  # fmt: skip


async def measured(
    database: Database, bus: Bus, urls: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    access = AccessTokens(database)
    token = await access.issue(TENANT, "ana", Role.ADMIN, lasts_s=3_600)
    before = os.getloadavg()[0]
    async with child("--serve", *urls) as serving, child("--hello", *urls) as bare:
        api, hello = await reads(serving, bare, token, options)
        took = await decisions(database, bus, serving.url, token, options.decisions)
        rss = serving.process.memory_info().rss
    took.sort()
    return {
        "rate_per_s": options.rate,
        "reads": api,
        "hello": hello,
        "p50_ratio": round(api["p50_ms"] / hello["p50_ms"], 2),
        "p95_ratio": round(api["p95_ms"] / hello["p95_ms"], 2),
        "decision_to_log_ms": {
            "p50": round(statistics.median(took) * 1e3, 1),
            "p95": round(took[int(len(took) * 0.95)] * 1e3, 1),
        },
        "rss_mib": rss >> 20,
        "load_1min": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "cpus": os.cpu_count(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="in the log (1000000 is full)")
    parser.add_argument("--replicas", type=int, default=8, help="that are scraped (200 is full)")
    parser.add_argument("--days", type=float, default=0.1, help="of scraping (30 is full)")
    parser.add_argument("--home", type=Path, help="where what was filled is kept, and found again")
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
