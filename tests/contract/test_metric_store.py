"""The metric store keeps samples, unknowns included, and answers in bounded time and size."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import weakref
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.clickhouse_queries import resolution_for
from optiinfra.storage.clickhouse_schema import Retention
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.metric_rows import MetricRow, Resolution, SeriesQuery, ticks_ms

NOW = datetime.now(UTC).replace(minute=30, second=0, microsecond=0)
ODD = 'it\'s \\ "odd"\n\t{x:String} ünïcode'


def sample(seconds: float, value: float | None, **changes: object) -> MetricRow:
    fields: dict[str, object] = {
        "tenant": "acme",
        "deployment": "chat",
        "replica": "r1",
        "metric": "ttft_s",
        "at": NOW + timedelta(seconds=seconds),
        "value": value,
        "unit": "s",
        "event_id": str(uuid4()),
        "unknown_reason": None if value is not None else "scrape_failed",
    }
    return MetricRow(**(fields | changes))  # type: ignore[arg-type]


def query(**changes: object) -> SeriesQuery:
    fields: dict[str, object] = {
        "tenant": "acme",
        "deployment": "chat",
        "metric": "ttft_s",
        "since": NOW,
        "until": NOW + timedelta(hours=1),
    }
    return SeriesQuery(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    store = MetricStore(servers.clickhouse_url, database=f"test_{uuid4().hex}")
    await store.migrate()
    yield store
    await store.drop_database()
    await store.aclose()


async def all_of(store: MetricStore, **changes: object) -> list[MetricRow]:
    window: dict[str, object] = {"since": NOW - timedelta(days=1), "until": NOW + timedelta(days=1)}
    return await store.window("acme", "chat", "ttft_s", **(window | changes))  # type: ignore[arg-type]


async def test_a_store_without_tables_says_how_to_make_them(servers: Addresses) -> None:
    bare = MetricStore(servers.clickhouse_url, database=f"test_{uuid4().hex}")
    with pytest.raises(Unavailable, match="optiinfra migrate"):
        await bare.series(query())
    await bare.drop_database()
    await bare.aclose()


async def test_a_sample_comes_back_as_it_went_in(store: MetricStore) -> None:
    rows = [
        sample(0.123, 0.25, labels={"engine": "vllm", ODD: ODD}),
        sample(1, None),
        sample(2, 1e-9, replica=None),
    ]
    await store.insert(rows, "batch-1")
    assert await all_of(store) == rows


async def test_what_was_inserted_is_let_go_without_the_garbage_collector(
    store: MetricStore,
) -> None:
    class Labels(dict[str, str]):
        pass

    labels = Labels()
    gone = weakref.ref(labels)
    row = ("acme", "chat", "r1", "ttft_s", ticks_ms(NOW), 1.0, "", "s", labels, "event-1")
    gc.disable()
    try:
        await store.insert_stored([row], "batch-1")
        del labels, row
        async with asyncio.timeout(5):
            while gone() is not None:  # noqa: ASYNC110 - the store's thread lets it go, untold
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_unknown_stays_unknown_and_is_never_a_number(store: MetricStore) -> None:
    await store.insert([sample(0, None), sample(1, None)], "batch-1")
    (point,) = await store.series(query(points=1))
    assert (point.mean, point.low, point.high, point.p95) == (None, None, None, None)
    assert (point.known, point.unknown) == (0, 2)


@pytest.mark.parametrize("resolution", list(Resolution))
async def test_a_redelivered_batch_changes_neither_rows_nor_rollups(
    store: MetricStore, resolution: Resolution
) -> None:
    rows = [sample(second, float(second)) for second in range(10)]
    for _ in range(3):
        await store.insert(rows, "batch-1")
    await store.insert([sample(10, 10.0)], "batch-2")
    day = NOW.replace(hour=0, minute=0)
    found = await store.series(
        query(since=day, until=day + timedelta(days=1), points=1, resolution=resolution)
    )
    assert [(point.known, point.mean, point.low, point.high) for point in found] == [(11, 5, 0, 10)]


async def test_deduplication_survives_a_new_connection(store: MetricStore) -> None:
    rows = [sample(0, 1.0)]
    await store.insert(rows, "batch-1")
    again = MetricStore(store._url, database=store._database)
    await again.migrate()
    await again.insert(rows, "batch-1")
    await again.aclose()
    (point,) = await store.series(query(points=1, resolution=Resolution.RAW))
    assert point.known == 1


async def test_a_sample_redelivered_in_another_batch_is_read_once(store: MetricStore) -> None:
    row = sample(0, 1.0)
    await store.insert([row], "batch-1")
    await store.insert([row, sample(1, 3.0)], "batch-2")
    assert [found.value for found in await all_of(store)] == [1.0, 3.0]
    (point,) = await store.series(query(points=1))
    assert (point.known, point.mean) == (2, 2.0)


async def test_a_series_has_no_more_points_than_asked_for(store: MetricStore) -> None:
    await store.insert([sample(second, float(second)) for second in range(3600)], "batch-1")
    points = await store.series(query(points=500))
    assert 400 <= len(points) <= 500
    assert sum(point.known for point in points) == 3600
    assert points[0].at == NOW
    assert points[0].low == 0.0
    assert points[-1].high == 3599.0


async def test_a_series_without_samples_is_empty_and_gaps_are_absent(store: MetricStore) -> None:
    assert await store.series(query()) == []
    await store.insert([sample(0, 1.0), sample(3000, 2.0)], "batch-1")
    assert [point.mean for point in await store.series(query(points=60))] == [1.0, 2.0]


async def test_quantiles_are_those_of_the_samples(store: MetricStore) -> None:
    await store.insert([sample(second, float(second)) for second in range(101)], "batch-1")
    (point,) = await store.series(query(points=1))
    assert point.p50 == pytest.approx(50, abs=1)
    assert point.p95 == pytest.approx(95, abs=1)
    assert point.p99 == pytest.approx(99, abs=1)


async def test_a_series_may_name_one_replica(store: MetricStore) -> None:
    await store.insert([sample(0, 1.0), sample(0, 3.0, replica="r2")], "batch-1")
    (both,) = await store.series(query(points=1))
    (one,) = await store.series(query(points=1, replica="r2"))
    assert (both.mean, one.mean) == (2.0, 3.0)


EARLIER = NOW.replace(minute=0) - timedelta(days=2)
"""Hours that are over, of a day that is."""


async def folded(store: MetricStore) -> None:
    """Folds all that is over, as if it had been quiet."""
    while await store.fold(quiet_s=0):
        pass


async def without_raw_rows(store: MetricStore) -> None:
    await store._ask(lambda client: client.command("TRUNCATE TABLE metrics"))


async def known_of(store: MetricStore, resolution: Resolution) -> tuple[int, float | None]:
    day = EARLIER.replace(hour=0)
    asked = query(since=day, until=day + timedelta(days=1), points=1, resolution=resolution)
    (point,) = await store.series(asked)
    return point.known, point.mean


async def test_old_windows_are_read_from_the_table_that_still_holds_them(
    store: MetricStore,
) -> None:
    rows = [sample(0, 5.0, at=EARLIER), sample(0, 7.0, at=EARLIER + timedelta(minutes=1))]
    await store.insert(rows, "batch-1")
    await folded(store)
    await without_raw_rows(store)
    later = MetricStore(
        store._url, database=store._database, clock=lambda: NOW + timedelta(days=60)
    )
    since = EARLIER
    (point,) = await later.series(query(since=since, until=since + timedelta(hours=2)))
    await later.aclose()
    assert (point.at, point.known, point.mean) == (since, 2, 6.0)


@pytest.mark.parametrize("resolution", list(Resolution))
async def test_rollups_count_a_sample_once_in_whatever_batch_it_comes_again(
    store: MetricStore, resolution: Resolution
) -> None:
    first, second, third = (sample(0, value, at=EARLIER) for value in (1.0, 3.0, 8.0))
    await store.insert([first, second], "batch-1")
    await store.insert([second, third], "batch-2")
    assert await known_of(store, resolution) == (3, 4.0)
    await folded(store)
    await store.insert([third, first], "batch-3")
    assert await known_of(store, resolution) == (3, 4.0)
    await folded(store)
    assert await known_of(store, resolution) == (3, 4.0)


@pytest.mark.parametrize("resolution", [Resolution.HOURLY, Resolution.DAILY])
async def test_a_late_sample_makes_its_hour_be_folded_again(
    store: MetricStore, resolution: Resolution
) -> None:
    await store.insert([sample(0, 1.0, at=EARLIER)], "batch-1")
    await folded(store)
    await store.insert([sample(0, 3.0, at=EARLIER + timedelta(seconds=1))], "batch-2")
    assert await known_of(store, resolution) == (2, 2.0)
    await folded(store)
    await without_raw_rows(store)
    assert await known_of(store, resolution) == (2, 2.0)


async def test_what_is_not_over_or_not_quiet_is_not_folded(store: MetricStore) -> None:
    await store.insert([sample(0, 1.0, at=datetime.now(UTC))], "batch-1")
    assert await store.fold(quiet_s=0) == 0
    await store.insert([sample(0, 1.0, at=EARLIER)], "batch-2")
    assert await store.fold() == 0
    assert await store.fold(quiet_s=0) == 1


def test_the_finest_table_that_can_be_read_quickly_is_chosen() -> None:
    def chosen(age_days: float, span_days: float) -> Resolution:
        since = NOW - timedelta(days=age_days)
        asked = query(since=since, until=since + timedelta(days=span_days))
        return resolution_for(asked, Retention(), NOW)

    assert chosen(1, 1) is Resolution.RAW
    assert chosen(10, 10) is Resolution.HOURLY
    assert chosen(40, 1) is Resolution.HOURLY
    assert chosen(80, 80) is Resolution.DAILY
    assert chosen(100, 1) is Resolution.DAILY


async def test_a_window_is_narrowed_by_replicas_and_labels(store: MetricStore) -> None:
    rows = [
        sample(0, 1.0, labels={"stage": "baseline", "set": "golden"}),
        sample(1, 2.0, labels={"stage": "canary"}, replica="r2"),
        sample(2, 3.0, labels={"stage": "canary"}, replica=ODD),
    ]
    await store.insert(rows, "batch-1")
    assert await all_of(store, replicas=["r1", ODD]) == [rows[0], rows[2]]
    assert await all_of(store, labels={"stage": "canary"}) == rows[1:]
    assert await all_of(store, labels={"stage": "baseline", "set": "golden"}) == rows[:1]
    assert await all_of(store, labels={"stage": "x' OR 1=1 --"}) == []
    assert await all_of(store, replicas=[]) == []


async def test_a_window_ends_before_its_end(store: MetricStore) -> None:
    rows = [sample(second, 1.0) for second in range(3)]
    await store.insert(rows, "batch-1")
    found = await all_of(store, since=NOW, until=NOW + timedelta(seconds=2))
    assert found == rows[:2]


async def test_a_window_with_too_many_samples_is_rejected(store: MetricStore) -> None:
    await store.insert([sample(second, 1.0) for second in range(4)], "batch-1")
    with pytest.raises(Rejected, match="over 3 samples"):
        await all_of(store, limit=3)


async def test_latest_gives_the_newest_of_each_metric_replica_and_labels(
    store: MetricStore,
) -> None:
    rows = [
        sample(0, 1.0),
        sample(5, None),
        sample(1, 9.0, metric="kv_usage_fraction", unit="1", labels={"gpu": "0"}),
        sample(1, 8.0, metric="kv_usage_fraction", unit="1", labels={"gpu": "1"}),
        sample(3, 4.0, replica="r2"),
    ]
    await store.insert(rows, "batch-1")
    found = await store.latest("acme", "chat", since=NOW - timedelta(minutes=1))
    assert sorted(row.event_id for row in found) == sorted(row.event_id for row in rows[1:])
    named = await store.latest("acme", "chat", since=NOW, metrics=["ttft_s"])
    assert {row.replica: row.value for row in named} == {"r1": None, "r2": 4.0}
    assert await store.latest("acme", "chat", since=NOW + timedelta(hours=1)) == []


async def test_tenants_do_not_see_one_another(store: MetricStore) -> None:
    await store.insert([sample(0, 1.0), sample(0, 2.0, tenant="other")], "batch-1")
    assert [row.value for row in await all_of(store)] == [1.0]


async def test_migrating_again_changes_the_retention_and_keeps_the_rows(
    store: MetricStore,
) -> None:
    await store.insert([sample(0, 1.0)], "batch-1")
    shorter = MetricStore(
        store._url, database=store._database, retention=Retention(raw_days=7, hourly_days=14)
    )
    await shorter.migrate()
    assert len(await all_of(shorter)) == 1
    await shorter.aclose()


async def test_an_empty_batch_is_nothing_and_a_huge_one_is_rejected(store: MetricStore) -> None:
    await store.insert([], "batch-1")
    with pytest.raises(Rejected, match="rows in one batch"):
        await store.insert([sample(0, 1.0)] * 100_001, "batch-2")


async def test_a_closed_store_and_an_absent_server_are_unavailable(store: MetricStore) -> None:
    closed = MetricStore(store._url, database=store._database)
    await closed.ping()
    await closed.aclose()
    await closed.aclose()
    with pytest.raises(Unavailable, match="closed"):
        await closed.ping()
    absent = MetricStore("http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="does not answer"):
        await absent.ping()
    await absent.aclose()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"value": 1.0, "unknown_reason": "why"}, "either"),
        ({"value": None, "unknown_reason": None}, "either"),
        ({"value": float("nan")}, "finite"),
        ({"at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
    ],
)
def test_a_sample_that_means_nothing_cannot_be_made(
    changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(sample(0, 1.0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"points": 501}, "points"),
        ({"until": NOW}, "after"),
        ({"since": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
    ],
)
def test_a_series_query_that_means_nothing_cannot_be_made(
    changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        query(**changes)
    with pytest.raises(ValueError, match="at least one day"):
        Retention(raw_days=0)
