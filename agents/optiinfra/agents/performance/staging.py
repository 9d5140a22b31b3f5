"""A staging replica: an engine of its own that serves a replay, and nobody's requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import structlog
from pydantic import Field

from optiinfra.agents.actuators.port import Actuator, LaunchSpec, NoCapacity
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.moving.warm_up import WarmUp
from optiinfra.agents.performance.replay import (
    Beside,
    Played,
    Player,
    Replay,
    Watch,
    client,
)
from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Deployment, Replica, ReplicaState
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.ids import DeploymentId, NewId
from optiinfra.schemas.recommendation import Placement
from optiinfra.schemas.telemetry import Known, Reading, Unknown
from optiinfra.schemas.tuning import KnobValue, TrialOutcome, TuningTrial
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.signals import NOT_READ

_log = structlog.get_logger(__name__)
_POLL_S = 0.5


class StagingPolicy(Value):
    """How long a staging replica may take; s."""

    ready_s: float = Field(default=900.0, gt=0)
    """Until it serves: the weights are loaded in that time."""
    idle_s: float = Field(default=120.0, gt=0)
    """Longest wait for bytes of an answer."""
    measure_s: float = Field(default=20.0, ge=0)
    """How long a replay is measured at least, again and again if it is shorter."""
    look_s: float = Field(default=1.0, gt=0)
    """How often the KV cache is looked at while a replay runs."""
    beside_best: bool = False
    """The fastest one so far stays, and serves the replay in turns with the next ones."""


@dataclass(frozen=True, slots=True)
class StagingPorts:
    """What a staging replica is made of."""

    actuator: Actuator
    warm_up: WarmUp
    scraper: EngineScraper
    new_id: NewId
    monotonic: Callable[[], float]


class _Ended(Exception):
    """The engine cannot be measured; says why."""


def staging_of(deployment: DeploymentId) -> DeploymentId:
    """The name under which staging replicas of `deployment` run: no agent counts them as its own,
    and no route leads to them."""
    return f"{deployment[:50]}-staging"


class Staging:
    """Tries configurations of one deployment's engine, one replica at a time, or beside the best.

    Whoever uses it holds the deployment's lock: two of them would end each other's replicas.
    """

    def __init__(
        self,
        deployment: Deployment,
        placement: Placement,
        ports: StagingPorts,
        policy: StagingPolicy | None = None,
    ) -> None:
        self._deployment = deployment
        self._aside = deployment.model_copy(update={"id": staging_of(deployment.id)})
        self._placement = placement
        self._ports = ports
        self._policy = policy or StagingPolicy()
        self._best: _Best | None = None

    async def clear(self) -> int:
        """Ends what stands, of an earlier study too; how many there were. Raises `Unavailable`."""
        self._best = None
        return await self._end()

    async def _end(self) -> int:
        """All but the best."""
        aside, actuator = self._aside, self._ports.actuator
        left = await actuator.replicas(aside.tenant, aside.id)
        ends = [one.id for one in left if self._best is None or one.id != self._best.replica.id]
        for replica in ends:
            await actuator.terminate(aside.tenant, aside.id, replica)
        return len(ends)

    async def tried(
        self, engine: EngineConfig, knobs: dict[str, KnobValue], replay: Replay, watch: Watch
    ) -> TuningTrial:
        """Starts `engine`, warms it up, measures `replay` and ends it, whatever happens.

        With `beside_best` the fastest one so far is kept until `clear`, and rates are told at the
        pace that the machine had when the first was measured. An engine that does not start, or
        loses requests, is a failed trial. Raises `Unavailable` when the actuator cannot be reached,
        and when the best one fails.
        """
        began_s = self._ports.monotonic()
        try:
            replica = await self._launched(engine)
            played, peak = await self._measured(replica, replay, watch)
            trial = _trial(knobs, played, peak)
            self._keep_best(replica, trial)
        except _Ended as ended:
            trial = TuningTrial(knobs=knobs, outcome=TrialOutcome.FAILED, reason=str(ended))
        finally:
            await asyncio.shield(self._end())
        took_s = self._ports.monotonic() - began_s
        _log.info("staging.tried", deployment=self._deployment.id, **_told(trial), took_s=took_s)
        return trial.model_copy(update={"took_s": round(took_s, 3)})

    def _keep_best(self, replica: Replica, trial: TuningTrial) -> None:
        rate, best = trial.throughput, self._best
        if not self._policy.beside_best or trial.outcome is not TrialOutcome.COMPLETE or not rate:
            return
        if best is None or rate > best.tokens_per_s:
            self._best = _Best(replica, rate)

    @asynccontextmanager
    async def side_by_side(self, engines: Sequence[EngineConfig]) -> AsyncIterator[list[Replica]]:
        """Warm replicas of these until the block ends. Raises `Unavailable` when one does not
        serve."""
        try:
            yield [await self._launched(engine) for engine in engines]
        except _Ended as ended:
            raise Unavailable(f"a staging replica cannot be measured: {ended}") from ended
        finally:
            await asyncio.shield(self.clear())

    async def _launched(self, engine: EngineConfig) -> Replica:
        """A warm replica that serves."""
        aside, ports = self._aside, self._ports
        spec = LaunchSpec(
            tenant=aside.tenant,
            deployment=aside.id,
            model=aside.model,
            placement=self._placement,
            token=ports.new_id(),
            engine=engine,
        )
        try:
            replica = (await ports.actuator.launch(spec)).replica
        except (Rejected, NoCapacity) as refused:
            raise _Ended(f"it could not be launched: {refused}") from refused
        stop_at = ports.monotonic() + self._policy.ready_s
        while replica.state is not ReplicaState.SERVING:
            if ports.monotonic() > stop_at:
                raise _Ended(f"it did not serve within {self._policy.ready_s:g} s")
            await asyncio.sleep(_POLL_S)
            found = await ports.actuator.replica(aside.tenant, aside.id, replica.id)
            if found is None or found.state is ReplicaState.STOPPED:
                raise _Ended("the engine ended before it served")
            replica = found
        cold = await ports.warm_up(replica, aside.model, stop_at - ports.monotonic())
        if cold is not None:
            raise _Ended(cold)
        return replica

    async def _measured(
        self, replica: Replica, replay: Replay, watch: Watch
    ) -> tuple[Played, Reading]:
        async with client() as http:
            player, best, beside = self._player(replica, http), self._best, None
            if best is not None:
                beside = Beside(self._player(best.replica, http), best.tokens_per_s)
            peak = _Peak()
            looking = asyncio.create_task(self._look(replica, peak))
            try:
                played = await player.measure(replay, watch, self._policy.measure_s, beside)
            finally:
                looking.cancel()
                await asyncio.wait({looking})
        found = await self._ports.actuator.replica(self._aside.tenant, self._aside.id, replica.id)
        if found is None or found.state is not ReplicaState.SERVING:
            raise _Ended(f"the engine ended amid the replay, after {played.served} answers")
        return played, peak.reading

    def _player(self, replica: Replica, http: aiohttp.ClientSession) -> Player:
        assert replica.url is not None
        return Player(replica.url, self._aside.model, http, self._policy.idle_s)

    async def _look(self, replica: Replica, peak: _Peak) -> None:
        """At the KV cache, until it is cancelled."""
        while True:
            (readings,) = await self._ports.scraper.scrape(self._aside, [replica])
            for sample in readings.samples:
                if sample.metric == "kv_usage_fraction":
                    peak.take(sample.reading)
            await asyncio.sleep(self._policy.look_s)


@dataclass(frozen=True, slots=True)
class _Best:
    """What stands, and serves."""

    replica: Replica
    tokens_per_s: float


@dataclass(slots=True)
class _Peak:
    """The highest reading so far."""

    reading: Reading = NOT_READ

    def take(self, now: Reading) -> None:
        if isinstance(now, Unknown):
            return
        if isinstance(self.reading, Unknown) or now.value > self.reading.value:
            self.reading = now


def _trial(knobs: dict[str, KnobValue], played: Played, peak: Reading) -> TuningTrial:
    outcome, reason = TrialOutcome.COMPLETE, ""
    if played.stopped:
        outcome, reason = TrialOutcome.PRUNED, "it could no longer become the best"
    elif played.failed:
        outcome, reason = TrialOutcome.FAILED, f"{played.failed} request(s) were not served whole"
    return TuningTrial(
        knobs=knobs,
        outcome=outcome,
        tokens_per_s=played.tokens_per_s,
        ttft_p95_s=played.ttft_p95_s,
        tpot_p95_s=played.tpot_p95_s,
        kv_usage_peak=peak,
        served=played.served,
        failed=played.failed,
        reason=reason,
    )


def _told(trial: TuningTrial) -> dict[str, object]:
    rate = trial.tokens_per_s
    return {
        "knobs": trial.knobs,
        "outcome": trial.outcome.value,
        "tokens_per_s": round(rate.value, 1) if isinstance(rate, Known) else None,
        "reason": trial.reason,
    }
