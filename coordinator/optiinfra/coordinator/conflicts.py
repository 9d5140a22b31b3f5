"""Who goes first when several changes want the same target."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol


class Waiting(Protocol):
    """A deferred change, as the order needs it."""

    @property
    def change(self) -> str: ...

    @property
    def opened_at(self) -> datetime: ...


def next_in_line(waiting: Sequence[Waiting]) -> str | None:
    """The change whose turn comes next: who has waited longest; by id among equals.

    Priorities (customer > performance > cost) refine this order where a policy names them.
    """
    if not waiting:
        return None
    return min(waiting, key=lambda change: (change.opened_at, change.change)).change
