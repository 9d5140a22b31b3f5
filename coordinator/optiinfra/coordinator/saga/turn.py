"""One decision in the making."""

from __future__ import annotations

from optiinfra.coordinator.saga.evolve import counted, evolve
from optiinfra.coordinator.saga.state import Context, Saga, later
from optiinfra.events import facts as f
from optiinfra.events.decided import Decided
from optiinfra.events.facts import TimerName


class Turn:
    """One decision in the making: what is said changes the saga at once."""

    def __init__(self, saga: Saga, context: Context) -> None:
        self.saga = saga
        self.context = context
        self.said: list[f.Fact] = []
        self.orders: list[f.ConflictResolved] = []
        """What becomes of other changes because of this one."""

    def say(self, fact: f.Fact) -> None:
        """Takes a fact in and says it; a decision says under which policy it was made."""
        if isinstance(fact, Decided):
            fact = fact.model_copy(update={"rules_version": self.context.rules.version})
        self.saga = counted(evolve(self.saga, fact, self.context.at))
        self.said.append(fact)

    def set_timer(self, name: TimerName, key: object, seconds: float) -> None:
        fire_at = later(self.context.at, seconds)
        self.say(f.TimerSet(change=self.saga.change, name=name, key=str(key), fire_at=fire_at))
