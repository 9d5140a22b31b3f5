"""A few real requests to a new engine before it gets those of users."""

from __future__ import annotations

import asyncio
from typing import Protocol

import httpx
import structlog
from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Replica

_WORDS = "Count on: " + " ".join(map(str, range(400)))
_log = structlog.get_logger()


class WarmUp(Protocol):
    """Brings an engine to the speed at which it will be judged, and shows that it answers."""

    async def __call__(self, replica: Replica, model: str, within_s: float) -> str | None:
        """Why the replica cannot take users' requests; None when it can."""
        ...


class WarmUpPolicy(Value):
    """`rounds` times `at_once` requests, each with a short and with a long prompt."""

    rounds: int = Field(default=2, ge=1)
    at_once: int = Field(default=4, ge=1)
    answer_tokens: int = Field(default=16, ge=1)
    limit_s: float = Field(default=120.0, gt=0)


class CompletionWarmUp:
    """Asks the engine's own `/v1/completions`, past the gateway, as every engine has it."""

    def __init__(self, http: httpx.AsyncClient, policy: WarmUpPolicy | None = None) -> None:
        self._http = http
        self._policy = policy or WarmUpPolicy()

    async def __call__(self, replica: Replica, model: str, within_s: float) -> str | None:
        """All requests must be answered with 200 within the limit, and within `within_s`."""
        limit_s = min(within_s, self._policy.limit_s)
        url = f"{(replica.url or '').rstrip('/')}/v1/completions"
        try:
            async with asyncio.timeout(limit_s):
                for _ in range(self._policy.rounds):
                    refused = await self._round(url, model)
                    if refused is not None:
                        return refused
        except TimeoutError:
            return f"its warm-up was not over after {limit_s:g} s"
        _log.info("replica.warmed_up", replica=replica.id)
        return None

    async def _round(self, url: str, model: str) -> str | None:
        prompts = [prompt for _ in range(self._policy.at_once) for prompt in ("Hello", _WORDS)]
        answers = await asyncio.gather(*(self._ask(url, model, prompt) for prompt in prompts))
        return next((answer for answer in answers if answer is not None), None)

    async def _ask(self, url: str, model: str, prompt: str) -> str | None:
        body = {"model": model, "prompt": prompt, "max_tokens": self._policy.answer_tokens}
        try:
            answer = await self._http.post(url, json=body, timeout=self._policy.limit_s)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"it did not answer a warm-up request: {type(error).__name__}"
        if answer.status_code != httpx.codes.OK:
            return f"it answered a warm-up request with HTTP {answer.status_code}"
        return None
