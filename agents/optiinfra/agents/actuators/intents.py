"""The port to the record of intents: what makes a step happen at most once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from optiinfra.schemas.ids import ChangeId
from optiinfra.schemas.rollout import Step


@dataclass(frozen=True, slots=True)
class Intent:
    """A step that was begun; `result` is set once it was read back.

    `captured` is what the target looked like before the change's first step, from which a
    rollback restores it; it is the same for all steps of a change.
    """

    change: ChangeId
    step: Step
    fence: int
    captured: dict[str, Any]
    result: dict[str, Any] | None
    fresh: bool
    """True for the call that wrote the intent, False when it stood there already."""


class Intents(Protocol):
    """Kept in PostgreSQL, unique on (change, step kind, stage, attempt)."""

    async def begin(
        self, change: ChangeId, step: Step, fence: int, captured: dict[str, Any]
    ) -> Intent:
        """Writes the intent, or gives the one that stands.

        `captured` is kept only by the first intent of a change. Raises `Conflict` when a higher
        fence has been seen for this change: the command is out of date.
        """
        ...

    async def finish(self, change: ChangeId, step: Step, result: dict[str, Any]) -> None:
        """Stores what was read back; repeating it changes nothing."""
        ...

    async def captured(self, change: ChangeId) -> dict[str, Any] | None:
        """What the first intent of the change captured, None when nothing was ever begun."""
        ...
