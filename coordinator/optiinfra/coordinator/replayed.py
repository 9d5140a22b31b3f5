"""What a stretch of the log says about every change, folded apart from the tables in use."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optiinfra.coordinator.saga.evolve import fold
from optiinfra.coordinator.saga.state import Saga
from optiinfra.events.facts import FACT, change_of
from optiinfra.schemas.hindsight import Standing


class Replayed:
    """Takes the log's events in their order, each change from its beginning."""

    def __init__(self) -> None:
        self.changes: dict[str, Saga] = {}

    def take(self, event: Mapping[str, Any]) -> Saga | None:
        """One event as the log's readers give it: its chain, its time `at` and its fact.

        The change as it stands then; None when the event belongs to none.
        """
        fact = FACT.validate_python(event["fact"])
        change = change_of(fact)
        if change is None or event["chain"] != change:
            return None
        saga = self.changes.get(change, Saga(change=change))
        folded = fold(saga, [(fact, datetime.fromisoformat(event["at"]))])
        self.changes[change] = folded
        return folded


def standing(saga: Saga) -> Standing:
    """How a change stands, in short."""
    return Standing(
        change=saga.change,
        state=saga.state,
        deployment=None if saga.recommendation is None else saga.recommendation.deployment,
        stage=None if saga.step is None else saga.step.stage,
        why=saga.waiting or saga.end_reason or saga.rollback_reason,
    )
