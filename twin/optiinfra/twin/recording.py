"""Minutes of an emulated engine in virtual time: what it would have exposed, scrape by scrape.

The engine is the emulator's own; only its clock is not the wall's. So a recording is the same every
time, and takes as long as the scheduler's arithmetic does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from selectors import DefaultSelector, SelectorKey

from optiinfra.schemas.errors import Invariant
from optiinfra.serving.scheduler import Request
from optiinfra.serving.simulation import Arrival
from optiinfra.twin.endpoints import Emulation, Endpoints
from optiinfra.twin.engine import Stream

GPU_POLL_S = 0.25
"""How often the device is looked at, s; NVML's own samples are 1/6 to 1 s long."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One scrape, and the share of looks since the last one at which the device was busy."""

    at_s: float
    text: str
    gpu_busy_fraction: float


@dataclass(slots=True)
class Served:
    """What the client of one request sees, in s from the start; `ended_s` is None until then."""

    arrived_s: float
    first_s: float
    tokens: int
    ended_s: float | None = None

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between its tokens; None while there is no end, or only one token."""
        gaps = self.tokens - 1
        return (self.ended_s - self.first_s) / gaps if self.ended_s is not None and gaps else None


@dataclass(slots=True)
class Recording:
    """Scrapes in order of time, and the requests that had a first token, in that order."""

    shots: list[Shot] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)


def record(
    emulation: Emulation, arrivals: Sequence[Arrival], *, scrape_every_s: float, scrapes: int
) -> Recording:
    """Drive the engine with `arrivals` (in order of time) for `scrapes` intervals.

    Raises `Rejected` when a request can never fit.
    """
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(_recorded(emulation, arrivals, scrape_every_s, scrapes))


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: when nothing is ready, its clock jumps to what is next."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now_s


class _Jumping(DefaultSelector):
    def __init__(self, loop: _VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        if timeout is None:
            raise Invariant("nothing is left to happen in virtual time")
        self._loop.now_s += timeout
        return super().select(0)


async def _recorded(
    emulation: Emulation, arrivals: Sequence[Arrival], every_s: float, scrapes: int
) -> Recording:
    endpoints, made = Endpoints(emulation), Recording()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(endpoints.engine.run()),
            group.create_task(_arrive(endpoints, arrivals, made)),
        ]
        for number in range(scrapes + 1):
            busy = await _watched(endpoints, until_s=number * every_s)
            endpoints.engine.gauge()
            text = endpoints.metrics.render(frozenset(emulation.defect.hide_metrics))
            made.shots.append(Shot(number * every_s, text, busy))
        for task in tasks:
            task.cancel()
    return made


async def _watched(endpoints: Endpoints, *, until_s: float) -> float:
    """Wait until then; the share of looks on the way that saw work on the device."""
    loop, seen = asyncio.get_running_loop(), []
    while loop.time() < until_s:
        await asyncio.sleep(min(GPU_POLL_S, until_s - loop.time()))
        seen.append(endpoints.engine.scheduler.has_work)
    return sum(seen) / len(seen) if seen else 0.0


async def _arrive(endpoints: Endpoints, arrivals: Sequence[Arrival], made: Recording) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        for number, one in enumerate(arrivals):
            await asyncio.sleep(max(0.0, one.at_s - loop.time()))
            request = Request(str(number), one.prompt_tokens, one.output_tokens, one.block_hashes)
            stream = Stream(
                request, [""] * one.output_tokens, "stop", one.output_tokens, loop.time()
            )
            endpoints.engine.submit(stream)
            group.create_task(_follow(stream, made))


async def _follow(stream: Stream, made: Recording) -> None:
    await stream.burst()
    seen = Served(stream.arrived_s, stream.first_s, len(stream.tokens))
    made.served.append(seen)
    stream.eager = False
    await stream.whole()
    seen.ended_s = stream.last_s
