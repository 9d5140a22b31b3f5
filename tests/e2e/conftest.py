"""An `optiinfra up` whose deployments move to spot, before a browser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from optiinfra.storage.testing.servers import reachable_home
from tests.e2e.browser import SLOW_MS, Stand, standing
from tests.up_stand import Up, api, fleet


async def users(gateway_url: str, models: list[str]) -> None:
    """Asks each model again and again, so that there is something to measure."""
    async with aiohttp.ClientSession() as http:
        while True:
            for model in models:
                body = {"model": model, "prompt": "Question: why?\nAnswer:", "max_tokens": 8}
                with suppress(aiohttp.ClientError):
                    async with http.post(f"{gateway_url}/v1/completions", json=body) as answer:
                        await answer.read()
            await asyncio.sleep(0.1)


def two_deployments() -> dict[str, Any]:
    """One to be decided on with the mouse, one with the keyboard; people are always asked."""
    content = fleet(rules={"revote_after_s": 1, "max_vote_rounds": 200})
    (chat,) = content["deployments"]
    search = {**chat, "id": "search", "model": "emulated-search"}
    return {**content, "deployments": [chat, search]}


@pytest.fixture(scope="module")
async def stand() -> AsyncIterator[Stand]:
    with reachable_home() as folder:
        async with standing(Up(folder, two_deployments())) as made:
            gateway = (made.session.gateway_url or "").rstrip("/")
            asking = asyncio.create_task(users(gateway, ["emulated-8b", "emulated-search"]))
            yield made
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking


@pytest.fixture(scope="module")
async def moved(stand: Stand) -> None:
    """The move of `chat` is over. It is approved here where no test has, so that each may run
    alone."""
    async with (
        asyncio.timeout(SLOW_MS / 1_000),
        api(stand.session) as http,
        http.stream("GET", "/sse", timeout=None) as said,
    ):
        async for line in said.aiter_lines():
            if line:
                continue  # a frame ends with an empty line; each may be the one that matters
            found = await http.get("/recommendations", params={"deployment": "chat"})
            for one in found.json()["items"]:
                if one["state"] == "completed":
                    return
                if one["state"] == "awaiting_approval":
                    await http.post(
                        f"/recommendations/{one['id']}/approve",
                        headers={"If-Match": f'"{one["version_hash"]}"'},
                        json={"reason": "a test"},
                    )
