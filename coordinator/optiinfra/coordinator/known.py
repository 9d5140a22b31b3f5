"""Sagas that were read or written lately, so that their rows need not be read whole again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from optiinfra.coordinator.saga.state import Saga

MOST = 4_096


class KnownSagas:
    """Up to `most` sagas by change, each with the hash of the last link of its chain.

    A row whose hash is still the same holds this very saga. The one used longest ago goes first.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._sagas: OrderedDict[str, tuple[str, Saga]] = OrderedDict()

    def lookup(self, changes: Iterable[str]) -> dict[str, tuple[str, Saga]]:
        """The hash and the saga of each of these changes that is known."""
        found = ((change, self._sagas.get(change)) for change in changes)
        return {change: known for change, known in found if known is not None}

    def remember(self, change: str, head: str, saga: Saga) -> None:
        """Keeps what was read from the row or has been committed to it; an end needs no memory."""
        self._sagas.pop(change, None)
        if saga.state.is_terminal:
            return
        self._sagas[change] = (head, saga)
        if len(self._sagas) > self._most:
            self._sagas.popitem(last=False)
