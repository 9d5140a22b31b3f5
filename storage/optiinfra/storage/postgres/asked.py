"""The conditions of a list that is asked for, as SQL with numbered values."""

from __future__ import annotations

from typing import Any

from optiinfra.storage.postgres.asleep import ASLEEP
from optiinfra.storage.postgres.reading import ChangeFilter


class Asked:
    """The conditions of a list. Only what is asked for stands in the statement, and the limit as
    a number, so that each shape is prepared once with a plan that fits it.
    """

    def __init__(self, tenant_column: str, tenant: str) -> None:
        self.values: list[Any] = [tenant]
        self._conditions = [f"{tenant_column} = $1"]

    @property
    def where(self) -> str:
        return " AND ".join(self._conditions)

    def that(self, condition: str, *values: Any) -> None:
        """Adds a condition unless its value is None."""
        if values[0] is None:
            return
        first = len(self.values) + 1
        self.values += values
        self._conditions.append(condition.format(*(f"${first + n}" for n in range(len(values)))))

    def before(self, at: str, name: str, key: tuple[Any, ...] | None) -> None:
        """What follows the sort key `key` where the greatest comes first."""
        if key is not None:
            self.that(f"({at}, {name}) < ({{}}, {{}})", *key)

    def filter_changes(self, want: ChangeFilter) -> None:
        self.that("s.state = {}", want.state)
        self.that("r.deployment = {}", want.deployment)
        self.that("r.kind = {}", want.kind)
        self.that(f"{ASLEEP} = {{}}", want.asleep)
