"""Whether a freeze of the policy holds a change up now, and until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from optiinfra.coordinator.saga.state import Context
from optiinfra.schemas.freezes import FreezeWindow
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rules import Rules

FREEZE = "freeze window"
"""Who paused a change under way in a freeze that halts stages; its end lets it go on."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The freeze that holds up longest; `until` is when to ask again."""

    window: FreezeWindow
    until: datetime

    @property
    def reason(self) -> str:
        return f"freeze {self.window.name!r} until {self.until:%Y-%m-%d %H:%M} UTC"


def may_be_halted(proposal: Recommendation, rules: Rules, *, urgent: bool) -> bool:
    """Whether some freeze, now or later, could hold the change up when it is under way."""
    return any(
        window.halt_stages and _applies(window, proposal, urgent=urgent) for window in rules.freezes
    )


def _applies(window: FreezeWindow, proposal: Recommendation, *, urgent: bool) -> bool:
    return window.covers(proposal) and (window.also_urgent or not urgent)


def frozen(
    proposal: Recommendation, context: Context, *, urgent: bool, stages: bool = False
) -> Frozen | None:
    """The freeze that applies; with `stages` only those that hold up changes under way."""
    found = [
        Frozen(window, until)
        for window in context.rules.freezes
        if _applies(window, proposal, urgent=urgent)
        and (window.halt_stages or not stages)
        and (until := window.until(context.at)) is not None
    ]
    return max(found, key=lambda one: one.until, default=None)
