"""How changes are rolled out as the fleet file's timing sets it, and which were made lately."""

from __future__ import annotations

from optiinfra.agents.base.recent import RecentChange
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.stores import Stores
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.recommendation import RolloutPlan, StagePlan
from optiinfra.storage.postgres.changes import is_moving, recent_changes


class RecentChangesInPostgres:
    """The agents' memory of what was proposed not long ago."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def recent(self, tenant: str, deployment: str, kind: str) -> list[RecentChange]:
        return [
            RecentChange(change.id, ChangeState(change.state), change.ended_at)
            for change in await recent_changes(self._stores.database, tenant, deployment, kind)
        ]


class RolloutsInPostgres:
    """What is under way, as the coordinator has written it down."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def are_under_way(self, tenant: str, deployment: str) -> bool:
        return await is_moving(self._stores.database, tenant, deployment)


def rollout(fleet: Fleet) -> RolloutPlan:
    """Stage by stage, as the fleet file's timing says."""
    timing = fleet.timing
    stages = tuple(
        StagePlan(share=share, soak_s=soak_s, hold_limit_s=timing.hold_limit_s)
        for share, soak_s in zip(timing.stage_shares, timing.stage_soak_s, strict=True)
    )
    return RolloutPlan(
        stages=stages,
        apply_timeout_s=timing.apply_timeout_s,
        look_every_s=timing.look_every_s,
    )
