"""The record of an executor's intent, which makes a step happen at most once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
