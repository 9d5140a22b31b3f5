"""The registry cache behaves the same on the in-process Redis and on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.redis import RegistryCache

AT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)


async def until(ask: Callable[[], Awaitable[object]], expected: object) -> None:
    async with asyncio.timeout(5):
        while await ask() != expected:  # noqa: ASYNC110 - no event tells of an expiry
            await asyncio.sleep(0)


@pytest.fixture(params=["memory", "server"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[RegistryCache]:
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    cache = RegistryCache(url, prefix=f"test-{uuid4().hex}:")
    yield cache
    await cache.invalidate("")
    await cache.aclose()


async def test_an_agent_that_gave_a_heartbeat_is_alive(cache: RegistryCache) -> None:
    await cache.heartbeat("acme", "cost-1", at=AT, facts={"version": "1", "load": 0.5})
    await cache.heartbeat("acme", "application-1", at=AT)
    alive = await cache.alive("acme")
    assert [beat.agent for beat in alive] == ["application-1", "cost-1"]
    assert alive[1].at == AT
    assert alive[1].facts == {"version": "1", "load": 0.5}


async def test_an_agent_without_heartbeats_is_lost_but_was_seen(cache: RegistryCache) -> None:
    await cache.heartbeat("acme", "cost-1", at=AT, ttl_s=0.001)
    await until(lambda: cache.alive("acme"), [])
    assert await cache.last_seen("acme", "cost-1") == AT
    assert await cache.last_seen("acme", "never") is None


async def test_a_late_heartbeat_does_not_turn_last_seen_back(cache: RegistryCache) -> None:
    await cache.heartbeat("acme", "cost-1", at=AT)
    await cache.heartbeat("acme", "cost-1", at=AT - timedelta(seconds=30))
    assert await cache.last_seen("acme", "cost-1") == AT


async def test_agents_not_seen_for_a_month_are_forgotten(cache: RegistryCache) -> None:
    await cache.heartbeat("acme", "old", at=AT - timedelta(days=31))
    await cache.heartbeat("acme", "cost-1", at=AT)
    assert await cache.last_seen("acme", "old") is None
    assert [beat.agent for beat in await cache.alive("acme")] == ["cost-1"]


async def test_tenants_are_apart_even_with_odd_names(cache: RegistryCache) -> None:
    await cache.heartbeat("a:b", "c", at=AT)
    await cache.heartbeat("a", "b:c", at=AT)
    assert [beat.agent for beat in await cache.alive("a:b")] == ["c"]
    assert [beat.agent for beat in await cache.alive("a")] == ["b:c"]
    assert await cache.alive("other") == []


async def test_values_are_kept_until_they_expire(cache: RegistryCache) -> None:
    await cache.set_json("deployment/chat", {"replicas": [1, None, "x"]}, ttl_s=60)
    assert await cache.get_json("deployment/chat") == {"replicas": [1, None, "x"]}
    assert await cache.get_json("absent") is None
    await cache.set_json("short", 1, ttl_s=0.001)
    await until(lambda: cache.get_json("short"), None)


async def test_invalidation_forgets_exactly_what_starts_so(cache: RegistryCache) -> None:
    for key in ("a*b/1", "a*b/2", "axb/1", "a*c"):
        await cache.set_json(key, key, ttl_s=60)
    assert await cache.invalidate("a*b/") == 2
    assert await cache.get_json("a*b/1") is None
    assert await cache.get_json("axb/1") == "axb/1"
    assert await cache.invalidate("nothing") == 0


async def test_the_cache_answers_a_ping(cache: RegistryCache) -> None:
    await cache.ping()


async def test_an_absent_server_is_unavailable() -> None:
    cache = RegistryCache("redis://127.0.0.1:9/0")
    with pytest.raises(Unavailable, match="does not answer"):
        await cache.ping()
    await cache.aclose()
