"""Keeps remembered outcomes in Qdrant."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from optiinfra.agents.memory import DIMENSION, Remembered
from optiinfra.schemas.outcome import Outcome
from optiinfra.storage.qdrant import OutcomePoint, OutcomeStore


class QdrantShelf:
    """The memory's shelf over the outcome store."""

    def __init__(self, url: str) -> None:
        self._store = OutcomeStore(url, dimension=DIMENSION)

    async def put(self, tenant: str, outcome: Outcome, vector: Sequence[float]) -> None:
        await self._store.remember(
            OutcomePoint(
                id=UUID(outcome.change),
                tenant=tenant,
                kind=outcome.kind,
                vector=vector,
                payload=outcome.model_dump(mode="json"),
            )
        )

    async def nearest(
        self, tenant: str, kind: str, vector: Sequence[float], limit: int
    ) -> list[Remembered]:
        found = await self._store.similar(vector, tenant=tenant, kind=kind, limit=limit)
        return [
            Remembered(Outcome.model_validate(dict(one.payload)), one.similarity) for one in found
        ]

    async def ping(self) -> None:
        """Raises `Unavailable` when the store does not answer, `Rejected` when it is not ours."""
        await self._store.similar([1.0] * DIMENSION, tenant="-", kind="-", limit=1)

    async def aclose(self) -> None:
        await self._store.aclose()
