"""The audit trail: who did or tried what, written in the transaction of the deed itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from optiinfra.schemas.tenant import person
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is audited: an action on a target, with what was given."""

    action: str
    target: str
    detail: dict[str, Any]


async def audit(
    connection: Connection,
    who: Principal,
    attempt: Attempt,
    *,
    allowed: bool,
    event_id: str | None = None,
) -> None:
    """Writes one row; it stands if the caller's transaction does."""
    detail = {**attempt.detail, "token": who.token_id, "role": who.role.value}
    if event_id is not None:
        detail["event"] = event_id
    await connection.execute(
        _AUDIT,
        who.tenant,
        str(person(who.name)),
        attempt.action,
        attempt.target,
        allowed,
        json.dumps(detail),
    )


_AUDIT = """
INSERT INTO audit (tenant, actor, action, target, allowed, detail)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb)
"""
