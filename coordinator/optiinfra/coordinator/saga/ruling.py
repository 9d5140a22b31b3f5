"""What the arbiter has decided about a change and those that want the same."""

from __future__ import annotations

from optiinfra.schemas.base import Value
from optiinfra.schemas.ids import ChangeId


class Loss(Value):
    """A change, and the rule by which it loses or goes first."""

    change: ChangeId
    rule: str
    reason: str


class Ruling(Value):
    """Nothing stands in the way when it is empty."""

    merged: Loss | None = None
    """An open change that says the same: this one is not needed."""
    behind: Loss | None = None
    """Who is ahead: this one waits."""
    supersedes: tuple[Loss, ...] = ()
    """Who is not needed any more because of this one."""
    yields: tuple[Loss, ...] = ()
    """Who is being decided and gives way to this one."""
