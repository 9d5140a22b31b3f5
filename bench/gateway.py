"""What the gateway adds: the same requests straight to an upstream and through it, interleaved.

First many streams at the rate of an engine, beside another reverse proxy (`bench.streams`); then
short requests as fast as they are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from bench.streams.proxies import TOKEN, gateway, module
from bench.streams.rounds import MEASURES, PEERS, Setting, streams
from optiinfra.agents.actuators.traffic import GatewayTraffic

CHAT = "/v1/chat/completions"
CHUNKS = 8
CONCURRENCIES = (1, 32)
REQUEST = {
    "model": "fixed",
    "stream": True,
    "messages": [{"role": "user", "content": "tell me something of fixed length " * 8}],
}


def event(content: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": reason}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


EVENTS = [*(event(f"word{n} ") for n in range(CHUNKS)), event("", "stop") + b"data: [DONE]\n\n"]


async def stream(request: web.BaseRequest) -> web.StreamResponse:
    """A fixed answer, as fast as the server can."""
    await request.read()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for chunk in EVENTS:
        await response.write(chunk)
    await response.write_eof()
    return response


async def serve_upstream() -> None:
    runner = web.ServerRunner(web.Server(stream, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


@dataclass
class Round:
    """Seconds per request and requests per second of one target at one concurrency."""

    ttfb_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    busy_s: float = 0.0

    def figures(self) -> dict[str, float]:
        return {
            "ttfb_p50_ms": quantile_ms(self.ttfb_s, 50),
            "ttfb_p99_ms": quantile_ms(self.ttfb_s, 99),
            "e2e_p50_ms": quantile_ms(self.e2e_s, 50),
            "e2e_p99_ms": quantile_ms(self.e2e_s, 99),
            "rps": round(len(self.e2e_s) / self.busy_s, 1),
            "requests": len(self.e2e_s),
        }


def quantile_ms(values_s: list[float], percent: int) -> float:
    return round(1000 * statistics.quantiles(values_s, n=100)[percent - 1], 3)


async def ask(http: aiohttp.ClientSession, url: str, into: Round) -> None:
    started_s = time.perf_counter()
    async with http.post(url + CHAT, json=REQUEST) as answer:
        body = await answer.content.readany()
        first_s = time.perf_counter()
        body += await answer.read()
    ended_s = time.perf_counter()
    if answer.status != 200 or body != b"".join(EVENTS):
        raise SystemExit(f"{url} answered {answer.status} with {len(body)} other bytes")
    into.ttfb_s.append(first_s - started_s)
    into.e2e_s.append(ended_s - started_s)


async def load(http: aiohttp.ClientSession, url: str, into: Round, workers: int, s: float) -> None:
    """Closed loop of `workers` for `s` seconds."""
    started_s = time.perf_counter()

    async def work() -> None:
        while time.perf_counter() - started_s < s:
            await ask(http, url, into)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    into.busy_s += time.perf_counter() - started_s


async def measure(urls: dict[str, str], rounds: int, slice_s: float) -> dict[str, Any]:
    """Figures per target and concurrency; targets take turns so that noise meets both."""
    seen = {(name, workers): Round() for workers in CONCURRENCIES for name in urls}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        for url in urls.values():
            await load(http, url, Round(), max(CONCURRENCIES), 0.3)
        for number in range(rounds):
            for workers in CONCURRENCIES:
                for name in list(urls)[:: 1 if number % 2 else -1]:
                    await load(http, urls[name], seen[name, workers], workers, slice_s)
    return {
        name: {f"c{workers}": seen[name, workers].figures() for workers in CONCURRENCIES}
        for name in urls
    }


async def closed_loop(rounds: int, slice_s: float) -> dict[str, Any]:
    """Requests as fast as they are answered, one and 32 at a time."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _, told = await stack.enter_async_context(module("bench.gateway", "--upstream"))
        _, url, admin_url = await stack.enter_async_context(gateway([told["url"]], folder))
        figures = await measure({"direct": told["url"], "gateway": url}, rounds, slice_s)
        async with GatewayTraffic(admin_url, TOKEN) as traffic:
            counters = await traffic.counters()
        if counters.totals.failed or counters.totals.truncated:
            raise SystemExit(f"the gateway lost requests: {counters.totals}")
    return result(figures)


def result(figures: dict[str, Any]) -> dict[str, Any]:
    """Added latency is the difference of quantiles at concurrency 1; the ratio is that at 32."""
    direct, gateway = figures["direct"], figures["gateway"]

    def added(name: str) -> float:
        difference: float = gateway["c1"][name] - direct["c1"][name]
        return round(difference, 3)

    return {
        **figures,
        "added_ms": {"p50": added("ttfb_p50_ms"), "p99": added("ttfb_p99_ms")},
        "added_e2e_ms": {"p50": added("e2e_p50_ms"), "p99": added("e2e_p99_ms")},
        "rps_ratio": round(gateway["c32"]["rps"] / direct["c32"]["rps"], 3),
    }


def show(outcome: dict[str, Any]) -> None:
    names = ("ttfb_p50_ms", "ttfb_p99_ms", "e2e_p50_ms", "e2e_p99_ms", "rps", "requests")
    print(f"{'closed loop':>13}", *(f"{name:>12}" for name in names))
    for workers in CONCURRENCIES:
        for target in ("direct", "gateway"):
            row = outcome["closed_loop"][target][f"c{workers}"]
            print(f"{target:>8} c={workers:<2}", *(f"{row[name]:>12}" for name in names))
    told, measures = outcome["streams"], (*MEASURES, "lost", "reordered", "broken")
    print(f"{'streams':>13}", *(f"{name:>12}" for name in measures))
    for target in ("direct", "gateway", *PEERS):
        if (row := told[target]) is not None:
            print(f"{target:>13}", *(f"{row[name]:>12}" for name in measures))
    for target, added in told["added"].items():
        if added is not None:
            print(f"{target + ' adds':>13}", *(f"{added[name]:>12}" for name in MEASURES))
    print(json.dumps(outcome))


async def both(options: argparse.Namespace) -> dict[str, Any]:
    load = [round(os.getloadavg()[0], 2)]
    setting = Setting(
        streams=options.streams,
        tokens_per_s=options.tokens_per_s,
        replicas=options.replicas,
        rounds=options.rounds,
    )
    outcome = {
        "bench": "gateway",
        "streams": await streams(setting),
        "closed_loop": await closed_loop(options.rounds, options.slice_s),
    }
    load.append(round(os.getloadavg()[0], 2))
    return outcome | {"load": {"load_1min": load, "cpus": os.cpu_count()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", action="store_true", help="be the upstream (internal)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice-s", type=float, default=1.0, help="of the closed loop, per turn")
    parser.add_argument("--streams", type=int, default=200, help="at the same time")
    parser.add_argument("--tokens-per-s", type=float, default=30.0, help="of each stream")
    parser.add_argument("--replicas", type=int, default=4, help="engines that share the streams")
    options = parser.parse_args()
    if options.upstream:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serve_upstream())
        return
    outcome = asyncio.run(both(options))
    show(outcome)
    ours = outcome["streams"]["gateway"]
    if ours["lost"] or ours["reordered"] or ours["broken"]:
        raise SystemExit("the gateway lost, reordered or broke what passed through it")


if __name__ == "__main__":
    main()
