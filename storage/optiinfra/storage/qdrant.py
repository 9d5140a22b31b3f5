"""The memory of past outcomes on Qdrant: a local folder, memory, or a server at a URL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import UUID

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from optiinfra.schemas.errors import Invariant, Rejected, Unavailable
from optiinfra.storage.folder_lock import FolderLock
from optiinfra.storage.owner_thread import OwnerThread

Result = TypeVar("Result")

COLLECTION = "outcomes"
MAX_SIMILAR = 100
SERVER_THREADS = 4
TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class OutcomePoint:
    """One outcome as it is remembered: `vector` describes the situation, `payload` what came."""

    id: UUID
    tenant: str
    kind: str
    vector: Sequence[float]
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SimilarOutcome:
    """A remembered outcome and how alike its situation is: `similarity` is a cosine in [-1, 1]."""

    id: UUID
    similarity: float
    payload: Mapping[str, Any]


class OutcomeStore:
    """Outcomes by the likeness of their situations, each tenant's apart.

    `url` is `local:///folder` (one process at a time: `Conflict` else), `memory://` or
    `http(s)://host:6333`. The first call connects and makes the collection for vectors of
    `dimension` numbers. Errors: `Rejected` for a vector that cannot be compared, `Unavailable`
    for a server that does not answer.
    """

    def __init__(self, url: str, *, dimension: int, collection: str = COLLECTION) -> None:
        self._url = url
        self._dimension = dimension
        self._collection = collection
        self._local = urlsplit(url).scheme in ("local", "memory")
        self._lock: FolderLock | None = None
        self._client: QdrantClient | None = None
        self._opening = threading.Lock()
        self._thread = OwnerThread("qdrant", 1 if self._local else SERVER_THREADS)

    async def remember(self, outcome: OutcomePoint) -> None:
        """Store an outcome; the same id again replaces it."""
        point = models.PointStruct(
            id=str(outcome.id),
            vector=self._checked(outcome.vector),
            payload={"tenant": outcome.tenant, "kind": outcome.kind, "facts": outcome.payload},
        )
        await self._ask(lambda client: client.upsert(self._collection, [point], wait=True))

    async def similar(
        self, vector: Sequence[float], *, tenant: str, kind: str, limit: int = 10
    ) -> list[SimilarOutcome]:
        """This tenant's outcomes of a kind, the most alike first."""
        if not 1 <= limit <= MAX_SIMILAR:
            raise Rejected(f"limit {limit} is not within 1 to {MAX_SIMILAR}")
        wanted = self._checked(vector)
        condition = models.Filter(must=[_equals("tenant", tenant), _equals("kind", kind)])

        def run(client: QdrantClient) -> list[SimilarOutcome]:
            answer = client.query_points(
                self._collection,
                query=wanted,
                query_filter=condition,
                limit=limit,
                with_payload=True,
            )
            return [_similar(point) for point in answer.points]

        return await self._ask(run)

    async def forget_all(self) -> None:
        """Delete the whole collection; the next call makes it anew."""

        def run(client: QdrantClient) -> None:
            client.delete_collection(self._collection)
            self._make_collection(client)

        await self._ask(run)

    async def aclose(self) -> None:
        """Wait for the calls under way, close, and let go of the folder. Idempotent."""
        await self._thread.aclose(self._close)

    def _checked(self, vector: Sequence[float]) -> list[float]:
        numbers = [float(number) for number in vector]
        if len(numbers) != self._dimension:
            raise Rejected(f"a vector of {len(numbers)} numbers where {self._dimension} are stored")
        if not all(isfinite(number) for number in numbers):
            raise Rejected("a vector with a number that is not finite")
        if not any(numbers):
            raise Rejected("a vector of zeros has no direction to compare")
        return numbers

    async def _ask(self, function: Callable[[QdrantClient], Result]) -> Result:
        return await self._thread.call(lambda: self._translated(function))

    def _translated(self, function: Callable[[QdrantClient], Result]) -> Result:
        try:
            return function(self._connected())
        except ResponseHandlingException as error:
            raise Unavailable(f"Qdrant does not answer: {error}") from error
        except UnexpectedResponse as error:
            if (error.status_code or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Unavailable(f"Qdrant failed: {error}") from error
            raise Invariant(f"Qdrant refused: {error}") from error

    def _connected(self) -> QdrantClient:
        with self._opening:
            if self._client is None:
                client = self._connect()
                try:
                    self._make_collection(client)
                except BaseException:
                    client.close()
                    raise
                self._client = client
            return self._client

    def _connect(self) -> QdrantClient:
        parts = urlsplit(self._url)
        if parts.scheme == "memory":
            return QdrantClient(location=":memory:")
        if parts.scheme != "local":
            return QdrantClient(url=self._url, timeout=TIMEOUT_S, check_compatibility=False)
        folder = Path(unquote(parts.path))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FolderLock(folder)
        self._lock.acquire()
        return QdrantClient(path=str(folder))

    def _make_collection(self, client: QdrantClient) -> None:
        if client.collection_exists(self._collection):
            self._check_dimension(client)
            return
        size = models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)
        client.create_collection(self._collection, vectors_config=size)
        if not self._local:
            for name in ("tenant", "kind"):
                client.create_payload_index(
                    self._collection, name, models.PayloadSchemaType.KEYWORD, wait=True
                )

    def _check_dimension(self, client: QdrantClient) -> None:
        vectors = client.get_collection(self._collection).config.params.vectors
        if not isinstance(vectors, models.VectorParams) or vectors.size != self._dimension:
            raise Rejected(
                f"collection {self._collection} holds other vectors than {self._dimension} numbers",
                hint="name another collection for another embedding",
            )

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._lock is not None:
            self._lock.release()


def _equals(name: str, wanted: str) -> models.FieldCondition:
    return models.FieldCondition(key=name, match=models.MatchValue(value=wanted))


def _similar(point: models.ScoredPoint) -> SimilarOutcome:
    payload = point.payload or {}
    return SimilarOutcome(
        id=UUID(str(point.id)), similarity=point.score, payload=payload.get("facts", {})
    )
