"""Puts the questions of votes and gates together from stored telemetry and the perf cards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from optiinfra.agents.base.agent import Clock
from optiinfra.agents.base.readings import Telemetry
from optiinfra.agents.collectors.fleet import ReplicaSource, serving
from optiinfra.agents.collectors.stored import (
    ARRIVALS,
    LATENCIES,
    LENGTHS,
    LOAD,
    offered,
    stored_window,
)
from optiinfra.agents.performance.gate_policy import ArmReadings, GateQuestion
from optiinfra.agents.performance.policy import (
    Headcount,
    PerformancePolicy,
    ReplacementQuestion,
    VoteQuestion,
    heads,
)
from optiinfra.events.commands import GateRequested, VoteRequested
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import SpotReplacement
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.serving.live import LoadModel, length_mix
from optiinfra.serving.simulation import LatencyForecast, Lengths
from optiinfra.serving.windows import Pooled, Window

_NO_CARD = Unknown(reason=UnknownReason.NOT_CONFIGURED, detail="the deployment has no perf card")
_ERRORS = "errors_per_s"


@dataclass(frozen=True, slots=True)
class Observation:
    """The fleet of one deployment as the telemetry store and the actuator show it."""

    deployment: Deployment
    window: Window
    serving: tuple[str, ...]


class Assessment:
    """Reads what a decision needs; the decisions themselves are in the policies."""

    def __init__(
        self,
        replicas: ReplicaSource,
        telemetry: Telemetry,
        models: Mapping[str, LoadModel],
        clock: Clock,
        policy: PerformancePolicy,
    ) -> None:
        self._replicas = replicas
        self._telemetry = telemetry
        self._models = models
        self._clock = clock
        self._policy = policy

    async def observe(self, deployment: Deployment) -> Observation:
        """The last `vote_window_s`. Raises `Unavailable` when a store or target is."""
        now = self._clock()
        window = await stored_window(
            self._telemetry,
            deployment,
            (*LATENCIES, *ARRIVALS, *LENGTHS),
            since=now - timedelta(seconds=self._policy.vote_window_s),
            until=now,
            stale_s=self._policy.stale_s,
        )
        found = await self._replicas.replicas(deployment.tenant, deployment.id)
        return Observation(deployment, window, tuple(one.id for one in serving(found)))

    async def question(
        self, request: VoteRequested, seen: Observation
    ) -> VoteQuestion | ReplacementQuestion | None:
        """What to decide; None for a kind of change whose effect is not modelled."""
        spec = request.recommendation.spec
        if isinstance(spec, SpotReplacement):
            return await self._replacement(spec, seen)
        count = heads(spec, len(seen.serving), self._policy)
        return None if count is None else await self._vote(count, seen)

    async def gate_question(self, request: GateRequested, deployment: Deployment) -> GateQuestion:
        """Both arms over [since, now]; the baseline only while the canary shares the traffic."""
        now = self._clock()
        window = await stored_window(
            self._telemetry,
            deployment,
            (*LATENCIES, *LOAD, _ERRORS),
            since=request.since,
            until=now,
            stale_s=self._policy.stale_s,
        )
        shared = request.share < 1 and request.arms.baseline
        return GateQuestion(
            slo=deployment.slo,
            window_s=max(0.0, window.span_s),
            canary=_arm(window, request.arms.canary),
            baseline=_arm(window, request.arms.baseline) if shared else None,
        )

    async def _vote(self, count: Headcount, seen: Observation) -> VoteQuestion:
        window, names = seen.window, seen.serving
        rate, mix = self._offered(window, names), _mix(window, names)
        current, reduced = await self._forecasts(
            seen.deployment, mix, [_each(rate, count.now), _each(rate, count.left)]
        )
        return VoteQuestion(
            slo=seen.deployment.slo,
            heads=count,
            window_s=window.span_s,
            ttft=window.quantile("ttft_s", 0.95, names),
            tpot=window.quantile("tpot_s", 0.95, names),
            offered=rate,
            current=current,
            reduced=reduced,
            each={name: window.quantile("ttft_s", 0.95, [name]) for name in names},
        )

    async def _replacement(self, spec: SpotReplacement, seen: Observation) -> ReplacementQuestion:
        """The leaving replicas may be silent already; then only the others' load is counted."""
        survivors = [name for name in seen.serving if name not in spec.replicas]
        leaving = [name for name in seen.serving if name in spec.replicas]
        window = seen.window
        rate, theirs = self._offered(window, survivors), self._offered(window, leaving)
        if isinstance(rate, Known) and isinstance(theirs, Known):
            rate = Known(value=rate.value + theirs.value)
        mix = _mix(window, survivors)
        total = len(survivors) + len(spec.replicas)
        without, replaced = await self._forecasts(
            seen.deployment, mix, [_each(rate, len(survivors)), _each(rate, total)]
        )
        return ReplacementQuestion(
            slo=seen.deployment.slo,
            leaving=len(spec.replicas),
            survivors=len(survivors),
            offered=rate,
            without=without,
            replaced=replaced,
        )

    def _offered(self, window: Window, replicas: Sequence[str]) -> Reading:
        return offered(window, replicas, self._policy.golden_settle_s)

    async def _forecasts(
        self, deployment: Deployment, mix: Lengths | Unknown, rates: Sequence[Reading]
    ) -> list[LatencyForecast | Unknown]:
        """One forecast a rate, simulated beside the event loop."""
        model = self._models.get(deployment.id)
        return [
            await asyncio.to_thread(_forecast, model, mix, rate) if model else _NO_CARD
            for rate in rates
        ]


