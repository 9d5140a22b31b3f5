"""The first replicas of a deployment, and the end of all engines that belong to a home."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import httpx
import structlog
from pydantic import ValidationError

from optiinfra.agents.actuators.local import EngineCommand, EngineRecord, LocalActuator
from optiinfra.agents.actuators.port import Actuator, LaunchSpec, NoCapacity
from optiinfra.runtime.fleet import DeploymentConfig
from optiinfra.schemas.deployment import ReplicaState
from optiinfra.schemas.errors import OptiInfraError, Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Placement
from optiinfra.serving.engines import EngineConfig

log = structlog.get_logger()

_STOP_S = 3.0
_GENERATIONS = 1000
"""How often one of the first replicas may have been started in one home."""


async def start_first(
    tenant: str,
    deployment: DeploymentConfig,
    actuator: Actuator,
    *,
    acting: bool,
    engine: EngineConfig | None = None,
) -> int:
    """Launches what `start` asks for as far as it is missing; gives how many were launched.

    It fills up only a fleet that nobody has changed: one whose replicas are all first ones. The
    launches are named, so that a start that was cut off is taken up where it ended. `engine` is
    what they are started with.
    """
    start = deployment.start
    if start is None:
        return 0
    there = await actuator.replicas(tenant, deployment.id)
    firsts = first_tokens(tenant, deployment.id)
    ours = [one for one in there if one.launch_token in firsts]
    if len(there) >= start.replicas or len(ours) < len(there):
        return 0
    if not acting:
        log.warning(
            "replicas.not_started",
            deployment=deployment.id,
            reason="observe-only: set `mode: act`, or start the engines yourself",
        )
        return 0
    missing = start.replicas - len(there)
    for _ in range(missing):
        await _launch_one(tenant, deployment, actuator, engine)
    return missing


def first_tokens(tenant: str, deployment: str) -> frozenset[str]:
    """The launch tokens that the first replicas of a deployment may have."""
    return frozenset(_token(tenant, deployment, number) for number in range(_GENERATIONS))


async def _launch_one(
    tenant: str, deployment: DeploymentConfig, actuator: Actuator, engine: EngineConfig | None
) -> None:
    """Takes the first name that has not been used: an ended process keeps its name."""
    start = deployment.start
    assert start is not None
    placement = Placement(
        provider=deployment.provider,
        instance_type=start.instance_type,
        region=start.region,
        market=start.market,
    )
    for number in range(_GENERATIONS):
        spec = LaunchSpec(
            tenant=tenant,
            deployment=deployment.id,
            model=deployment.model,
            placement=placement,
            token=_token(tenant, deployment.id, number),
            engine=engine,
        )
        try:
            launched = await actuator.launch(spec)
        except NoCapacity as full:
            raise Unavailable(
                f"{deployment.id}: no place for another engine: {full}",
                hint="make room (clouds.local.slots, nodes), or lower deployments.start.replicas",
            ) from full
        if launched.created and launched.replica.state is not ReplicaState.STOPPED:
            log.info("replica.started", deployment=deployment.id, replica=launched.replica.id)
            return
        if launched.created:
            raise Unavailable(
                f"the engine of {deployment.id} ended at its start",
                hint="its log is in <home>/engines; check clouds.local.command",
            )
    raise Unavailable(
        f"{deployment.id} was started {_GENERATIONS} times in this home",
        hint="stop OptiInfra and remove <home>/engines",
    )


def _token(tenant: str, deployment: str, number: int) -> str:
    return derived_id("first", tenant, deployment, number)


async def end_engines(folder: Path) -> int:
    """Ends every engine that was launched from this folder, at once; gives how many ran.

    One that does not end is logged, so that the others still do.
    """
    async with httpx.AsyncClient(trust_env=False) as http:
        actuator = LocalActuator(
            folder, EngineCommand(args=()), http, clock=lambda: datetime.now(UTC), stop_s=_STOP_S
        )
        ended = await asyncio.gather(*(_end(actuator, one) for one in _records(folder)))
    return sum(ended)


async def _end(actuator: LocalActuator, record: EngineRecord) -> bool:
    try:
        return await actuator.terminate(record.tenant, record.deployment, record.replica)
    except OptiInfraError as failed:
        log.error("engine.not_ended", replica=record.replica, reason=str(failed))
        return True


def _records(folder: Path) -> list[EngineRecord]:
    found = []
    for path in sorted(folder.glob("*/engine.json")):
        try:
            found.append(EngineRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as unreadable:
            log.warning("engine.record_unreadable", path=str(path), reason=str(unreadable))
    return found
