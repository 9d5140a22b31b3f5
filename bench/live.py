"""The live stream: many WebSocket clients, events at a rate, and kill -9 of the API between."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
import psutil

from bench.api import Child, child
from bench.api_log import TENANT, new_id, now
from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.facts import SwitchTurned
from optiinfra.events.publish import Publisher
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.testing.servers import reachable_home, running

PATIENCE_S = 60.0
AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Watching:
    """What all clients of a process have heard; `took` in s, from saying to hearing."""

    count: int
    heard: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    took: array[float] = field(default_factory=lambda: array("d"))
    lost: int = 0
    repeated: int = 0
    gaps: int = 0
    greeted: int = 0

    def __post_init__(self) -> None:
        self.heard, self.last = [0] * self.count, [-1] * self.count

    def take(self, client: int, frame: dict[str, Any], at_s: float) -> None:
        """A frame whose `prev` is not the one before it was lost or came again."""
        if frame["kind"] == "hello":
            self.greeted += 1
            if self.last[client] < 0:
                self.last[client] = frame["head"]
        elif frame["kind"] == "gap":
            self.gaps += 1
        elif frame["kind"] == "event":
            self.lost += frame["prev"] > self.last[client]
            self.repeated += frame["seq"] <= self.last[client]
            self.last[client] = frame["seq"]
            self.heard[client] += 1
            self.took.append(at_s - float(frame["data"]["reason"]))

    def summary(self) -> dict[str, Any]:
        took = sorted(self.took) or [0.0]
        return {
            "frames": sum(self.heard), "least": min(self.heard), "lost": self.lost,
            "repeated": self.repeated, "gaps": self.gaps,
            "p50_ms": round(statistics.median(took) * 1e3, 1),
            "p95_ms": round(took[int(len(took) * 0.95)] * 1e3, 1),
            "p99_ms": round(took[int(len(took) * 0.99)] * 1e3, 1),
        }  # fmt: skip


class Clients:
    """In a process of their own: told over stdin where to connect, and when to sum up."""

    def __init__(self, count: int, token: str) -> None:
        self._watching = Watching(count)
        self._token = token
        self._url: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        orders = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
        )
        headers = {"Authorization": f"Bearer {self._token}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
            reading = [
                asyncio.create_task(self._one(session, number))
                for number in range(self._watching.count)
            ]
            while order := (await orders.readline()).decode().split():
                self._obey(*order)
            for task in reading:
                task.cancel()
            await asyncio.wait(reading)

    def _obey(self, order: str, told: str = "") -> None:
        """`at URL`: where the API is; `gone`: it is not any more; `sum`: say what was heard."""
        if order == "at":
            self._url.set_result(told)
        elif order == "gone":
            self._url = asyncio.get_running_loop().create_future()
        elif order == "greeted":
            print(json.dumps({"clients": self._watching.greeted}), flush=True)
        else:
            print(json.dumps(self._watching.summary()), flush=True)
            self._watching.took = array("d")

    async def _one(self, session: aiohttp.ClientSession, number: int) -> None:
        """Connects again, after what it heard last, for as long as it is not cancelled."""
        while True:
            last = self._watching.last[number]
            after = f"?after={last}" if last >= 0 else ""
            with suppress(aiohttp.ClientError):
                url = await self._url
                async with session.ws_connect(f"{url}/api/v1/stream{after}") as socket:
                    async for message in socket:
                        at_s = time.monotonic()
                        for line in message.data.split("\n"):
                            self._watching.take(number, json.loads(line), at_s)
            await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Crowd:
    """The clients' process, as the benchmark speaks to it."""

    process: asyncio.subprocess.Process

    def tell(self, *words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(words) + "\n").encode())

    async def ask(self, word: str) -> Any:
        assert self.process.stdout is not None
        self.tell(word)
        async with asyncio.timeout(PATIENCE_S):
            return json.loads(await self.process.stdout.readline())

    async def become(self, word: str, of: str, least: int) -> None:
        """Until that part of the answer is at least so much."""
        async with asyncio.timeout(PATIENCE_S):
            while (await self.ask(word))[of] < least:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.2)