def _forecast(model: LoadModel, mix: Lengths | Unknown, rate: Reading) -> LatencyForecast | Unknown:
    if isinstance(rate, Unknown):
        return rate
    if isinstance(mix, Unknown):
        return mix
    return model.forecast(mix, rate.value)


def _mix(window: Window, replicas: Sequence[str]) -> Lengths | Unknown:
    """The live length mix, pooled over the replicas."""
    try:
        return length_mix(
            window.distribution("prompt_length_tokens", replicas),
            window.distribution("output_length_tokens", replicas),
        )
    except Rejected as empty:
        return Unknown(reason=UnknownReason.NO_TRAFFIC, detail=empty.message)


def _each(rate: Reading, replicas: int) -> Reading:
    """The load of one of `replicas` replicas."""
    if isinstance(rate, Unknown):
        return rate
    if replicas < 1:
        return Unknown(reason=UnknownReason.NOT_SUPPORTED, detail="no replica would be left")
    return Known(value=rate.value / replicas)


def _arm(window: Window, replicas: Sequence[str]) -> ArmReadings:
    return ArmReadings(
        ttft=window.quantile("ttft_s", 0.95, replicas),
        tpot=window.quantile("tpot_s", 0.95, replicas),
        waiting=window.level("requests_waiting", replicas),
        errors=_errors(window, replicas),
    )


def _errors(window: Window, replicas: Sequence[str]) -> Pooled | None:
    """Failed ÷ finished over an arm; None where one of its engines does not expose failures."""
    newest = [window.newest(_ERRORS, name) for name in replicas]
    if any(isinstance(r, Unknown) and r.reason is UnknownReason.NOT_SUPPORTED for r in newest):
        return None
    failed = window.count(_ERRORS, replicas)
    finished = window.count("requests_per_s", replicas)
    if isinstance(failed, Unknown) or isinstance(finished, Unknown):
        return Pooled(failed if isinstance(failed, Unknown) else finished, 0)
    total = max(failed.value, finished.value)
    if total == 0:
        return Pooled(Unknown(reason=UnknownReason.NO_TRAFFIC, detail="nothing finished"), 0)
    return Pooled(Known(value=failed.value / total), round(total))
