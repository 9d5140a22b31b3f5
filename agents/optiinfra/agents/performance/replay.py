"""A deployment's own recent traffic, and serving it again to one engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import aiohttp

from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.serving.simulation import percentile

_LOOK_S = 0.5
_CONNECT_S = 30.0
_DATA = b"data: "
_DONE = b"[DONE]"

Watch = Callable[[float, float], bool]
"""Asked while a replay runs: given the fraction of its output tokens that has come, and their
rate so far, tokens/s, whether to stop."""


class Request(NamedTuple):
    """One request of a replay; `at_s` counts from the first."""

    at_s: float
    prompt: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Requests in order of arrival, with the prompts (so that prefixes are shared as they were)
    and the answers' lengths of the traffic that they were taken from."""

    requests: tuple[Request, ...]

    @property
    def output_tokens(self) -> int:
        return sum(one.output_tokens for one in self.requests)

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].at_s if self.requests else 0.0

    def offering(self, tokens_per_s: float) -> Replay:
        """The same requests so much closer that they ask for `tokens_per_s` output tokens a second;
        the pattern of arrivals stays."""
        if self.span_s <= 0 or tokens_per_s <= 0:
            return self
        factor = self.output_tokens / tokens_per_s / self.span_s
        return Replay(tuple(one._replace(at_s=one.at_s * factor) for one in self.requests))


def replay_of(samples: Sequence[AnswerSample], most: int) -> Replay:
    """The newest `most` requests whose lengths are known; what the engine failed is left out.

    A sample is a part of the traffic: the gaps between its arrivals are longer than they were,
    which `Replay.offering` takes back.
    """
    usable = [one for one in samples if one.ok and one.prompt and one.output_tokens]
    arrived = sorted((_arrival_s(one), one.id, one) for one in usable)[-most:]
    start_s = arrived[0][0] if arrived else 0.0
    return Replay(
        tuple(
            Request(at_s - start_s, one.prompt, one.output_tokens or 1) for at_s, _, one in arrived
        )
    )


def _arrival_s(sample: AnswerSample) -> float:
    """When it came, s since the epoch: it was recorded when its answer had ended."""
    took_s = (sample.ttft_s or 0.0) + (sample.tpot_s or 0.0) * ((sample.output_tokens or 1) - 1)
    return sample.at.timestamp() - took_s


@dataclass(slots=True)
class Played:
    """What the clients of a replay saw; latencies in s."""

    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    served: int = 0
    failed: int = 0
    tokens: int = 0
    arrived: int = 0
    """Output tokens that have come, of finished answers and of others. An engine that does not
    count them as it goes is taken to send one a piece, until an answer's end corrects that."""
    took_s: float = 0.0
    stopped: bool = False
    rates: list[float] = field(default_factory=list)
    """Output tokens/s of each time that the replay was played."""
    pace: float | None = None
    """How fast the machine went meanwhile, where another engine was measured in turns: that one's
    output tokens/s by what it is known to serve."""

    def end(self, took_s: float) -> None:
        """It has been played once, in `took_s`."""
        self.took_s = took_s
        if self.tokens and took_s > 0:
            self.rates.append(self.tokens / took_s)

    def add(self, later: Played) -> None:
        """The same replay once more."""
        self.rates += later.rates
        self.ttft_s += later.ttft_s
        self.tpot_s += later.tpot_s
        self.served += later.served
        self.failed += later.failed
        self.tokens += later.tokens
        self.arrived += later.arrived
        self.took_s += later.took_s
        self.stopped |= later.stopped

    @property
    def tokens_per_s(self) -> Reading:
        """The fastest of all times: what else a machine does only ever slows an engine down, so
        that is the steadiest estimate of what it can (Chen and Revels 2016, arXiv:1608.04295).
        Where the machine's pace is known, the median at that pace: what slows both is no matter.
        """
        if not self.rates:
            return Unknown(reason=UnknownReason.NO_TRAFFIC, detail="nothing was served")
        return Known(value=median(self.rates) / self.pace if self.pace else max(self.rates))

    @property
    def ttft_p95_s(self) -> Reading:
        return _p95(self.ttft_s)

    @property
    def tpot_p95_s(self) -> Reading:
        return _p95(self.tpot_s)


def _p95(values: Sequence[float]) -> Reading:
    if not values:
        return Unknown(reason=UnknownReason.NO_TRAFFIC, detail="nothing was served")
    return Known(value=percentile(values, 0.95))


def client() -> aiohttp.ClientSession:
    """One connection a request: an engine hangs up on an idle one when it likes, and a request
    that meets that would count as lost."""
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


