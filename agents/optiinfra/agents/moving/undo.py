"""Takes a change back: the captured routes again, the new replicas drained and gone, proved."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import structlog

from optiinfra.agents.actuators.port import replica_name
from optiinfra.agents.moving.job import Job, StepFailed
from optiinfra.agents.moving.shares import restored, without
from optiinfra.schemas.deployment import Replica, ReplicaState
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.routing import RouteTable

_log = structlog.get_logger()


async def undo(job: Job) -> tuple[bool, str]:
    """Whether the target stands as it was captured, and what was read back.

    New replicas are kept when none of those that served before still does: traffic is never sent to
    nobody. One that cannot be drained in time keeps draining. Raises `OutOfDate`.
    """
    try:
        return await _undo(job)
    except (StepFailed, Rejected) as error:
        return False, str(error)


async def _undo(job: Job) -> tuple[bool, str]:
    fleet = await job.fleet()
    table = (await job.hands.traffic.status(job.tenant, job.deployment)).table
    canaries = sorted({*_canaries(job, fleet), *_routed(job, table)})
    routed = {backend.replica for backend in job.captured.table.backends}
    live = {name for name in routed if name in fleet and _exists(fleet[name])}
    if not any(fleet[name].state is ReplicaState.SERVING for name in live):
        return False, "none of the replicas from before serves; the new ones keep the traffic"
    if job.move.reclaim is not None and not live.issuperset(job.old):
        return False, "the reclaimed machine is gone; its replacement keeps the traffic"
    await job.route(lambda table: restored(job.captured.table, table, live, canaries))
    await _remove(job, fleet, canaries)
    return await _proof(job, canaries)


def _canaries(job: Job, fleet: Mapping[str, Replica]) -> list[str]:
    """What this change has launched; a replica that stood before it is none of it."""
    before = {replica.id for replica in job.captured.replicas}
    tokens = job.launch_tokens()
    return sorted(
        replica.id
        for replica in fleet.values()
        if replica.launch_token in tokens and replica.id not in before
    )


def _routed(job: Job, table: RouteTable) -> set[str]:
    """Those in the routes, also of machines that have ended since."""
    before = {backend.replica for backend in job.captured.table.backends}
    launched = {replica_name(job.deployment, token) for token in job.launch_tokens()}
    return {backend.replica for backend in table.backends} & (launched - before)


def _exists(replica: Replica) -> bool:
    return replica.state is not ReplicaState.STOPPED


async def _remove(job: Job, fleet: Mapping[str, Replica], canaries: Collection[str]) -> None:
    busy = await job.drained(canaries, job.hands.drain_timeout_s)
    idle = [name for name in canaries if name not in busy]
    await job.route(lambda table: without(table, idle))
    for name in idle:
        if name in fleet:
            await job.terminate(fleet[name])
    if busy:
        raise StepFailed(f"still draining, so left in place: {', '.join(busy)}")


async def _proof(job: Job, canaries: Collection[str]) -> tuple[bool, str]:
    """Reads everything once more; launches that came late are found here."""
    fleet = await job.fleet()
    late = _canaries(job, fleet)
    if late:
        raise Unavailable(f"came up while it was undone: {', '.join(late)}", retry_after_s=1.0)
    table = (await job.hands.traffic.status(job.tenant, job.deployment)).table
    current = {backend.replica: backend for backend in table.backends}
    off = [b.replica for b in job.captured.table.backends if current.get(b.replica) != b]
    if off:
        return False, f"cannot be restored, gone since: {', '.join(off)}"
    left = f"{len(canaries)} new replica(s) terminated"
    return True, f"routes as before over {len(current)} replica(s), {left}"
