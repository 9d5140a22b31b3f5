"""How often in the last hour and day something happened that the policy limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optiinfra.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class RuleCount:
    """Approvals that one rule has given in a tenant."""

    tenant: str
    rule: str
    last_hour: int
    last_day: int


async def approvals_by_rule(connection: Connection, tenants: Sequence[str]) -> list[RuleCount]:
    """What the policy's rules approved in the last day, rule by rule."""
    rows = await connection.fetch(_APPROVED, list(tenants))
    return [RuleCount(r["tenant"], r["rule"], r["last_hour"], r["last_day"]) for r in rows]


_APPROVED = """
SELECT r.tenant, split_part(a.by_name, '@', 1) AS rule,
    count(*) FILTER (WHERE a.at > clock_timestamp() - interval '1 hour') AS last_hour,
    count(*) AS last_day
FROM approvals a JOIN recommendations r ON r.id = a.change_id
WHERE a.by_kind = 'policy' AND a.granted AND r.tenant = ANY($1)
AND a.at > clock_timestamp() - interval '1 day' GROUP BY r.tenant, rule
"""
