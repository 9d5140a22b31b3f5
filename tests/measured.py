"""Samples on their way into a real metric store, as the collector brings them there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from optiinfra.events.envelope import Event
from optiinfra.events.facts import MetricsMeasured
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.telemetry import MetricSink, measured

MINUTES = 60.0
DARK = Unknown(reason=UnknownReason.UNREACHABLE, detail="no answer in 2 s")


@asynccontextmanager
async def metric_store(url: str) -> AsyncIterator[MetricStore]:
    """An empty database of its own."""
    store = MetricStore(url, database=f"test_{uuid4().hex}")
    try:
        await store.migrate()
        yield store
        await store.drop_database()
    finally:
        await store.aclose()


def just_now() -> datetime:
    """Whole seconds, a little in the past."""
    return datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=1)


def sample(
    metric: str,
    reading: Reading | float,
    *,
    at: datetime,
    unit: Unit = Unit.COUNT,
    replica: str | None = None,
    window_s: float = 0.0,
    **labels: str,
) -> Sample:
    known = reading if isinstance(reading, Known | Unknown) else Known(value=reading)
    return Sample(
        metric=metric, unit=unit, reading=known, at=at, replica=replica, window_s=window_s,
        labels=labels,
    )  # fmt: skip


def price(
    usd: Reading | float, *, at: datetime, replica: str | None = None, **labels: Any
) -> Sample:
    return sample("usd_per_hour", usd, at=at, unit=Unit.USD_PER_HOUR, replica=replica, **labels)


async def record(
    store: MetricStore,
    samples: Iterable[Sample],
    *,
    deployment: str = "chat",
    tenant: str = "acme",
    family: Literal["performance", "resource", "cost", "quality"] = "performance",
) -> None:
    """Writes them as one event."""
    fact = MetricsMeasured(
        tenant=tenant, deployment=deployment, family=family, samples=tuple(samples)
    )
    event = Event(id=uuid4().hex, source="test", tenant=tenant, time=just_now(), fact=fact)
    assert await MetricSink(store)([measured(event)]) == [None]
