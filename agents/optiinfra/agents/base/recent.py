"""Changes that were made not long ago, so that an agent does not propose the same again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from optiinfra.schemas.change import ChangeState

UNWANTED = frozenset(
    {
        ChangeState.VETOED,
        ChangeState.REJECTED,
        ChangeState.EXPIRED,
        ChangeState.ROLLED_BACK,
        ChangeState.CANCELLED,
        ChangeState.FAILED,
    }
)
"""Ends after which the same proposal is not wanted again for a while."""


class RecentChange(NamedTuple):
    """A change of one kind on one deployment; `ended_at` is None while it is open."""

    id: str
    state: ChangeState
    ended_at: datetime | None


class RecentChanges(Protocol):
    """Changes of one kind on one deployment, open ones and those that ended not long ago."""

    async def recent(self, tenant: str, deployment: str, kind: str) -> Sequence[RecentChange]: ...


def held_back(recent: Sequence[RecentChange], now: datetime, cooldown_s: float) -> str | None:
    """Why nothing of the kind of `recent` is proposed now: one is open, or was unwanted lately."""
    for change in recent:
        if not change.state.is_terminal:
            return f"change {change.id} of this kind is {change.state}"
        if change.state in UNWANTED and change.ended_at is not None:
            until = change.ended_at + timedelta(seconds=cooldown_s)
            if now < until:
                return f"change {change.id} was {change.state}; cooling down to {until}"
    return None
