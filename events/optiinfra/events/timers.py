"""Deadlines as facts: set by the coordinator, fired by the broker or by the sweep."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import ChangeId


class TimerName(StrEnum):
    VOTE_REMINDER = "vote_reminder"
    VOTE_DEADLINE = "vote_deadline"
    REVOTE = "revote"
    APPROVAL_EXPIRY = "approval_expiry"
    APPLY_DEADLINE = "apply_deadline"
    SOAK = "soak"
    LOOK = "look"
    LOOK_DEADLINE = "look_deadline"
    HOLD_LIMIT = "hold_limit"
    ROLLBACK_DEADLINE = "rollback_deadline"
    TURN = "turn"


WAIT_FOR_NOBODY = frozenset({TimerName.SOAK, TimerName.LOOK, TimerName.TURN, TimerName.REVOTE})
"""All others end the waiting for somebody's word, which may have been said already."""


class TimerSet(Value):
    """`key` tells two timers of one name apart (round, stage, look), so that a late one is void."""

    kind: Literal["timer.set"] = "timer.set"
    change: ChangeId
    name: TimerName
    key: str
    fire_at: AwareDatetime


class TimerFired(Value):
    kind: Literal["timer.fired"] = "timer.fired"
    change: ChangeId
    name: TimerName
    key: str
