"""What the recorded log says when it is read again: how changes stood, and what might have been."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.money import Interval


class Standing(Value):
    """How one change stood after an event; `why` it waits, is undone or has ended, if said."""

    change: str
    state: ChangeState
    deployment: str | None
    stage: int | None
    why: str | None


class Effect(Value):
    """What a difference would have meant, $ a month; `basis` says how it is known.

    Where it is unknown, the money is what is at stake.
    """

    basis: Literal["none", "realised", "predicted", "unknown"]
    usd_per_month: Interval | None = None
    ttft_p95_s: float | None = None


class Difference(Value):
    """A change whose decisions differ: where they part, and what became of it in both."""

    change: str
    deployment: str
    title: str
    at: datetime
    recorded: str
    other: str
    why: str
    recorded_end: str
    other_end: str
    effect: Effect


class WhatIf(Value):
    """`realised` and `predicted` add up what is known, $ a month, apart."""

    changes: int
    differences: tuple[Difference, ...]
    realised: Interval
    predicted: Interval
    unknown: int
