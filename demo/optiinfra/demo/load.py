"""The users of the story: replays the trace through the gateway, open loop, and counts losses."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import aiohttp

from optiinfra.demo.children import say, until_orphaned
from optiinfra.demo.prompts import PromptBook
from optiinfra.demo.trace import Arrival, Mix, azure_trace, schedule
from optiinfra.schemas.base import Value

SESSION_REQUESTS = 3
"""So many requests in a row belong to one user's session."""
_LIMIT_S = 60.0
_FINISH_S = 10.0
_REPORT_S = 1.0
_DONE = b"data: [DONE]"


class Stream(Value):
    """The requests for one deployment."""

    deployment: str
    model: str
    mix: Mix


class LoadPlan(Value):
    """Who is asked what; the trace is taken in parts of `part_s` each."""

    gateway_url: str
    streams: tuple[Stream, ...]
    seed: int
    part_s: float = 300.0


class End(StrEnum):
    """How a request ended for its user."""

    SERVED = "served"
    FAILED = "failed"
    TRUNCATED = "truncated"


class Users:
    """Sends the requests of a plan at their times, whatever became of earlier ones."""

    def __init__(self, plan: LoadPlan, http: aiohttp.ClientSession) -> None:
        self._plan = plan
        self._http = http
        self._book = PromptBook(plan.seed)
        self.ends: dict[str, Counter[End]] = {one.deployment: Counter() for one in plan.streams}
        self.under_way = 0
        self.lost: list[str] = []
        """What happened to each request that was not served."""

    async def run(self, stopped: asyncio.Event) -> None:
        """Until `stopped`; requests under way then have 10 s to finish."""
        async with asyncio.TaskGroup() as group:
            sending = [
                group.create_task(self._send(stream, group), name=stream.deployment)
                for stream in self._plan.streams
            ]
            await stopped.wait()
            for task in sending:
                task.cancel()

    async def _send(self, stream: Stream, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, arrival in enumerate(arrivals(stream, self._plan)):
            await asyncio.sleep(max(0.0, began + arrival.at_s - loop.time()))
            group.create_task(self._ask(stream, number, arrival))

    async def _ask(self, stream: Stream, number: int, arrival: Arrival) -> None:
        body = {
            "model": stream.model,
            "prompt": self._book.prompt(number, arrival.prompt_tokens),
            "max_tokens": 2 * arrival.output_tokens + 32,
            "min_tokens": arrival.output_tokens,
            "temperature": 0,
            "stream": True,
        }
        session = f"{stream.deployment}-{self._plan.seed}-{number // SESSION_REQUESTS}"
        headers = {"X-OptiInfra-Deployment": stream.deployment, "X-Session-Id": session}
        self.under_way += 1
        end, detail = End.TRUNCATED, "no end within 10 s of the stop"
        try:
            end, detail = await self._answer(body, headers)
        finally:
            self.under_way -= 1
            self._ended(stream, number, end, detail)

    def _ended(self, stream: Stream, number: int, end: End, detail: str) -> None:
        self.ends[stream.deployment][end] += 1
        if end is not End.SERVED:
            self.lost.append(f"{stream.deployment} request {number}: {end}: {detail}")

    async def _answer(self, body: dict[str, object], headers: dict[str, str]) -> tuple[End, str]:
        """Reads the stream to its mark of the end: what lacks it has been lost on the way."""
        begun, tail = False, b""
        try:
            async with self._http.post("/v1/completions", json=body, headers=headers) as response:
                if response.status != 200:
                    return End.FAILED, f"{response.status} {(await response.text())[:200]}"
                async for chunk in response.content.iter_any():
                    begun, tail = True, (tail + chunk)[-200:]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return (End.TRUNCATED if begun else End.FAILED), f"{type(error).__name__}: {error}"
        if _DONE in tail:
            return End.SERVED, ""
        return (End.TRUNCATED if begun else End.FAILED), tail.decode(errors="replace")

    def counts(self) -> dict[str, object]:
        """All that is known, for one line."""
        total: Counter[End] = sum(self.ends.values(), Counter())
        return {
            **{end.value: total[end] for end in End},
            "under_way": self.under_way,
            "lost": self.lost[-5:],
            "deployments": {
                name: {end.value: ends[end] for end in End} for name, ends in self.ends.items()
            },
        }


def arrivals(stream: Stream, plan: LoadPlan) -> Iterator[Arrival]:
    """The requests of a stream for ever; every part of the trace has the stream's mean rate."""
    count = max(1, round(plan.part_s * stream.mix.rate_rps))
    for part in itertools.count():
        name = f"{stream.deployment}-{part}"
        for one in schedule(azure_trace(), stream.mix, count, seed=plan.seed, name=name):
            yield replace(one, at_s=one.at_s + part * plan.part_s)


async def replay(plan: LoadPlan, stopped: asyncio.Event) -> None:
    """Runs the plan, with a line on stdout each second and one at the end."""
    timeout = aiohttp.ClientTimeout(total=_LIMIT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        plan.gateway_url, connector=connector, timeout=timeout
    ) as http:
        users = Users(plan, http)
        began = time.monotonic()

        def line(event: str) -> None:
            say(event, elapsed_s=round(time.monotonic() - began, 1), **users.counts())

        async with asyncio.timeout(None) as limit:
            reports = asyncio.create_task(_every(_REPORT_S, lambda: line("progress")))
            ending = asyncio.create_task(_after(stopped, lambda: limit.reschedule(_soon())))
            try:
                await users.run(stopped)
            finally:
                for task in (reports, ending):
                    task.cancel()
                line("ended")


async def _after(stopped: asyncio.Event, then: Callable[[], None]) -> None:
    await stopped.wait()
    then()


def _soon() -> float:
    return asyncio.get_running_loop().time() + _FINISH_S


async def _every(seconds: float, do: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        do()


async def serve(plan: LoadPlan) -> None:
    """Replays until SIGTERM, or until the parent closes our stdin."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    watching = asyncio.create_task(until_orphaned(stopped.set))
    try:
        with suppress(TimeoutError):
            await replay(plan, stopped)
    finally:
        watching.cancel()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a plan (a JSON file)."""
    parser = argparse.ArgumentParser(prog="optiinfra.demo.load", description=__doc__)
    parser.add_argument("plan", type=Path)
    plan = LoadPlan.model_validate_json(parser.parse_args(argv).plan.read_text())
    asyncio.run(serve(plan))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
