"""The port to the record of intents: what makes a step happen at most once."""

from __future__ import annotations

from typing import Any, Protocol

from optiinfra.schemas.execution import Intent
from optiinfra.schemas.ids import ChangeId
from optiinfra.schemas.rollout import Step

__all__ = ["Intent", "Intents"]


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

    async def is_paused(self, change: ChangeId) -> bool:
        """Whether the change is held up now, as the coordinator has written it down."""
        ...

    async def captured(self, change: ChangeId) -> dict[str, Any] | None:
        """What the first intent of the change captured, None when nothing was ever begun."""
        ...
