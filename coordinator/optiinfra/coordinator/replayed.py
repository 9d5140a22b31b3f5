"""What a stretch of the log says about every change, folded apart from the tables in use."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events.facts import FACT, change_of


class Replayed:
    """Takes the log's events in their order, each change from its beginning."""

    def __init__(self) -> None:
        self.changes: dict[str, Saga] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """One event as the log's readers give it: its chain, its time `at` and its fact."""
        fact = FACT.validate_python(event["fact"])
        change = change_of(fact)
        if change is not None and event["chain"] == change:
            saga = self.changes.get(change, Saga(change=change))
            self.changes[change] = fold(saga, [(fact, datetime.fromisoformat(event["at"]))])
