"""Series of several replicas are put together step by step as exactly as the samples allow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from math import inf
from uuid import uuid4

import pytest

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.histograms import Bin, Distribution, pooled
from optiinfra.storage import clickhouse
from optiinfra.storage import clickhouse_folds as folds
from optiinfra.storage import clickhouse_summaries as windows
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.clickhouse_folds import Fold, FoldQuery, Part, PooledQuery, Rows
from optiinfra.storage.clickhouse_summaries import AnswersQuery, SummaryQuery
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.metric_rows import MetricRow, Resolution, SeriesQuery, Steps

NOW = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


def row(second: float, metric: str, value: float | None, **changes: object) -> MetricRow:
    fields: dict[str, object] = {
        "tenant": "acme", "deployment": "chat", "replica": "r1", "metric": metric,
        "at": NOW + timedelta(seconds=second), "value": value, "unit": "count",
        "event_id": str(uuid4()), "unknown_reason": None if value is not None else "unreachable",
    }  # fmt: skip
    return MetricRow(**(fields | changes))  # type: ignore[arg-type]


def window(metric: str, **changes: object) -> SeriesQuery:
    fields: dict[str, object] = {
        "tenant": "acme", "deployment": "chat", "metric": metric,
        "since": NOW, "until": NOW + timedelta(seconds=60), "points": 6,
    }  # fmt: skip
    return SeriesQuery(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    store = MetricStore(servers.clickhouse_url, database=f"test_{uuid4().hex}")
    await store.migrate()
    yield store
    await store.drop_database()
    await store.aclose()


def values(steps: Steps) -> list[tuple[str, int, float | None]]:
    return [(one.part, one.step, one.value) for one in steps.points]


async def fold(store: MetricStore, metric: str, how: Fold, **changes: object) -> Steps:
    changes = {"window": window(metric)} | changes
    return await store.folded(FoldQuery(fold=how, **changes))  # type: ignore[arg-type]


LOADS = [
    row(0, "requests_running", 2.0),
    row(5, "requests_running", 4.0),
    row(5, "requests_running", 8.0, replica="r2"),
    row(20, "requests_running", 1.0),
    row(20, "requests_running", None, replica="r2"),
    row(50, "requests_running", 5.0, replica="r2"),
]


async def test_replicas_are_added_averaged_or_left_apart(store: MetricStore) -> None:
    await store.insert(LOADS, "one")
    apart = await fold(store, "requests_running", Fold.EACH)
    assert (apart.since, apart.width_s) == (NOW, 10.0)
    assert values(apart) == [
        ("r1", 0, 3.0), ("r1", 2, 1.0), ("r2", 0, 8.0), ("r2", 2, None), ("r2", 5, 5.0),
    ]  # fmt: skip
    assert values(await fold(store, "requests_running", Fold.MEAN)) == [
        ("", 0, 5.5), ("", 2, 1.0), ("", 5, 5.0),
    ]  # fmt: skip
    highest = await fold(store, "requests_running", Fold.MAX, stat="max")
    assert [one.value for one in highest.points] == [8.0, 1.0, 5.0]


async def test_a_sum_with_an_unknown_part_is_unknown(store: MetricStore) -> None:
    await store.insert(LOADS, "one")
    added = await fold(store, "requests_running", Fold.SUM)
    assert values(added) == [("", 0, 11.0), ("", 2, None), ("", 5, 5.0)]
    assert [one.unknown for one in added.points] == [0, 1, 0]


async def test_a_redelivered_sample_counts_once(store: MetricStore) -> None:
    await store.insert(LOADS, "one")
    await store.insert(LOADS[:3], "again")
    assert values(await fold(store, "requests_running", Fold.SUM))[0] == ("", 0, 11.0)


async def test_rows_of_the_whole_deployment_are_not_added_to_those_of_replicas(
    store: MetricStore,
) -> None:
    rows = [
        row(0, "usd_per_hour", 3.0, replica=None),
        row(0, "usd_per_hour", 1.0),
        row(0, "usd_per_hour", 2.0, replica="r2"),
    ]
    await store.insert(rows, "one")
    for chosen, expected in ((Rows.WHOLE, 3.0), (Rows.REPLICAS, 3.0), (Rows.ALL, 6.0)):
        found = await fold(store, "usd_per_hour", Fold.SUM, rows=chosen)
        assert values(found) == [("", 0, expected)]


async def test_gpus_and_quantiles_are_told_apart_by_their_labels(store: MetricStore) -> None:
    rows = [
        row(0, "gpu_busy_fraction", 0.5, labels={"host": "a", "gpu": "0"}),
        row(0, "gpu_busy_fraction", 0.7, labels={"host": "a", "gpu": "1"}),
        row(0, "e2e_s", 1.0, labels={"quantile": "p50"}),
        row(0, "e2e_s", 9.0, labels={"quantile": "p95"}),
    ]
    await store.insert(rows, "one")
    gpus = await fold(store, "gpu_busy_fraction", Fold.EACH, part=Part.GPU)
    assert values(gpus) == [("a/0", 0, 0.5), ("a/1", 0, 0.7)]
    slow = await fold(store, "e2e_s", Fold.MAX, stat="max", quantile="p95")
    assert values(slow) == [("", 0, 9.0)]


@pytest.mark.parametrize("is_folded", [False, True])
async def test_hours_are_put_together_from_rollups_as_from_samples(
    store: MetricStore,
    is_folded: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    rows = [
        row(600 * n, "requests_running", float(n), replica=replica)
        for n in range(12)
        for replica in ("r1", "r2")
    ]
    await store.insert(rows, "one")
    if is_folded:
        assert await store.fold(quiet_s=0) > 0
    asked = window(
        "requests_running",
        until=NOW + timedelta(hours=2), points=2, resolution=Resolution.HOURLY,
    )  # fmt: skip
    found = await fold(store, "requests_running", Fold.SUM, window=asked)
    assert values(found) == [("", 0, 5.0), ("", 1, 17.0)]
    apart = await fold(store, "requests_running", Fold.EACH, stat="max", window=asked)
    assert values(apart) == [("r1", 0, 5.0), ("r1", 1, 11.0), ("r2", 0, 5.0), ("r2", 1, 11.0)]


async def test_too_many_series_are_refused(
    store: MetricStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.insert(LOADS, "one")
    monkeypatch.setattr(folds, "MAX_VALUES", 2)
    with pytest.raises(Rejected, match="fold them"):
        await fold(store, "requests_running", Fold.EACH)


BINS = {
    "r1": [Bin(0.0, 0.1, 6.0), Bin(0.1, 0.5, 3.0), Bin(0.5, inf, 1.0)],
    "r2": [Bin(0.1, 0.5, 10.0)],
}
SUMS = {"r1": 2.0, "r2": 3.0}


def observed(second: float, replica: str) -> list[MetricRow]:
    bins = [
        row(second, "ttft_s_bucket", one.count, replica=replica,
            labels={"ge": repr(one.low), "le": repr(one.high)})
        for one in BINS[replica]
    ]  # fmt: skip
    return [*bins, row(second, "ttft_s_sum", SUMS[replica], replica=replica)]


@pytest.mark.parametrize("stat", ["p50", "p95", "p99"])
async def test_quantiles_are_those_of_all_observations_of_a_step(
    store: MetricStore, stat: str
) -> None:
    dark = row(12, "ttft_s", None, replica="r2", labels={"quantile": "p95"})
    quiet = row(13, "ttft_s", None, labels={"quantile": "p95"}, unknown_reason="no_traffic")
    rows = [*observed(0, "r1"), *observed(5, "r2"), *observed(10, "r1"), dark, quiet]
    await store.insert(rows, "one")
    found = await store.pooled(PooledQuery(window=window("ttft_s"), stat=stat, fold=Fold.MEAN))
    fraction = float(stat[1:]) / 100
    both = pooled(Distribution((one,)) for bins in BINS.values() for one in bins)
    expected = [both.quantile(fraction), Distribution(tuple(BINS["r1"])).quantile(fraction)]
    assert [one.value for one in found.points] == [
        pytest.approx(reading.value) for reading in expected if reading.state == "known"
    ]
    assert [(one.known, one.unknown) for one in found.points] == [(20, 0), (10, 1)]
    apart = await store.pooled(PooledQuery(window=window("ttft_s"), stat=stat, fold=Fold.EACH))
    assert [one.part for one in apart.points] == ["r1", "r1", "r2", "r2"]
    assert apart.points[-1].value is None


async def test_the_mean_of_a_histogram_is_exact(store: MetricStore) -> None:
    await store.insert([*observed(0, "r1"), *observed(5, "r2")], "one")
    found = await store.pooled(PooledQuery(window=window("ttft_s"), stat="mean", fold=Fold.MEAN))
    assert [one.value for one in found.points] == [pytest.approx(5.0 / 20)]


async def test_a_summary_has_the_newest_reading_and_what_the_window_holds(
    store: MetricStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        row(0, "requests_per_s", 2.0, labels={"__window_s": "10.0"}),
        row(10, "requests_per_s", 4.0, labels={"__window_s": "10.0"}),
        row(20, "requests_per_s", None),
        row(0, "requests_per_s", 9.0, tenant="other"),
        row(0, "requests_per_s", 9.0, deployment="host"),
    ]
    await store.insert(rows, "one")
    asked = SummaryQuery(
        tenant="acme", deployments=["chat"], metrics=["requests_per_s"], since=NOW,
        until=NOW + timedelta(seconds=60), recent_since=NOW + timedelta(seconds=10),
    )  # fmt: skip
    (one,) = await store.summaries(asked)
    assert (one.deployment, one.replica, one.labels) == ("chat", "r1", {})
    assert (one.last, one.last_reason) == (None, "unreachable")
    assert one.last_at == NOW + timedelta(seconds=20)
    assert (one.mean, one.high, one.total, one.recent) == (3.0, 4.0, 6.0, 4.0)
    assert (one.weighted, one.covered_s, one.known, one.unknown) == (60.0, 20.0, 2, 1)
    monkeypatch.setattr(windows, "MAX_ROWS", 0)
    with pytest.raises(Rejected, match="one deployment"):
        await store.summaries(asked)


async def test_a_sample_that_came_again_is_summed_up_once(store: MetricStore) -> None:
    said = [row(n * 10, "requests_per_s", 2.0, replica=replica) for n in range(3)
            for replica in ("r1", "r2")]  # fmt: skip
    other = row(0, "requests_waiting", 5.0, replica="r1")
    at_once = [row(0, "answer_score", score, replica="r1") for score in (0.2, 0.6)]
    await store.insert([*said, other, *at_once], "one")
    await store.insert([said[0], row(30, "requests_per_s", 8.0, replica="r2")], "another")
    asked = SummaryQuery(
        tenant="acme", metrics=["requests_per_s", "requests_waiting", "answer_score"], since=NOW,
        until=NOW + timedelta(seconds=60), recent_since=NOW,
    )  # fmt: skip
    found = await store.summaries(asked)
    assert [(one.replica, one.metric, one.known, one.total) for one in found] == [
        ("r1", "answer_score", 2, pytest.approx(0.8)),
        ("r1", "requests_per_s", 3, 6.0),
        ("r1", "requests_waiting", 1, 5.0),
        ("r2", "requests_per_s", 4, 14.0),
    ]


async def test_more_than_can_be_read_at_once_is_refused_with_what_to_do(
    servers: Addresses, store: MetricStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.insert([row(0, "requests_per_s", 2.0)], "one")
    monkeypatch.setitem(clickhouse.SETTINGS, "max_memory_usage", 1)
    small = MetricStore(servers.clickhouse_url, database=store._database)
    asked = SummaryQuery(
        tenant="acme", metrics=["requests_per_s"], since=NOW, until=NOW + timedelta(seconds=60),
        recent_since=NOW,
    )  # fmt: skip
    try:
        with pytest.raises(Rejected, match="more than can be read") as refused:
            await small.summaries(asked)
        assert "one deployment" in str(refused.value.hint)
    finally:
        await small.aclose()


async def test_answers_come_a_page_at_a_time(store: MetricStore) -> None:
    rows = [
        row(n // 2, "answer_score", 0.5, event_id=f"e-{n}", labels={"source": source})
        for n, source in enumerate(["live", "golden", "live", "live", "live"])
    ]
    await store.insert(rows, "one")
    asked = AnswersQuery(
        tenant="acme", deployment="chat", metric="answer_score", since=NOW,
        until=NOW + timedelta(hours=1), limit=3, source="live",
    )  # fmt: skip
    first = await store.answers(asked)
    assert [one.event_id for one in first] == ["e-4", "e-3", "e-2"]
    last_ms = int(first[-1].at.timestamp() * 1_000)
    rest = await store.answers(
        AnswersQuery(
            tenant="acme", deployment="chat", metric="answer_score", since=NOW,
            until=NOW + timedelta(hours=1), limit=3, source="live", after=(last_ms, "e-2"),
        )
    )  # fmt: skip
    assert [one.event_id for one in rest] == ["e-0"]
