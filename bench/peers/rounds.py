"""How the benchmark speaks with a contestant: JSON lines, one round a line.

A contestant prints `{"ready": true}`, then for each line `{"in_flight": n, "count": m}` that it
reads runs m sagas, n at a time, and prints their latencies in s and the time that it took. It uses
the standard library alone, since a peer's environment has nothing of ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

WARM_UP = 8


def payload() -> dict[str, object]:
    """About 1 KB of input."""
    return {"saga_id": "saga", "tenant": "acme", "note": "x" * 960}


async def measured(one: Callable[[], Awaitable[None]], in_flight: int, count: int) -> str:
    """One round as the line that is answered."""
    turns = asyncio.Semaphore(in_flight)
    latencies: list[float] = []

    async def timed() -> None:
        async with turns:
            began = time.perf_counter()
            await one()
            latencies.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(timed() for _ in range(count)))
    return json.dumps({"latencies": latencies, "took_s": time.perf_counter() - began})


async def answer_rounds(one: Callable[[], Awaitable[None]]) -> None:
    """Warms up, says that it is ready, and runs rounds until the input ends."""
    await measured(one, 2, WARM_UP)
    _say('{"ready": true}')
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        wanted = json.loads(line)
        _say(await measured(one, wanted["in_flight"], wanted["count"]))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
