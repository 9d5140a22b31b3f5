"""The registry cache on Redis: which agents are alive, and small values that may be forgotten."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import asyncio as redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from optiinfra.schemas.errors import Unavailable

HEARTBEAT_TTL_S = 60.0
REMEMBERED = timedelta(days=30)
TIMEOUT_S = 2.0
SCAN_PAGE = 500


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What an agent last said of itself, and when."""

    agent: str
    at: datetime
    facts: Mapping[str, Any]


class RegistryCache:
    """A cache only: PostgreSQL stays the truth, and everything here may vanish.

    `url` is `redis(s)://…` or `memory://` (this object's own, in process). Keys start with
    `prefix`. `Unavailable` when the server does not answer within two seconds.
    """

    def __init__(self, url: str, *, prefix: str = "optiinfra:") -> None:
        self._prefix = prefix
        self._redis = _client(url)

    async def heartbeat(
        self,
        tenant: str,
        agent: str,
        *,
        at: datetime,
        facts: Mapping[str, Any] | None = None,
        ttl_s: float = HEARTBEAT_TTL_S,
    ) -> None:
        """Note that an agent lives; it counts as alive for `ttl_s` from now."""
        beat = json.dumps({"agent": agent, "at": at.isoformat(), "facts": dict(facts or {})})
        forgotten = (at - REMEMBERED).timestamp()
        async with self._answering(), self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._agent_key(tenant, agent), beat, px=_milliseconds(ttl_s))
            pipe.zadd(self._seen_key(tenant), {agent: at.timestamp()}, gt=True)
            pipe.zremrangebyscore(self._seen_key(tenant), "-inf", forgotten)
            await pipe.execute()

    async def alive(self, tenant: str) -> list[Heartbeat]:
        """The agents of a tenant whose last heartbeat still counts, by name."""
        async with self._answering():
            seen = await self._redis.zrange(self._seen_key(tenant), 0, -1)
            agents = sorted(str(agent) for agent in seen)
            if not agents:
                return []
            found = await self._redis.mget([self._agent_key(tenant, agent) for agent in agents])
        return [_heartbeat(str(beat)) for beat in found if beat is not None]

    async def last_seen(self, tenant: str, agent: str) -> datetime | None:
        """When an agent last gave a heartbeat, alive or not; None when unknown."""
        async with self._answering():
            at_s = await self._redis.zscore(self._seen_key(tenant), agent)
        return None if at_s is None else datetime.fromtimestamp(at_s, UTC)

    async def set_json(self, key: str, value: Any, *, ttl_s: float) -> None:
        """Keep a JSON value for `ttl_s` seconds."""
        async with self._answering():
            await self._redis.set(self._prefix + key, json.dumps(value), px=_milliseconds(ttl_s))

    async def get_json(self, key: str) -> Any | None:
        """The value kept under `key`, or None."""
        async with self._answering():
            found = await self._redis.get(self._prefix + key)
        return None if found is None else json.loads(found)

    async def invalidate(self, prefix: str) -> int:
        """Forget every key that starts with `prefix`; how many there were."""
        pattern = _escape(self._prefix + prefix) + "*"
        forgotten = 0
        async with self._answering():
            keys = [key async for key in self._redis.scan_iter(pattern, count=SCAN_PAGE)]
            for start in range(0, len(keys), SCAN_PAGE):
                forgotten += await self._redis.unlink(*keys[start : start + SCAN_PAGE])
        return forgotten

    async def ping(self) -> None:
        """Ask whether the server answers."""
        async with self._answering():
            await self._redis.ping()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _agent_key(self, tenant: str, agent: str) -> str:
        return f"{self._prefix}agent:{json.dumps([tenant, agent])}"

    def _seen_key(self, tenant: str) -> str:
        return f"{self._prefix}seen:{tenant}"

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise Unavailable(f"Redis does not answer: {error}") from error


def _client(url: str) -> redis.Redis:
    if url.startswith("memory://"):
        from fakeredis import FakeServer
        from fakeredis.aioredis import FakeRedis

        fake: redis.Redis = FakeRedis(server=FakeServer(), decode_responses=True)
        return fake
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        health_check_interval=15,
    )


def _heartbeat(beat: str) -> Heartbeat:
    found = json.loads(beat)
    return Heartbeat(
        agent=found["agent"], at=datetime.fromisoformat(found["at"]), facts=found["facts"]
    )


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _escape(text: str) -> str:
    """Take from Redis' pattern signs their meaning."""
    return "".join(f"\\{sign}" if sign in "*?[]\\^-" else sign for sign in text)
