"""What became of earlier changes, found again by the likeness of their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import asinh, sqrt
from typing import Protocol

from optiinfra.events.envelope import Event
from optiinfra.events.facts import OutcomeRecorded
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.outcome import Outcome

DIMENSION = 64
"""Length of an outcome's vector."""
_SIGNS = 2


@dataclass(frozen=True, slots=True)
class Remembered:
    """A stored outcome and how like the asked-for case it is (cosine, -1 to 1)."""

    outcome: Outcome
    likeness: float


class OutcomeShelf(Protocol):
    """Stores vectors with their outcome; `storage` fills it with Qdrant."""

    async def put(self, tenant: str, outcome: Outcome, vector: Sequence[float]) -> None: ...

    async def nearest(
        self, tenant: str, kind: str, vector: Sequence[float], limit: int
    ) -> Sequence[Remembered]: ...


@dataclass(frozen=True, slots=True)
class Prior:
    """How likely a change of this kind works, from those like it: Beta(1 + worked, 1 + undone)."""

    worked: int
    ended: int

    @property
    def mean(self) -> float:
        return (1 + self.worked) / (2 + self.ended)


class OutcomeMemory:
    """Remembers every outcome and finds the nearest ones."""

    def __init__(self, shelf: OutcomeShelf) -> None:
        self._shelf = shelf

    async def hear(self, event: Event) -> None:
        """Stores the outcome of a finished change; anything else is none of its business."""
        if isinstance(event.fact, OutcomeRecorded):
            outcome = event.fact.outcome
            await self._shelf.put(event.tenant, outcome, vector_of(outcome.features))

    async def similar(
        self, tenant: str, kind: str, features: Mapping[str, float], limit: int = 10
    ) -> Sequence[Remembered]:
        return await self._shelf.nearest(tenant, kind, vector_of(features), limit)


def prior(cases: Sequence[Remembered]) -> Prior:
    """Counts how the cases ended; those that were cancelled say nothing."""
    ended = [c for c in cases if c.outcome.terminal in (ChangeState.COMPLETED, *_UNDONE)]
    worked = sum(c.outcome.terminal is ChangeState.COMPLETED for c in ended)
    return Prior(worked=worked, ended=len(ended))


_UNDONE = (ChangeState.ROLLED_BACK, ChangeState.FAILED)


def vector_of(features: Mapping[str, float]) -> list[float]:
    """Named numbers as a unit vector of `DIMENSION`.

    Signed feature hashing (Weinberger et al., ICML 2009) over the names, so that a feature that
    comes later needs no new schema; values are squashed by asinh, so that dollars and fractions
    weigh alike. The constant `bias` keeps a vector of zeros from being one.
    """
    vector = [0.0] * DIMENSION
    for name, value in {**features, "bias": 1.0}.items():
        digest = blake2b(name.encode(), digest_size=8).digest()
        place = int.from_bytes(digest[:4], "big") % DIMENSION
        sign = 1.0 if digest[4] % _SIGNS else -1.0
        vector[place] += sign * asinh(value)
    norm = sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]
