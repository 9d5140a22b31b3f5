"""Samples to rows of the metric store, and back, losing nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from optiinfra.events.envelope import Event
from optiinfra.events.facts import MetricsMeasured
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.metric_rows import MetricRow, StoredRow, ticks_ms

_WINDOW, _ERROR, _DETAIL = "__window_s", "__error", "__detail"
"""Labels that carry what has no column of its own."""
_ENOUGH = 50_000
"""Rows after which a batch of large events is inserted in parts."""
FOLD_EVERY_S = 30.0

log = logging.getLogger("optiinfra.storage.telemetry")


class StoredTelemetry:
    """The telemetry port of the agents over the metric store."""

    def __init__(self, store: MetricStore) -> None:
        self._store = store

    async def window(
        self,
        tenant: str,
        deployment: str,
        metric: str,
        *,
        since: datetime,
        until: datetime,
        replicas: Sequence[str] | None = None,
    ) -> list[Sample]:
        """Samples of `metric` in [since, until), oldest first; unknown readings included."""
        if until <= since:
            return []
        rows = await self._store.window(
            tenant, deployment, metric, since=since, until=until, replicas=replicas
        )
        return [sample_of(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Measured:
    """What is kept of an event until its batch is written: much less than the event."""

    event_id: str
    rows: list[StoredRow]


class MetricSink:
    """Writes measured metrics into the store; one insert a batch of events."""

    def __init__(
        self, store: MetricStore, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self._folded_s = monotonic()

    async def __call__(self, batch: Sequence[Measured]) -> Sequence[BaseException | None]:
        """Writes one batch; a sample that comes again counts once, in whatever batch it comes."""
        token = derived_id(*(one.event_id for one in batch))
        rows: list[StoredRow] = []
        part = 0
        for one in batch:
            if len(rows) >= _ENOUGH:
                await self._store.insert_stored(rows, f"{token}-{part}")
                rows, part = [], part + 1
            rows += one.rows
        await self._store.insert_stored(rows, f"{token}-{part}")
        await self._fold_now_and_then()
        return [None] * len(batch)

    async def _fold_now_and_then(self) -> None:
        """The rows are safe already, so that a fold that fails is tried again another time."""
        if self._monotonic() - self._folded_s < FOLD_EVERY_S:
            return
        self._folded_s = self._monotonic()
        try:
            await self._store.fold()
        except OptiInfraError as failed:
            log.warning("hours of metrics are not folded yet: %s", failed)


def measured(event: Event) -> Measured:
    """The samples of an event, if it measures anything."""
    fact = event.fact
    if not isinstance(fact, MetricsMeasured):
        return Measured(event.id, [])
    tenant, deployment = fact.tenant, fact.deployment
    rows: list[StoredRow] = []
    clock, ticks = None, 0
    for index, sample in enumerate(fact.samples):
        at, reading, value, reason = sample.at, sample.reading, None, ""
        # Mostly all have one time, which is dear to convert. Zones in JSON are fixed offsets.
        if (shown := (at.time(), at.date(), at.tzinfo)) != clock:
            clock, ticks = shown, ticks_ms(at)
        if isinstance(reading, Known):
            value = reading.value
        else:
            reason = reading.reason.value
        rows.append((
            tenant, deployment, sample.replica or "", sample.metric, ticks, value, reason,
            str(sample.unit), _labels(sample), f"{event.id}-{index}",
        ))  # fmt: skip
    return Measured(event.id, rows)


def _labels(sample: Sample) -> dict[str, str]:
    """The sample's labels and, under names of their own, what has no column."""
    reading, labels = sample.reading, sample.labels
    if sample.window_s:
        labels = {**labels, _WINDOW: repr(sample.window_s)}
    if isinstance(reading, Known):
        return {**labels, _ERROR: repr(reading.error)} if reading.error else labels
    return {**labels, _DETAIL: reading.detail} if reading.detail else labels


def sample_of(row: MetricRow) -> Sample:
    """The sample that a row was made from."""
    labels = {name: value for name, value in row.labels.items() if not name.startswith("__")}
    return Sample(
        metric=row.metric,
        unit=Unit(row.unit),
        reading=_reading(row),
        at=row.at,
        window_s=float(row.labels.get(_WINDOW, 0.0)),
        replica=row.replica,
        labels=labels,
    )


def _reading(row: MetricRow) -> Reading:
    if row.value is None:
        reason = UnknownReason(row.unknown_reason or UnknownReason.MISSING)
        return Unknown(reason=reason, detail=row.labels.get(_DETAIL, ""))
    return Known(value=row.value, error=float(row.labels.get(_ERROR, 0.0)))
