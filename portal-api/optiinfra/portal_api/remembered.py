"""Series of ranges that are over, remembered for an hour; forgotten when their deployment moves."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Protocol

import structlog

from optiinfra.portal_api.live.frames import Frame
from optiinfra.portal_api.live.hub import Hub
from optiinfra.schemas.errors import Unavailable

TTL_S = 3_600.0
REST_S = 1.0
"""A burst of events is taken together."""
MAX_KNOWN_CHANGES = 10_000

log = structlog.get_logger()


class Cache(Protocol):
    """What is needed of the cache; it may forget anything, and be away."""

    async def get_json(self, key: str) -> Any | None: ...
    async def set_json(self, key: str, value: Any, *, ttl_s: float) -> None: ...
    async def invalidate(self, prefix: str) -> int: ...


class RememberedSeries:
    """Answers as JSON values; a cache that is away is as good as an empty one."""

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache

    async def get(self, tenant: str, deployment: str, asked: str) -> Any | None:
        """The answer to the same question, if it is known."""
        if self._cache is None:
            return None
        try:
            return await self._cache.get_json(_key(tenant, deployment) + asked)
        except Unavailable as away:
            log.warning("series are not remembered", reason=str(away))
            return None

    async def put(self, tenant: str, deployment: str, asked: str, answer: Any) -> None:
        if self._cache is None:
            return
        try:
            await self._cache.set_json(_key(tenant, deployment) + asked, answer, ttl_s=TTL_S)
        except Unavailable as away:
            log.warning("series are not remembered", reason=str(away))

    async def forget(self, tenant: str, deployment: str) -> None:
        """Raises `Unavailable`."""
        if self._cache is not None:
            await self._cache.invalidate(_key(tenant, deployment))


class Forgetting:
    """Forgets the series of every deployment that an event is about."""

    def __init__(self, hub: Hub, series: RememberedSeries, *, rest_s: float = REST_S) -> None:
        self._hub = hub
        self._series = series
        self._rest_s = rest_s
        self._deployments: dict[str, str] = {}
        self._left: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Until it is cancelled. What left the ring before it was read is as old as the cache's
        memory allows, so nothing is made up for."""
        cursor = 0
        while True:
            changed = self._hub.changed
            if cursor > self._hub.head:
                cursor = self._hub.floor
            frames = self._hub.after(max(cursor, self._hub.floor))
            if frames:
                self._left |= {one for frame in frames if (one := self._about(frame)) is not None}
                cursor = frames[-1].sequence
                await asyncio.sleep(0)  # others have their turn between chunks
            elif self._left:
                await self._forget()
                await asyncio.sleep(self._rest_s)
            else:
                await changed.wait()

    async def _forget(self) -> None:
        try:
            for one in sorted(self._left):
                await self._series.forget(*one)
                self._left.discard(one)
        except Unavailable as away:
            log.warning("series are not forgotten yet", reason=str(away))

    def _about(self, frame: Frame) -> tuple[str, str] | None:
        """The deployment of an event; that of a change is known from its first event."""
        fact = json.loads("{" + frame.cloud_event + "}")["data"]
        if not isinstance(fact, dict):
            return None
        parts = [fact, *(part for part in fact.values() if isinstance(part, dict))]
        deployment = next((one["deployment"] for one in parts if one.get("deployment")), None)
        change = next((one["change"] for one in parts if one.get("change")), None)
        proposal = fact.get("recommendation")
        if change is None and isinstance(proposal, dict):
            change = proposal.get("id")
        if change is not None and deployment is not None:
            self._know(change, deployment)
        found = deployment or self._deployments.get(change or "")
        return (frame.tenant, found) if found else None

    def _know(self, change: str, deployment: str) -> None:
        self._deployments[change] = deployment
        if len(self._deployments) > MAX_KNOWN_CHANGES:
            del self._deployments[next(iter(self._deployments))]


def _key(tenant: str, deployment: str) -> str:
    return f"series:{tenant}:{deployment}:"
