"""A study: what binds a deployment, which knobs would free it, and what was measured of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from optiinfra.agents.actuators.port import Configurable
from optiinfra.agents.base.agent import Clock
from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.base.recent import RecentChanges, held_back
from optiinfra.agents.collectors.fleet import ReplicaSource, serving
from optiinfra.agents.collectors.stored import SIGNALS, stored_window
from optiinfra.agents.performance.execute import placement_of
from optiinfra.agents.performance.knobs import space_for
from optiinfra.agents.performance.replay import Replay, replay_of
from optiinfra.agents.performance.search import Budget, Limits, Search
from optiinfra.agents.performance.staging import Staging
from optiinfra.agents.performance.tuning_policy import Tuning, common_cause, proposal
from optiinfra.events.facts import Fact, RecommendationProposed
from optiinfra.schemas.deployment import Deployment, Provider, Replica
from optiinfra.schemas.ids import DeploymentId, NewId
from optiinfra.schemas.recommendation import Placement, Recommendation, RolloutPlan
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.serving.bottleneck import Finding, find
from optiinfra.serving.cards import PerfCard
from optiinfra.serving.curves import faster
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.signals import Beside, signals, while_queued

_log = structlog.get_logger(__name__)
_STALE_S = 30.0
_KINDS = ("batch_tuning", "kv_cache_tuning")


class Traffic(Protocol):
    """What the gateway has sampled of a deployment's traffic."""

    async def since(
        self, tenant: str, deployment: str, at: datetime, most: int
    ) -> Sequence[AnswerSample]:
        """Samples from `at` on, the newest `most` of them. Raises `Unavailable`."""
        ...


Exclusive = Callable[[str], AbstractAsyncContextManager[bool]]
"""Holds a name for as long as the block runs; False where somebody else has it."""


@dataclass(frozen=True, slots=True)
class Card:
    """The perf card of a deployment, and how many times as fast as it the server runs."""

    card: PerfCard
    time_scale: float


@dataclass(frozen=True, slots=True)
class StudyPorts:
    """What studies look at and work with."""

    replicas: ReplicaSource
    telemetry: Telemetry
    configurable: Mapping[Provider, Configurable]
    declared: Mapping[DeploymentId, EngineConfig]
    cards: Mapping[DeploymentId, Card]
    traffic: Traffic
    recent: RecentChanges
    staging: Callable[[Deployment, Placement, Tuning], Staging]
    sweep: Callable[[Deployment], Awaitable[int]]
    """Ends the staging replicas of a deployment; how many there were."""
    exclusive: Exclusive
    rollout: RolloutPlan
    rollback_s: float
    clock: Clock
    new_id: NewId


@dataclass(frozen=True, slots=True)
class _Subject:
    """A deployment that is bound by something that can be tuned."""

    deployment: Deployment
    policy: Tuning
    finding: Finding
    engine: EngineConfig
    like: Replica
    served_tokens_per_s: float
    """Of one replica while requests wait: what it can at present."""


