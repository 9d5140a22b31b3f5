"""Scrapes every replica of every deployment, and says what was read and what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from optiinfra.agents.base.agent import Clock
from optiinfra.agents.collectors.fleet import ReplicaSource, scrapable
from optiinfra.agents.collectors.scrape import EngineScraper, ReplicaReadings
from optiinfra.events.facts import Fact, MetricsMeasured, TelemetryGap
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.errors import Unavailable

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of scraping gave for one deployment."""

    deployment: Deployment
    readings: tuple[ReplicaReadings, ...]


class Sensing:
    """One agent's view of its deployments; remembers which gaps it has told of already."""

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        replicas: ReplicaSource,
        scraper: EngineScraper,
        clock: Clock,
    ) -> None:
        self._deployments = deployments
        self._replicas = replicas
        self._scraper = scraper
        self._clock = clock
        self._told: dict[tuple[str, str], frozenset[str]] = {}

    async def scrape(self) -> Sequence[Round]:
        """All deployments at once; one whose replicas cannot be listed is left out, and logged."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._round(d)) for d in self._deployments.values()]
        return [found for task in tasks if (found := task.result()) is not None]

    def facts(self, rounds: Sequence[Round]) -> list[Fact]:
        """Readings of each replica, and its gaps when they are not the same as before."""
        facts: list[Fact] = []
        for one in rounds:
            self._forget(one)
            for readings in one.readings:
                if readings.samples:
                    facts.append(_measured(one.deployment, readings))
                gap = self._gap(one.deployment, readings)
                if gap is not None:
                    facts.append(gap)
        return facts

    async def _round(self, deployment: Deployment) -> Round | None:
        try:
            replicas = await self._replicas.replicas(deployment.tenant, deployment.id)
        except Unavailable as unreachable:
            _log.warning("replicas_not_listed", deployment=deployment.id, why=str(unreachable))
            return None
        readings = await self._scraper.scrape(deployment, scrapable(replicas))
        return Round(deployment, tuple(readings))

    def _forget(self, one: Round) -> None:
        """A replica that is gone and comes back is told of afresh."""
        present = {readings.replica for readings in one.readings}
        for key in list(self._told):
            if key[0] == one.deployment.id and key[1] not in present:
                del self._told[key]

    def _gap(self, deployment: Deployment, readings: ReplicaReadings) -> TelemetryGap | None:
        key = (deployment.id, readings.replica)
        missing = frozenset(gap.metric for gap in readings.gaps)
        if missing == self._told.get(key, frozenset()):
            return None
        self._told[key] = missing
        if not missing:
            _log.info("telemetry_gap_closed", deployment=deployment.id, replica=readings.replica)
            return None
        detail = "; ".join(f"{g.metric} {g.reason.value}: {g.detail}" for g in readings.gaps)
        _log.warning(
            "telemetry_gap", deployment=deployment.id, replica=readings.replica, detail=detail
        )
        return TelemetryGap(
            tenant=deployment.tenant,
            deployment=deployment.id,
            replica=readings.replica,
            metrics=tuple(sorted(missing)),
            engine=deployment.engine.value,
            engine_version=readings.version,
            detail=detail,
            at=self._clock(),
        )


def _measured(deployment: Deployment, readings: ReplicaReadings) -> MetricsMeasured:
    return MetricsMeasured(
        tenant=deployment.tenant,
        deployment=deployment.id,
        family="performance",
        samples=readings.samples,
    )
