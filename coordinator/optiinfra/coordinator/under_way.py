"""The changes that are carried out now, found by tenant and by target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from optiinfra.schemas.arbitration import Arbitration
from optiinfra.storage.postgres.view import Moving

_ByChange = dict[str, Moving]


class UnderWay:
    """What is asked of it for one change takes no longer when many others are under way."""

    def __init__(self, moving: Iterable[Moving] = ()) -> None:
        self._all: _ByChange = {}
        self._of_tenant: defaultdict[str, _ByChange] = defaultdict(dict)
        self._of_target: defaultdict[tuple[str, str | None], _ByChange] = defaultdict(dict)
        for one in moving:
            self.begin(one)

    def begin(self, moving: Moving) -> None:
        """It is carried out from now on."""
        self._all[moving.change] = moving
        self._of_tenant[moving.tenant][moving.change] = moving
        self._of_target[moving.tenant, moving.deployment][moving.change] = moving

    def end(self, change: str) -> None:
        """It is not carried out, or no longer."""
        moving = self._all.pop(change, None)
        if moving is not None:
            del self._of_tenant[moving.tenant][change]
            del self._of_target[moving.tenant, moving.deployment][change]

    def count(self, tenant: str, beside: str) -> int:
        """How many changes of the tenant, this one left out."""
        held = self._of_tenant[tenant]
        return len(held) - (beside in held)

    def others(self, tenant: str, beside: str) -> list[Moving]:
        """The changes of the tenant, this one left out."""
        return [one for one in self._of_tenant[tenant].values() if one.change != beside]

    def on_target(
        self, tenant: str, beside: str, target: str, policy: Arbitration
    ) -> tuple[str | None, str | None]:
        """The change that is carried out on the target or a bound one, and what both claim."""
        near = self._of_tenant[tenant] if policy.needs else self._of_target[tenant, target]
        for moving in near.values():
            there = moving.deployment
            if moving.change != beside and there and policy.overlap(there, target):
                return moving.change, policy.shared(there, target)
        return None, None
