"""What the demo's own clients see: throughput under a saturating replay, right answers, losses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from math import comb

import aiohttp

from optiinfra.agents.performance.replay import Played, Player, Replay, Request
from optiinfra.demo.vllm.plan import MEASURE_S, MODEL, Question
from optiinfra.schemas.errors import Unavailable

ANSWER_TOKENS = 48
"""So that a server's speed shows: an answer alone would be a handful of tokens."""
REQUESTS = 200
STEADY_PER_S = 10.0
_IDLE_S = 300.0
_AT_ONCE = 8


def saturating(asked: Sequence[Question]) -> Replay:
    """All at once: a queue that no configuration is spared."""
    prompts = [asked[number % len(asked)].prompt for number in range(REQUESTS)]
    return Replay(tuple(Request(0.0, prompt, ANSWER_TOKENS) for prompt in prompts))


def steady(asked: Sequence[Question]) -> Replay:
    """Evenly, and no more than any configuration serves: what differs then is the model."""
    return Replay(
        tuple(
            Request(number / STEADY_PER_S, one.prompt, one.output_tokens)
            for number, one in enumerate(saturating(asked).requests)
        )
    )


async def throughput(url: str, replay: Replay) -> Played:
    """What `replay` sees through the gateway at `url`, measured as a study measures."""
    async with _client() as http:
        return await Player(url, MODEL, http, _IDLE_S).measure(replay, lambda *_: False, MEASURE_S)


async def in_turns(
    urls: Sequence[str], replay: Replay, rounds: int, model: str = MODEL
) -> list[list[float]]:
    """Tokens/s of each engine in each of `rounds`, in which they serve `replay` one after another:
    what this machine does besides meets all of them alike. A round before them does not count.

    Raises `Unavailable` when a request is not served whole.
    """
    rates: list[list[float]] = [[] for _ in urls]
    async with _client() as http:
        players = [Player(url, model, http, _IDLE_S) for url in urls]
        for number in range(rounds + 1):
            for player, found in zip(players, rates, strict=True):
                played = await player.play(replay, lambda *_: False)
                if played.failed:
                    raise Unavailable(f"{played.failed} request(s) were not served whole")
                if number:
                    found.extend(played.rates)
    return rates


async def right_answers(url: str, asked: Sequence[Question]) -> list[bool]:
    """Whether each question is answered with exactly what is right, greedily.

    Raises `Unavailable` when one is not answered.
    """
    turn = asyncio.Semaphore(_AT_ONCE)

    async def ask(http: aiohttp.ClientSession, one: Question) -> bool:
        body = {"model": MODEL, "prompt": one.prompt, "max_tokens": 16, "temperature": 0}
        async with turn, http.post(f"{url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                raise Unavailable(f"a question got status {answer.status}: {await answer.text()}")
            text = (await answer.json())["choices"][0]["text"]
            return str(text).strip() == one.answer

    async with _client() as http:
        return list(await asyncio.gather(*(ask(http, one) for one in asked)))


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The exact two-sided p-value that paired answers are as often right after as before.

    Binomial over the pairs that differ (McNemar 1947); 1 where none does.
    """
    lost = sum(1 for one, other in zip(before, after, strict=True) if one and not other)
    won = sum(1 for one, other in zip(before, after, strict=True) if other and not one)
    changed = lost + won
    if changed == 0:
        return 1.0
    at_most = sum(comb(changed, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * at_most / float(2**changed))


@dataclass(slots=True)
class Lost:
    """How the requests of users ended."""

    served: int = 0
    failed: int = 0
    truncated: int = 0
    why: list[str] = field(default_factory=list)


class Users:
    """People who ask all the time, each as soon as the answer before has come."""

    def __init__(self, url: str, asked: Sequence[Question]) -> None:
        self._url = f"{url}/v1/completions"
        self._asked = asked
        self._numbers = count()
        self._wanted, self._think_s = 0, 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession | None = None
        self.ends = Lost()

    def be(self, many: int, think_s: float = 0.0) -> None:
        """So many of them from now on, who think so long after each answer; who goes finishes
        first."""
        self._wanted, self._think_s = many, think_s
        self._tasks = [task for task in self._tasks if not task.done()]
        for number in range(len(self._tasks), many):
            self._tasks.append(asyncio.create_task(self._one(number)))

    async def leave(self) -> None:
        """All go, once they have their answers."""
        self.be(0)
        await asyncio.gather(*self._tasks)
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def _one(self, number: int) -> None:
        while number < self._wanted:
            asked = next(self._numbers)
            await self._ask(self._asked[asked * 37 % len(self._asked)], f"session-{asked // 3}")
            await asyncio.sleep(self._think_s)

    async def _ask(self, question: Question, session: str) -> None:
        self._http = self._http or _client()
        body = {
            "model": MODEL, "prompt": question.prompt, "max_tokens": ANSWER_TOKENS,
            "ignore_eos": True, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        begun, tail, status = False, b"", 0
        try:
            headers = {"X-Session-Id": session}
            async with self._http.post(self._url, json=body, headers=headers) as answer:
                status = answer.status
                async for chunk in answer.content.iter_any():
                    begun, tail = True, (tail + chunk)[-400:]
        except (aiohttp.ClientError, TimeoutError) as error:
            self.ends.why.append(f"{type(error).__name__}: {error}")
        if status == 200 and b"data: [DONE]" in tail and b'"error"' not in tail:
            self.ends.served += 1
            return
        if status == 200 and begun:
            self.ends.truncated += 1
        else:
            self.ends.failed += 1
        self.ends.why.append(f"{status} {tail[-200:]!r}")


def _client() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=_IDLE_S)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
