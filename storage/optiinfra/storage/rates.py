"""How often somebody may try, counted in Redis for all processes or in this one's memory."""

from __future__ import annotations

import math
import time
from enum import StrEnum

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool

from optiinfra.schemas.errors import TooMany

TIMEOUT_S = 1.0
MEMORY = "memory://"

log = structlog.get_logger()


class Bucket(StrEnum):
    """What is counted apart from the rest."""

    SIGN_IN = "sign-in"
    """Sign-ins from one address."""
    REFUSED = "refused"
    """Bad tokens from one address."""
    DECISIONS = "decisions"
    """What one person changes."""


PER_MINUTE = {Bucket.SIGN_IN: 30, Bucket.REFUSED: 60, Bucket.DECISIONS: 60}


class Rates:
    """Counts by the minute. While Redis is away each process counts for itself: a person who has
    to act is not kept from it by a cache, and nobody gets more than a process allows.
    """

    def __init__(self, url: str = MEMORY, *, prefix: str = "optiinfra:rates") -> None:
        self._here = FixedWindowRateLimiter(MemoryStorage())
        self._pool: ConnectionPool | None = None
        self._shared = self._here
        if url != MEMORY:
            self._pool = ConnectionPool.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
            )
            shared = RedisStorage(
                f"async+{url}",
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix=prefix,
                connection_pool=self._pool,  # type: ignore[arg-type]  # it is handed on to redis
            )
            self._shared = FixedWindowRateLimiter(shared)

    async def spend(self, bucket: Bucket, who: str) -> None:
        """One more try of `who`. Raises `TooMany` saying when the next is allowed."""
        try:
            await self._spend(self._shared, bucket, who)
        except StorageError as away:
            log.warning("rates.counted_here", error=repr(away.storage_error))
            await self._spend(self._here, bucket, who)

    async def _spend(self, limiter: FixedWindowRateLimiter, bucket: Bucket, who: str) -> None:
        most = PER_MINUTE[bucket]
        allowed = RateLimitItemPerMinute(most)
        if not await limiter.hit(allowed, bucket.value, who):
            stats = await limiter.get_window_stats(allowed, bucket.value, who)
            raise TooMany(
                f"more than {most} a minute ({bucket.value})",
                max(1.0, math.ceil(stats.reset_time - time.time())),
                hint="wait, then try again",
            )

    async def aclose(self) -> None:
        """Gives the connections back."""
        if self._pool is not None:
            await self._pool.aclose()
