"""Samples through the sink into ClickHouse and back: nothing is lost, unknown stays unknown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from optiinfra.events.facts import MetricsMeasured, RecommendationProposed
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.telemetry import MetricSink, StoredTelemetry, measured
from tests.factories import event, recommendation

AT = datetime.now(UTC).replace(microsecond=0)
"""Older samples would fall to the retention."""
SAMPLES = (
    Sample(
        metric="ttft_s",
        unit=Unit.SECONDS,
        reading=Known(value=0.25, error=0.05),
        at=AT,
        window_s=15.0,
        replica="chat-1",
        labels={"quantile": "0.95"},
    ),
    Sample(
        metric="ttft_s",
        unit=Unit.SECONDS,
        reading=Unknown(reason=UnknownReason.NO_TRAFFIC, detail="no request has finished"),
        at=AT + timedelta(seconds=1),
        replica="chat-2",
    ),
)


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    opened = MetricStore(servers.clickhouse_url, database="telemetry_test")
    await opened.migrate()
    try:
        yield opened
    finally:
        await opened.drop_database()
        await opened.aclose()


async def test_a_sample_comes_back_as_it_was_measured(store: MetricStore) -> None:
    fact = MetricsMeasured(tenant="acme", deployment="chat", family="performance", samples=SAMPLES)
    once = measured(event(fact, name=derived_id("once")))
    sink, telemetry = MetricSink(store), StoredTelemetry(store)
    assert await sink([once]) == [None]
    assert await sink([once]) == [None]
    until = AT + timedelta(seconds=10)
    found = await telemetry.window("acme", "chat", "ttft_s", since=AT, until=until)
    assert tuple(found) == SAMPLES
    one = await telemetry.window(
        "acme", "chat", "ttft_s", since=AT, until=until, replicas=["chat-2"]
    )
    assert tuple(one) == SAMPLES[1:]
    assert await telemetry.window("acme", "chat", "ttft_s", since=until, until=AT) == []
    assert await telemetry.window("other", "chat", "ttft_s", since=AT, until=until) == []


async def test_what_measures_nothing_writes_nothing(store: MetricStore) -> None:
    sink = MetricSink(store)
    nothing = measured(event(RecommendationProposed(recommendation=recommendation())))
    assert await sink([nothing]) == [None]
    assert nothing.rows == []


def test_each_sample_has_its_own_time() -> None:
    east = timezone(timedelta(hours=2))
    times = (
        AT, AT, AT + timedelta(days=1), AT + timedelta(milliseconds=1),
        AT.astimezone(east), AT.replace(tzinfo=east), AT,
    )  # fmt: skip
    samples = tuple(SAMPLES[0].model_copy(update={"at": at}) for at in times)
    fact = MetricsMeasured(tenant="acme", deployment="chat", family="performance", samples=samples)
    found = [row[4] for row in measured(event(fact)).rows]
    assert found == [round(at.timestamp() * 1_000) for at in times]
