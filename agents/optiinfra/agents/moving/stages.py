"""Carries a stage out: new replicas up to its share, then the traffic; and the finish."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from optiinfra.agents.actuators.port import Launched, LaunchSpec, NoCapacity
from optiinfra.agents.moving.job import Job, OutOfDate, StepFailed
from optiinfra.agents.moving.shares import (
    carries_traffic,
    draining,
    replicas_needed,
    staged,
    without,
)
from optiinfra.schemas.deployment import Replica, ReplicaState
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.recommendation import Placement
from optiinfra.schemas.rollout import Arms

_FIRST_POLL_S, _LAST_POLL_S = 0.25, 5.0
_log = structlog.get_logger()


@dataclass(slots=True)
class _Launches:
    """The new replicas of one step on their way up, by index."""

    launched: dict[int, Replica] = field(default_factory=dict)
    serving: dict[int, Replica] = field(default_factory=dict)
    generation: dict[int, int] = field(default_factory=dict)
    created: bool = False
    waiting_for: str = ""


@dataclass(frozen=True, slots=True)
class Staged:
    """What a step left behind, read back."""

    arms: Arms
    applied: bool
    detail: str = ""
    held: bool = False
    """A finish that has carried its stage and released nothing, since the change is paused."""


async def apply(job: Job) -> Staged:
    """Brings the change to the share of its step. Raises `StepFailed` and `OutOfDate`."""
    launches = await _serving(job, replicas_needed(job.step.share, len(job.old)))
    canaries = [launches.serving[index] for index in sorted(launches.serving)]
    await _warm_up(job, canaries)
    gone = set(job.old) - set(await job.fleet())
    written = await job.route(
        lambda table: staged(
            job.captured.table,
            table,
            job.old,
            canaries=canaries,
            share=job.step.share,
            gone=gone,
        )
    )
    return Staged(await _arms(job, canaries), launches.created or written)


async def finish(job: Job) -> Staged:
    """Brings the change to its share, unless it is there, and releases what was replaced.

    It drains, removes from the routes, terminates, and reads back; where the change is paused by
    then, everything stays.
    """
    before = await apply(job)
    if await job.is_paused():
        return replace(before, held=True, detail="paused before anything was released")
    present = set(job.old) & {
        backend.replica
        for backend in (await job.hands.traffic.status(job.tenant, job.deployment)).table.backends
    }
    written = await job.route(lambda table: draining(table, job.old))
    detail = await _drain(job, sorted(present))
    written |= await job.route(lambda table: without(table, job.old))
    fleet = await job.fleet()
    leaving = [fleet[name] for name in job.old if name in fleet]
    for replica in leaving:
        await job.terminate(replica)
    arms = Arms(canary=before.arms.canary, baseline=await _others(job, before.arms.canary))
    return Staged(arms, before.applied or written or bool(leaving), detail)


async def _drain(job: Job, old: list[str]) -> str:
    """Waits for the requests in flight on the old replicas; says what was lost, if anything.

    Only a machine that the cloud takes away anyway may go with requests in flight.
    """
    timeout_s, reclaim = job.hands.drain_timeout_s, job.move.reclaim
    if reclaim is not None:
        left = (reclaim.at - job.hands.clock()).total_seconds()
        timeout_s = min(timeout_s, max(left, 1.0))
    busy = await job.drained(old, timeout_s)
    if busy and reclaim is None:
        raise StepFailed(f"still busy after {timeout_s:.0f} s of draining: {', '.join(busy)}")
    return f"reclaimed with requests in flight: {', '.join(busy)}" if busy else ""


async def _serving(job: Job, count: int) -> _Launches:
    """Launches `count` new replicas and waits until all of them serve."""
    launches = await _found(job, count)
    delay = _FIRST_POLL_S
    while True:
        await job.require_fence()
        for index in range(count):
            try:
                await _advance(job, launches, index)
            except Unavailable as error:
                launches.waiting_for = str(error)
        if len(launches.serving) == count:
            return launches
        await _rest_reclaimed(job)
        if job.time_left() <= 0:
            ready = len(launches.serving)
            raise StepFailed(f"{ready} of {count} new replicas serve: {launches.waiting_for}")
        await job.pause(delay)
        delay = min(1.5 * delay, _LAST_POLL_S)


async def _found(job: Job, count: int) -> _Launches:
    """What earlier steps (or an earlier try of this one) have launched and is still there."""
    launches = _Launches()
    by_token = {replica.launch_token: replica for replica in (await job.fleet()).values()}
    for index in range(count):
        for generation in range(job.move.generations):
            replica = by_token.get(job.launch_token(index, generation))
            if replica is not None:
                launches.launched[index] = replica
                launches.generation[index] = generation
    return launches


async def _advance(job: Job, launches: _Launches, index: int) -> None:
    """One look at one new replica; a machine that has ended makes room for the next attempt."""
    if index in launches.serving:
        return
    generation = launches.generation.setdefault(index, 0)
    replica: Replica | None
    if index in launches.launched:
        replica = launches.launched[index]
        actuator = job.hands.actuator(replica.instance.provider)
        replica = await actuator.replica(job.tenant, job.deployment, replica.id)
    else:
        replica = await _launch(job, launches, index)
        if replica is None:
            return
        launches.launched[index] = replica
    if replica is None or replica.state is ReplicaState.STOPPED:
        del launches.launched[index]
        if generation + 1 == job.move.generations:
            times = "once" if generation == 0 else f"{generation + 1} times"
            raise StepFailed(f"new replica {index + 1} ended {times} before it served")
        launches.generation[index] = generation + 1
        launches.waiting_for = f"new replica {index + 1} ended before it served"
        if replica is not None:
            await job.terminate(replica)  # an engine that has ended may still hold its machine
    elif replica.state is ReplicaState.SERVING:
        launches.serving[index] = replica
    else:
        launches.waiting_for = f"{replica.id} is {replica.state} at {replica.url or 'no address'}"


async def _launch(job: Job, launches: _Launches, index: int) -> Replica | None:
    """The machine of a launch; None when no market has one now."""
    spec = _launch_spec(job, index, launches.generation[index])
    actuator = job.hands.actuator(spec.placement.provider)
    for placement in _placements(spec.placement):
        try:
            launched = await actuator.launch(replace(spec, placement=placement))
        except NoCapacity as error:
            launches.waiting_for = f"no capacity: {error}"
            _log.warning("launch.no_capacity", change=job.change, reason=str(error))
            continue
        await _keep_only_in_time(job, launched)
        launches.created |= launched.created
        return launched.replica
    return None


async def _keep_only_in_time(job: Job, launched: Launched) -> None:
    """A machine that came up after a later command had begun is taken away again."""
    try:
        await job.require_fence()
    except OutOfDate:
        if launched.created:
            actuator = job.hands.actuator(launched.replica.instance.provider)
            await actuator.terminate(job.tenant, job.deployment, launched.replica.id)
        raise


def _placements(to: Placement) -> list[Placement]:
    if to.fallback_market is None:
        return [to]
    return [to, to.model_copy(update={"market": to.fallback_market, "fallback_market": None})]


def _launch_spec(job: Job, index: int, generation: int) -> LaunchSpec:
    replaced = job.old[index]
    like = next((r for r in job.captured.replicas if r.id == replaced), None)
    return LaunchSpec(
        tenant=job.tenant,
        deployment=job.deployment,
        model=job.captured.table.model,
        placement=job.move.to[replaced],
        token=job.launch_token(index, generation),
        like=like,
        engine=job.move.engines.get(replaced),
        tags={"optiinfra:change": job.change, "optiinfra:replaces": replaced},
    )


async def _warm_up(job: Job, canaries: Sequence[Replica]) -> None:
    """Those that carry no traffic yet; raises `StepFailed` when one does not get warm."""
    warm_up = job.hands.warm_up
    if warm_up is None:
        return
    table = (await job.hands.traffic.status(job.tenant, job.deployment)).table
    routed = {backend.replica for backend in table.backends}
    cold = [canary for canary in canaries if canary.id not in routed]
    refused = await asyncio.gather(*(warm_up(one, table.model, job.time_left()) for one in cold))
    for canary, reason in zip(cold, refused, strict=True):
        if reason is not None:
            await job.require_fence()
            raise StepFailed(f"{canary.id}{await _ended(job, canary)}: {reason}")


async def _ended(job: Job, canary: Replica) -> str:
    actuator = job.hands.actuator(canary.instance.provider)
    left = await actuator.replica(job.tenant, job.deployment, canary.id)
    return " has ended" if left is None or left.state is ReplicaState.STOPPED else ""


async def _rest_reclaimed(job: Job) -> None:
    """Near the reclaim the old replica gets no new request, if another one can take them."""
    reclaim = job.move.reclaim
    if reclaim is None:
        return
    if job.hands.clock() < reclaim.at - timedelta(seconds=reclaim.drain_lead_s):
        return
    table = (await job.hands.traffic.status(job.tenant, job.deployment)).table
    if carries_traffic(table, job.old):
        await job.route(lambda current: draining(current, job.old))


async def _arms(job: Job, canaries: list[Replica]) -> Arms:
    names = tuple(canary.id for canary in canaries)
    return Arms(canary=names, baseline=await _others(job, names))


async def _others(job: Job, canaries: tuple[str, ...]) -> tuple[str, ...]:
    table = (await job.hands.traffic.status(job.tenant, job.deployment)).table
    return tuple(b.replica for b in table.backends if b.replica not in canaries)
