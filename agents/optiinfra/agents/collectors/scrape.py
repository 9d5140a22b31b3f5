"""Scrapes the metrics of serving engines over HTTP and remembers the scrape before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from optiinfra.agents.base.agent import Clock
from optiinfra.schemas.deployment import Deployment, Replica
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.telemetry import Sample, Unknown, UnknownReason
from optiinfra.serving.contracts import Contract, VersionAt, contract_for
from optiinfra.serving.exposition import parse
from optiinfra.serving.scrapes import Gap, Scrape, read, unread

_MAX_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class ReplicaReadings:
    """What one scrape of one replica gave."""

    replica: str
    version: str | None
    samples: tuple[Sample, ...]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class _Build:
    version: str | None
    emulated: bool


_UNKNOWN_BUILD = _Build(None, emulated=False)


class EngineScraper:
    """Scrapes all replicas of a deployment at once.

    The scrape before is kept in memory only, since losing it costs one window of rates. `timeout_s`
    bounds one replica; what does not answer in time is `Unknown(UNREACHABLE)`.
    """

    def __init__(self, client: httpx.AsyncClient, clock: Clock, *, timeout_s: float = 2.0) -> None:
        self._client = client
        self._clock = clock
        self._timeout_s = timeout_s
        self._before: dict[tuple[str, str], Scrape] = {}
        self._builds: dict[tuple[str, str], _Build] = {}

    async def scrape(
        self, deployment: Deployment, replicas: Sequence[Replica]
    ) -> Sequence[ReplicaReadings]:
        """One reading for each replica, in order; replicas that are gone are forgotten."""
        contract = contract_for(deployment.engine)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._replica(contract, one, deployment.model))
                for one in replicas
            ]
        self._forget(deployment.id, {one.id for one in replicas})
        return [task.result() for task in tasks]

    async def _replica(self, contract: Contract, replica: Replica, model: str) -> ReplicaReadings:
        key = (replica.deployment, replica.id)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await self._fetch(contract, replica, key)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            detail = str(error) or type(error).__name__
            found = Unknown(reason=UnknownReason.UNREACHABLE, detail=detail)
        if isinstance(found, Unknown):
            self._builds.pop(key, None)
            samples = unread(contract, replica.id, self._now(), found)
            gap = Gap("scrape", found.reason, found.detail)
            implausible = found.reason is UnknownReason.IMPLAUSIBLE
            return ReplicaReadings(replica.id, None, samples, (gap,) if implausible else ())
        readings = read(contract, replica.id, found, self._before.get(key), model=model)
        self._before[key] = found
        return ReplicaReadings(replica.id, found.version, readings.samples, readings.gaps)

    async def _fetch(
        self, contract: Contract, replica: Replica, key: tuple[str, str]
    ) -> Scrape | Unknown:
        if replica.url is None:
            return Unknown(reason=UnknownReason.UNREACHABLE, detail="it has no address yet")
        url = replica.url.rstrip("/")
        build = await self._build(contract.version_at, url, key)
        answer = await self._client.get(f"{url}/metrics")
        if answer.status_code != httpx.codes.OK:
            detail = f"/metrics answers {answer.status_code}"
            return Unknown(reason=UnknownReason.UNREACHABLE, detail=detail)
        if len(answer.content) > _MAX_BYTES:
            return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail="/metrics is too long")
        try:
            exposition = parse(answer.text)
        except Rejected as broken:
            return Unknown(reason=UnknownReason.IMPLAUSIBLE, detail=str(broken))
        emulated = build.emulated or replica.emulated
        return Scrape(self._now(), exposition, build.version, emulated)

    async def _build(self, at: VersionAt, url: str, key: tuple[str, str]) -> _Build:
        """What the engine says of its version, if anything; asked again after a failed scrape."""
        if key not in self._builds:
            self._builds[key] = await self._asked_build(at, url)
        return self._builds[key]

    async def _asked_build(self, at: VersionAt, url: str) -> _Build:
        for path in at.paths:
            build = _build_of(await self._client.get(f"{url}{path}"), at.field)
            if build.version is not None:
                return build
        return _UNKNOWN_BUILD

    def _forget(self, deployment: str, present: set[str]) -> None:
        gone = [
            key
            for key in (*self._before, *self._builds)
            if key[0] == deployment and key[1] not in present
        ]
        for key in gone:
            self._before.pop(key, None)
            self._builds.pop(key, None)

    def _now(self) -> datetime:
        """The clock in whole milliseconds, as the store keeps it: one scrape is one time."""
        now = self._clock().astimezone(UTC)
        return now.replace(microsecond=now.microsecond // 1000 * 1000)


def _build_of(answer: httpx.Response, field: str) -> _Build:
    if answer.status_code != httpx.codes.OK:
        return _UNKNOWN_BUILD
    try:
        body = answer.json()
    except ValueError:
        return _UNKNOWN_BUILD
    if not isinstance(body, dict):
        return _UNKNOWN_BUILD
    version = body.get(field)
    emulated = "emulat" in str(version).lower() or body.get("emulator") is True
    return _Build(version if isinstance(version, str) else None, emulated=emulated)
