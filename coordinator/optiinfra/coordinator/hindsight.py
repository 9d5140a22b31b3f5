"""Reads recorded logs again for others: how changes stood, and what another policy would decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optiinfra.coordinator.replayed import Replayed, standing
from optiinfra.coordinator.what_if import Logged, what_if
from optiinfra.schemas.hindsight import Standing, WhatIf
from optiinfra.schemas.rules import Rules
from optiinfra.storage.postgres.chain import Link
from optiinfra.storage.postgres.events import event_of


class LogHindsight:
    """What the command line and the API ask; nothing is written and nothing in use is asked."""

    def standings(self, events: Iterable[Mapping[str, Any]]) -> Iterator[Standing | None]:
        """How an event's change stood after it, event by event; each change from its beginning."""
        replayed = Replayed()
        for event in events:
            saga = replayed.take(event)
            yield None if saga is None else standing(saga)

    def what_if(self, links: Sequence[Link], rules: Rules, most_waits: int | None = None) -> WhatIf:
        """A tenant's log, in its order, under `rules`. Raises `Rejected` beyond `most_waits`."""
        log = [Logged(one.chain, one.version, one.at, event_of(one)) for one in links]
        return what_if(log, rules, most_waits)
