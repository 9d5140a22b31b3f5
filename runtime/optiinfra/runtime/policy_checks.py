"""What `doctor` finds about the policy: what is doubtful in it, and whether it is in force."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from optiinfra.runtime.findings import Finding, Level, failed
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.policy_review import warnings
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.policies import PolicyRecord, policy_in_force

_WHAT = "policy"


def look_at_policy(fleet: Fleet, file: Path, now: datetime) -> list[Finding]:
    """The version on file, and one warning for each part of it that never counts."""
    said = f"{fleet.rules.version} in {fleet.policy or file}"
    doubts = [
        Finding(Level.WARN, _WHAT, doubt, "optiinfra config check lists these; docs/policy.md")
        for doubt in warnings(fleet.rules, now)
    ]
    return [Finding(Level.OK, _WHAT, said), *doubts]


async def look_at_recorded_policy(settings: Settings, fleet: Fleet) -> list[Finding]:
    """Whether the policy on file is the one that coordinators have recorded last."""
    if settings.postgres_url is None:
        return []
    try:
        async with open_database(settings.postgres_url, connections=1) as database:
            newest = await policy_in_force(database, fleet.tenant)
    except OptiInfraError as error:
        return [failed("policy in force", error)]
    return [compared(newest, fleet.rules)]


def compared(newest: PolicyRecord | None, rules: Rules) -> Finding:
    """The newest recorded policy beside the one on file."""
    what = "policy in force"
    if newest is None:
        return Finding(Level.OK, what, "none was recorded yet; a coordinator does so at its start")
    if newest.version == rules.version:
        return Finding(Level.OK, what, f"{newest.version}, number {newest.number}")
    return Finding(
        Level.WARN,
        what,
        f"it is {newest.version} from {newest.by}, recorded {newest.at:%Y-%m-%d %H:%M} UTC;"
        f" the file holds {rules.version}",
        "start the coordinator, or save this policy in the file that it watches",
    )