class Studies:
    """Looks at each deployment that may be tuned, and studies the one that is bound.

    Between rounds it remembers only when it last studied what, so as not to do it again at once.
    """

    def __init__(
        self,
        deployments: Mapping[DeploymentId, Deployment],
        policies: Mapping[DeploymentId, Tuning],
        ports: StudyPorts,
    ) -> None:
        self._deployments = deployments
        self._policies = policies
        self._ports = ports
        self._rests_until: dict[DeploymentId, datetime] = {}
        self._said: dict[DeploymentId, str] = {}
        self._unswept = set(policies)

    @property
    def every_s(self) -> float:
        return min((one.every_s for one in self._policies.values()), default=60.0)

    async def round(self) -> Sequence[Fact]:
        """Proposals of one round; a study in it lasts as long as its budget says."""
        facts: list[Fact] = []
        for name, policy in self._policies.items():
            await self._sweep(self._deployments[name])
            found = await self._one(self._deployments[name], policy)
            if isinstance(found, Recommendation):
                facts.append(RecommendationProposed(recommendation=found))
            else:
                self._say(name, found)
        return facts

    async def _one(self, deployment: Deployment, policy: Tuning) -> Recommendation | str:
        now, ports = self._ports.clock(), self._ports
        rests_until = self._rests_until.get(deployment.id)
        if rests_until is not None and now < rests_until:
            return f"it was studied lately, and rests until {rests_until}"
        for kind in _KINDS:
            recent = await ports.recent.recent(deployment.tenant, deployment.id, kind)
            held = held_back(recent, now, policy.cooldown_s)
            if held is not None:
                return held
        subject = await self._subject(deployment, policy)
        if isinstance(subject, str):
            return subject
        async with self._lock(deployment) as is_ours:
            return await self._study(subject) if is_ours else "another instance studies it"

    async def _sweep(self, deployment: Deployment) -> None:
        """Once after a start: a study that was killed must not be paid for any longer."""
        if deployment.id not in self._unswept:
            return
        async with self._lock(deployment) as is_ours:
            left = await self._ports.sweep(deployment) if is_ours else 0
        self._unswept.discard(deployment.id)
        if left:
            _log.warning("staging.swept", deployment=deployment.id, replicas=left)

    def _lock(self, deployment: Deployment) -> AbstractAsyncContextManager[bool]:
        return self._ports.exclusive(f"study:{deployment.tenant}:{deployment.id}")

    async def _subject(self, deployment: Deployment, policy: Tuning) -> _Subject | str:
        """What binds which engine; or why nothing is studied."""
        found = await self._ports.replicas.replicas(deployment.tenant, deployment.id)
        replicas = {one.id: one for one in serving(found)}
        if not replicas:
            return "no replica serves"
        engines = {name: await self._engine(deployment, one) for name, one in replicas.items()}
        now = self._ports.clock()
        window = await stored_window(
            self._ports.telemetry, deployment, SIGNALS,
            since=now - timedelta(seconds=policy.window_s), until=now, stale_s=_STALE_S,
        )  # fmt: skip
        findings = {
            name: find(signals(window, name, self._beside(deployment, engines[name])),
                       deployment.slo)
            for name in replicas
        }  # fmt: skip
        common = common_cause(findings.values())
        if common is None:
            return _nothing_binds(findings)
        like = next(one for name, one in replicas.items() if findings[name] is common)
        engine = engines[like.id]
        if engine is None:
            return f"{common.cause.value} binds it, and nothing says what {like.id} runs with"
        rate = while_queued(window, "generation_tokens_per_s", like.id)
        if isinstance(rate, Unknown):
            return f"{common.cause.value} binds it, and its throughput is unknown: {rate.detail}"
        return _Subject(deployment, policy, common, engine, like, rate.value)

    async def _engine(self, deployment: Deployment, replica: Replica) -> EngineConfig | None:
        """What a replica was started with."""
        actuator = self._ports.configurable.get(replica.instance.provider)
        launched = None
        if actuator is not None:
            launched = await actuator.engine(deployment.tenant, deployment.id, replica.id)
        return launched or self._ports.declared.get(deployment.id)

    def _beside(self, deployment: Deployment, engine: EngineConfig | None) -> Beside:
        cap = engine.max_num_seqs if engine else None
        reading: Reading = Unknown(reason=UnknownReason.NOT_CONFIGURED, detail="left to the engine")
        if cap is not None:
            reading = Known(value=cap)
        known = self._ports.cards.get(deployment.id)
        if known is None:
            return Beside(max_num_seqs=reading)
        return Beside(max_num_seqs=reading, card=known.card, time_scale=known.time_scale)

    async def _study(self, subject: _Subject) -> Recommendation | str:
        deployment, policy, cause = subject.deployment, subject.policy, subject.finding.cause
        space = space_for(cause, subject.engine)
        if space.reason:
            return f"{cause.value} binds it: {space.reason}"
        replay = await self._replay(subject)
        if isinstance(replay, str):
            return f"{cause.value} binds it: {replay}"
        _log.info(
            "study.begun", deployment=deployment.id, cause=cause.value,
            knobs={knob.name: knob.choices for knob in space.knobs},
            requests=len(replay.requests), tokens=replay.output_tokens,
        )  # fmt: skip
        staging = self._ports.staging(deployment, placement_of(subject.like), policy)
        search = Search(space, Limits(), Budget(policy.trials, policy.budget_s))
        await staging.clear()
        try:
            await _searched(search, staging, subject, replay)
        finally:
            await staging.clear()
        rest = timedelta(seconds=policy.cooldown_s)
        self._rests_until[deployment.id] = self._ports.clock() + rest
        found = proposal(
            deployment, subject.finding, search.trials, search.best, policy,
            id=self._ports.new_id(), rollout=self._ports.rollout,
            rollback_s=self._ports.rollback_s, now=self._ports.clock(),
        )  # fmt: skip
        _log.info(
            "study.ended", deployment=deployment.id, trials=len(search.trials), why=search.ended,
            gain=faster(search.trials[0], search.best) if search.best else None,
        )  # fmt: skip
        return found

    async def _replay(self, subject: _Subject) -> Replay | str:
        policy, deployment = subject.policy, subject.deployment
        since = self._ports.clock() - timedelta(seconds=policy.traffic_s)
        samples = await self._ports.traffic.since(
            deployment.tenant, deployment.id, since, 2 * policy.requests
        )
        replay = replay_of(samples, policy.requests)
        if len(replay.requests) < policy.min_requests:
            return (
                f"only {len(replay.requests)} sampled requests can be replayed,"
                f" {policy.min_requests} are needed"
            )
        return replay.offering(policy.saturation * subject.served_tokens_per_s)

    def _say(self, deployment: DeploymentId, reason: str) -> None:
        """Once, and again when it is another."""
        if self._said.get(deployment) != reason:
            self._said[deployment] = reason
            _log.info("tuning.not_proposed", deployment=deployment, reason=reason)


async def _searched(search: Search, staging: Staging, subject: _Subject, replay: Replay) -> None:
    """Tries what the search asks for, the present configuration first: no latency may be over its
    objective, or over what it is with that.

    What the present one serves in staging says how much the others are asked for: telemetry may
    hold moments in which it served less than it could, and the fast ones would wait for requests.
    """
    slo, policy = subject.deployment.slo, subject.policy
    while (knobs := search.ask()) is not None:
        engine = search.space.config(knobs)
        trial = await staging.tried(engine, dict(knobs), replay, search.hopeless)
        search.tell(trial)
        if len(search.trials) == 1:
            search.set_limits(
                Limits(
                    ttft_p95_s=_at_least(trial.ttft_p95_s, slo.ttft_p95_s),
                    tpot_p95_s=_at_least(trial.tpot_p95_s, slo.tpot_p95_s),
                    kv_usage=policy.kv_limit,
                )
            )
            most = max(subject.served_tokens_per_s, trial.throughput or 0.0)
            replay = replay.offering(policy.saturation * most)


def _at_least(reading: Reading, objective: float) -> float:
    return max(reading.value, objective) if isinstance(reading, Known) else objective


def _nothing_binds(findings: Mapping[str, Finding]) -> str:
    missing = {one.signal for found in findings.values() for one in found.missing}
    if missing:
        return f"what binds it is unknown without {', '.join(sorted(missing))}"
    causes = sorted({one.cause.value for one in findings.values()})
    return f"nothing that can be tuned binds it ({', '.join(causes)})"
