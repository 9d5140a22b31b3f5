"""Answers that may be a few seconds old, kept in memory: bounded in number and in age."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """Up to `most` values; when it is full, the one that was put in first goes.

    `era` changes at each `clear`. What was asked for before then is not taken in after it.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._values: dict[str, tuple[T, float]] = {}
        self.era = 0

    def get(self, key: str) -> T | None:
        """The value, unless its time is over."""
        found = self._values.get(key)
        if found is None:
            return None
        value, until = found
        if self._clock() < until:
            return value
        del self._values[key]
        return None

    def put(self, key: str, value: T, lasts_s: float, era: int) -> None:
        """Keeps a value that was asked for in `era` for `lasts_s` seconds."""
        if era != self.era:
            return
        self._values.pop(key, None)
        if len(self._values) >= self._most:
            del self._values[next(iter(self._values))]
        self._values[key] = (value, self._clock() + lasts_s)

    def clear(self) -> None:
        """Forgets everything, also what is being asked for now."""
        self.era += 1
        self._values.clear()
