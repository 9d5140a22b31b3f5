"""How often what the policy limits has happened lately, what this batch does included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from optiinfra.coordinator.saga.state import Saga
from optiinfra.events import facts as f
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import POLICY
from optiinfra.storage.postgres.journal import Batch

_Counts = Counter[tuple[str, str]]
_ELSEWHERE = ""
"""Stands for all deployments that are no targets of this batch."""


class Counts:
    """Beginnings by (tenant, deployment); approvals by (tenant, rule) in an hour and in a day."""

    def __init__(self) -> None:
        self._moves: _Counts = Counter()
        self._moves_in_all: Counter[str] = Counter()
        self._last_hour: _Counts = Counter()
        self._last_day: _Counts = Counter()

    @classmethod
    async def read(cls, batch: Batch, tenants: Sequence[str], rules: Rules) -> Counts:
        """What is in the tables; approvals only where a rule limits their number."""
        counts = cls()
        for (tenant, deployment), count in batch.view.moves.items():
            counts._moves[tenant, deployment or _ELSEWHERE] = count
            counts._moves_in_all[tenant] += count
        if any(rule.counts for rule in rules.approvals):
            for one in await batch.approvals_by_rule(tenants):
                counts._last_hour[one.tenant, one.rule] = one.last_hour
                counts._last_day[one.tenant, one.rule] = one.last_day
        return counts

    @classmethod
    def known(cls, moves: _Counts, last_hour: _Counts, last_day: _Counts) -> Counts:
        """Counts that somebody else has kept."""
        counts = cls()
        counts._moves, counts._last_hour, counts._last_day = moves, last_hour, last_day
        for (tenant, _), number in moves.items():
            counts._moves_in_all[tenant] += number
        return counts

    def note(self, tenant: str, before: Saga, after: Saga, said: Sequence[f.Fact]) -> None:
        """Counts what one event led to."""
        if after.touched and not before.touched:
            self._moves[tenant, after.proposal.deployment] += 1
            self._moves_in_all[tenant] += 1
        for fact in said:
            if isinstance(fact, f.ApprovalGranted) and fact.approval.by.kind == POLICY:
                rule = fact.approval.by.name.partition("@")[0]
                self._last_hour[tenant, rule] += 1
                self._last_day[tenant, rule] += 1

    def of(self, tenant: str, deployment: str) -> dict[str, Any]:
        """The counts as a `World` has them."""
        return {
            "moved_last_hour": self._moves_in_all[tenant],
            "moved_last_hour_here": self._moves[tenant, deployment],
            "approved_last_hour": _of_tenant(self._last_hour, tenant),
            "approved_last_day": _of_tenant(self._last_day, tenant),
        }


def _of_tenant(counts: _Counts, tenant: str) -> dict[str, int]:
    return {name: n for (whose, name), n in counts.items() if whose == tenant}