class Player:
    """Plays replays against the `/v1/completions` of an engine, past the gateway.

    Prefixes are shared within a play and not with the one before it, where an engine knows
    `cache_salt`.
    """

    def __init__(self, url: str, model: str, http: aiohttp.ClientSession, idle_s: float) -> None:
        """`idle_s` bounds each wait for bytes of an answer."""
        self._url = f"{url.rstrip('/')}/v1/completions"
        self._model = model
        self._http = http
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=idle_s)
        self._plays = 0

    async def measure(
        self, replay: Replay, watch: Watch, at_least_s: float, beside: Beside | None = None
    ) -> Played:
        """The replay again and again, until it has been played for `at_least_s`.

        It is played whole before that, for half as long at least, which does not count: an engine
        is slow at its first batches of each size. (It is not cut short then: vLLM takes seconds to
        be rid of hundreds of requests whose clients have left.) `watch` is asked during the first
        time that counts, once that has taken `at_least_s`: giving up a shorter one saves nothing,
        and a moment's stall would decide it. A request that fails ends it. With 0 s it is played
        once. The engine `beside` it serves the replay before it each time, which takes as long
        again. Raises `Unavailable` when that one does not serve it whole.
        """
        clock = asyncio.get_running_loop().time
        warm_s, paces = 0.0, [1.0]
        while warm_s < at_least_s / 2:
            played = await self.play(replay, lambda *_: False)
            if played.failed or not played.served:
                return played
            warm_s += played.took_s

        async def turn(watch: Watch) -> Played:
            if beside is not None:
                paces.append(await beside.pace(replay))
            began_s = clock()
            return await self.play(
                replay,
                lambda done, rate: clock() - began_s > at_least_s and watch(done, rate / paces[-1]),
            )

        began_s, wanted_s = clock(), at_least_s * (1 if beside is None else 2)
        played = await turn(watch)
        while clock() - began_s < wanted_s and not played.stopped and not played.failed:
            played.add(await turn(lambda *_: False))
        played.pace = None if beside is None else median(paces[1:])
        return played

    async def play(self, replay: Replay, watch: Watch) -> Played:
        """Every request at its time, until all have ended or `watch` says so."""
        clock = asyncio.get_running_loop().time
        played, began_s = Played(), clock()
        self._plays += 1
        arrivals = asyncio.create_task(self._arrive(replay, played))
        try:
            while not arrivals.done() and not played.stopped:
                await asyncio.wait({arrivals}, timeout=_LOOK_S)
                rate = played.arrived / (clock() - began_s)
                done = min(1.0, played.arrived / max(1, replay.output_tokens))
                played.stopped = not arrivals.done() and watch(done, rate)
        finally:
            arrivals.cancel()
            await asyncio.wait({arrivals})
        played.end(clock() - began_s)
        return played

    async def _arrive(self, replay: Replay, played: Played) -> None:
        clock = asyncio.get_running_loop().time
        began_s = clock()
        async with asyncio.TaskGroup() as group:
            for request in replay.requests:
                await asyncio.sleep(max(0.0, began_s + request.at_s - clock()))
                group.create_task(self._ask(request, played))

    async def _ask(self, request: Request, played: Played) -> None:
        clock = asyncio.get_running_loop().time
        body = {
            "model": self._model, "prompt": request.prompt, "max_tokens": request.output_tokens,
            "ignore_eos": True, "temperature": 0, "cache_salt": f"play-{self._plays}",
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }  # fmt: skip
        asked_s, coming = clock(), Incoming()
        try:
            async with self._http.post(self._url, json=body, timeout=self._timeout) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    played.arrived += coming.take(line, clock())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            coming.whole = False
        tokens, first_s = coming.tokens, coming.first_s
        if not coming.whole or tokens is None or first_s is None:
            played.failed += 1
            return
        played.served += 1
        played.tokens += tokens
        played.ttft_s.append(first_s - asked_s)
        if tokens > 1:
            played.tpot_s.append((coming.last_s - first_s) / (tokens - 1))


@dataclass(frozen=True, slots=True)
class Beside:
    """An engine of which it is known what it serves: others are measured in turns with it."""

    player: Player
    tokens_per_s: float

    async def pace(self, replay: Replay) -> float:
        """What it serves now, by what it is known to. Raises `Unavailable` when it fails."""
        played = await self.player.play(replay, lambda *_: False)
        if played.failed or not played.rates:
            raise Unavailable("the engine that others are measured against lost requests")
        return played.rates[0] / self.tokens_per_s


@dataclass(slots=True)
class Incoming:
    """A streamed answer up to now."""

    tokens: int | None = None
    """Output tokens by the engine's own count; None before it has told one."""
    whole: bool = False
    first_s: float | None = None
    last_s: float = 0.0
    _came: int = 0

    def take(self, line: bytes, now_s: float) -> int:
        """How many output tokens have come with the next line of the stream.

        Raises `ValueError` for an event that is no JSON.
        """
        if not line.startswith(_DATA):
            return 0
        if line[len(_DATA) :].startswith(_DONE):
            self.whole = True
            return 0
        event = json.loads(line[len(_DATA) :])
        self.tokens = _tokens(event) or self.tokens
        piece = bool(event.get("choices"))
        if piece:
            self.last_s = now_s
            self.first_s = now_s if self.first_s is None else self.first_s
        before = self._came
        self._came = max(before, self.tokens or before + piece)
        return self._came - before


def _tokens(event: dict[str, object]) -> int | None:
    """Output tokens of the answer up to here, in an event that tells of them."""
    usage = event.get("usage")
    found = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None