@asynccontextmanager
async def crowd(count: int, token: str) -> AsyncIterator[Crowd]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.live", "--crowd", str(count),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"BENCH_TOKEN": token},
    )  # fmt: skip
    try:
        yield Crowd(process)
    finally:
        process.kill()
        await process.wait()


class Saying:
    """Says events at a rate until it is cancelled; each tells when it was said."""

    def __init__(self, publisher: Publisher, per_s: float) -> None:
        self._publisher = publisher
        self._per_s = per_s
        self.said = 0

    async def run(self, seconds: float) -> None:
        """The rate is kept on the whole, whatever one event takes."""
        began = time.monotonic()
        for number in range(int(seconds * self._per_s)):
            await asyncio.sleep(began + number / self._per_s - time.monotonic())
            fact = SwitchTurned(
                tenant=TENANT, stopped=False, by="bench", reason=repr(time.monotonic()), at=AT
            )
            await self._publisher.publish(self._publisher.event(fact, tenant=TENANT))
            self.said += 1


def rss_mib(serving: Child) -> float:
    return round(serving.process.memory_info().rss / (1 << 20), 1)


async def bench(options: argparse.Namespace) -> dict[str, Any]:
    with reachable_home() as home:
        postgres, nats = PostgresServer(home / "postgres"), NatsServer(home / "nats")
        with running(postgres) as database_url, running(nats) as nats_url:
            await upgrade(database_url)
            bus = await Bus.connect(nats_url, name="bench")
            try:
                await topology.apply(bus)
                async with open_database(database_url) as database:
                    access = AccessTokens(database)
                    token = await access.issue(TENANT, "ana", Role.VIEWER, lasts_s=3_600)
                urls = (database_url, nats_url, f"chdb://{home / 'clickhouse'}")
                async with crowd(options.clients, token) as clients:
                    saying = Saying(Publisher(bus, "bench", now, new_id), options.per_s)
                    return await measured(clients, saying, urls, options)
            finally:
                await bus.close()


async def measured(
    clients: Crowd, saying: Saying, urls: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Any]:
    """A steady time, then the API is killed while events go on, and started again."""
    before = os.getloadavg()[0]
    async with child("--serve", *urls) as serving:
        clients.tell("at", serving.url)
        await clients.become("greeted", "clients", options.clients)
        await saying.run(3.0)
        await clients.become("sum", "least", saying.said)
        warm, rss, cpu_s = await clients.ask("sum"), [rss_mib(serving)], serving.cpu_s()
        await saying.run(options.run_s)
        steady, cpu_s = await clients.ask("sum"), serving.cpu_s() - cpu_s
        rss.append(rss_mib(serving))
        clients.tell("gone")
        serving.process.kill()
    await saying.run(2.0)
    async with child("--serve", *urls) as serving:
        clients.tell("at", serving.url)
        await saying.run(2.0)
        await clients.become("sum", "least", saying.said)
        resumed = await clients.ask("sum")
        rss.append(rss_mib(serving))
    frames = steady["frames"] - warm["frames"]
    return {
        "bench": "live", "clients": options.clients, "events_per_s": options.per_s,
        "steady": steady, "api_cpu_us_a_frame": round(cpu_s / frames * 1e6, 1),
        "after_kill": {name: resumed[name] for name in ("least", "lost", "repeated", "gaps")},
        "said": saying.said, "rss_mib": dict(zip(("before", "after", "new"), rss, strict=True)),
        "load_1min": {"before": round(before, 2), "after": round(os.getloadavg()[0], 2)},
        "cpus": psutil.cpu_count(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--per-s", type=float, default=50.0, help="events each client hears")
    parser.add_argument("--run-s", type=float, default=20.0)
    parser.add_argument("--crowd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.crowd:
        asyncio.run(watch(options.crowd))
        return
    print(json.dumps(asyncio.run(bench(options))))


async def watch(count: int) -> None:
    await Clients(count, os.environ["BENCH_TOKEN"]).run()


if __name__ == "__main__":
    main()
