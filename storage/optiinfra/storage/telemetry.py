"""Samples to rows of the metric store, and back, losing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from optiinfra.events.envelope import Event
from optiinfra.events.facts import MetricsMeasured
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.metric_rows import MetricRow

_WINDOW, _ERROR, _DETAIL = "__window_s", "__error", "__detail"
"""Labels that carry what has no column of its own."""
_CHUNK = 5_000


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


class MetricSink:
    """Writes measured metrics into the store; one insert a batch of events."""

    def __init__(self, store: MetricStore) -> None:
        self._store = store

    async def __call__(self, events: Sequence[Event]) -> Sequence[BaseException | None]:
        """Handles one batch; what is stored twice by a redelivery is read once (by event id)."""
        rows = [row for event in events for row in rows_of(event)]
        token = derived_id(*(event.id for event in events))
        for start in range(0, len(rows), _CHUNK):
            await self._store.insert(rows[start : start + _CHUNK], f"{token}-{start}")
        return [None] * len(events)


def rows_of(event: Event) -> list[MetricRow]:
    """The rows of one event; empty when it measures nothing."""
    fact = event.fact
    if not isinstance(fact, MetricsMeasured):
        return []
    return [_row(event, fact, sample, index) for index, sample in enumerate(fact.samples)]


def _row(event: Event, fact: MetricsMeasured, sample: Sample, index: int) -> MetricRow:
    reading = sample.reading
    labels = dict(sample.labels)
    if sample.window_s:
        labels[_WINDOW] = repr(sample.window_s)
    if isinstance(reading, Known) and reading.error:
        labels[_ERROR] = repr(reading.error)
    if isinstance(reading, Unknown) and reading.detail:
        labels[_DETAIL] = reading.detail
    return MetricRow(
        tenant=fact.tenant,
        deployment=fact.deployment,
        replica=sample.replica,
        metric=sample.metric,
        at=sample.at,
        value=reading.value if isinstance(reading, Known) else None,
        unknown_reason=reading.reason.value if isinstance(reading, Unknown) else None,
        unit=sample.unit.value,
        labels=labels,
        event_id=f"{event.id}-{index}",
    )


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
