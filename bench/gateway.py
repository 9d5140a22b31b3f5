"""What the gateway adds: the same requests straight to an upstream and through it, interleaved."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.schemas.routing import Backend, RouteTable

TOKEN = "bench-only-token"
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


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[dict[str, str]]:
    """A Python process that announces its addresses as a line of JSON; ended at the end."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert running.stdout is not None
    try:
        while not (line := await running.stdout.readline()).startswith(b"{"):
            if not line:
                raise SystemExit(f"{arguments[0]} did not start")
        yield json.loads(line)
    finally:
        running.terminate()
        await running.wait()


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


async def run(rounds: int, slice_s: float) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "token").write_text(TOKEN)
        upstream = await stack.enter_async_context(process("bench.gateway", "--upstream"))
        options = ["--state-dir", str(folder / "state"), "--token-file", str(folder / "token")]
        gateway = await stack.enter_async_context(
            process("optiinfra.gateway", *options, "--port", "0", "--admin-port", "0")
        )
        backend = Backend(replica="fixed", url=upstream["url"], weight=1)
        table = RouteTable(
            tenant="bench", deployment="fixed", model="fixed", version=1, backends=(backend,)
        )
        async with GatewayTraffic(gateway["admin_url"], TOKEN) as traffic:
            await traffic.put(table)
            urls = {"direct": upstream["url"], "gateway": gateway["url"]}
            figures = await measure(urls, rounds, slice_s)
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
        "bench": "gateway",
        **figures,
        "added_ms": {"p50": added("ttfb_p50_ms"), "p99": added("ttfb_p99_ms")},
        "added_e2e_ms": {"p50": added("e2e_p50_ms"), "p99": added("e2e_p99_ms")},
        "rps_ratio": round(gateway["c32"]["rps"] / direct["c32"]["rps"], 3),
        "load": {"load_1min": round(os.getloadavg()[0], 2), "cpus": os.cpu_count()},
    }


def show(outcome: dict[str, Any]) -> None:
    names = ("ttfb_p50_ms", "ttfb_p99_ms", "e2e_p50_ms", "e2e_p99_ms", "rps", "requests")
    print(f"{'':>13}", *(f"{name:>12}" for name in names))
    for workers in CONCURRENCIES:
        for target in ("direct", "gateway"):
            row = outcome[target][f"c{workers}"]
            print(f"{target:>8} c={workers:<2}", *(f"{row[name]:>12}" for name in names))
    print(json.dumps(outcome))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", action="store_true", help="be the upstream (internal)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slice-s", type=float, default=1.0, help="seconds per target and turn")
    options = parser.parse_args()
    if options.upstream:
        try:
            asyncio.run(serve_upstream())
        except KeyboardInterrupt:
            return
    else:
        show(asyncio.run(run(options.rounds, options.slice_s)))


if __name__ == "__main__":
    main()
