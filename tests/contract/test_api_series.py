"""Series over HTTP: thinned by a real store, gaps kept, nonsense refused, old ranges remembered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from optiinfra.events.feed import Delivered
from optiinfra.portal_api.measures import MEASURES, Agg
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.telemetry import Unit
from optiinfra.schemas.tenant import Role
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.redis import RegistryCache
from tests.factories import recommendation
from tests.integration.api_stand import Stand, standing
from tests.measured import DARK, metric_store, price, record, sample
from tests.telemetry import steady

END = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=10)
BEGIN = END - timedelta(minutes=2)


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    async with metric_store(servers.clickhouse_url) as made:
        yield made


@pytest.fixture
async def cache() -> AsyncIterator[RegistryCache]:
    made = RegistryCache("memory://")
    yield made
    await made.aclose()


@pytest.fixture
async def stand(database: str, store: MetricStore, cache: RegistryCache) -> AsyncIterator[Stand]:
    async with (
        open_database(database) as postgres,
        standing(postgres, metrics=store, cache=cache) as made,
    ):
        yield made


async def asked(stand: Stand, status: int = 200, *, tenant: str = "acme", **query: Any) -> Any:
    wanted: dict[str, Any] = {
        "deployment": "chat",
        "from": BEGIN.isoformat(),
        "to": END.isoformat(),
        **query,
    }
    async with stand.client(Role.VIEWER, tenant=tenant) as client:
        answer: httpx.Response = await client.get(f"/api/v1/series?{urlencode(wanted)}")
    assert answer.status_code == status, answer.text
    return answer.json()


def begun(at: datetime) -> dict[str, Any]:
    return {"from": at.isoformat()}


async def test_replicas_are_put_together_and_gaps_stay_gaps(
    stand: Stand, store: MetricStore
) -> None:
    at = BEGIN + timedelta(seconds=30)
    await record(store, [
        sample("requests_running", 2.0, at=BEGIN, replica="r1"),
        sample("requests_running", 3.0, at=BEGIN, replica="r2"),
        sample("requests_running", 4.0, at=at, replica="r1"),
        sample("requests_running", DARK, at=at, replica="r2"),
        sample("requests_running", 5.0, at=END - timedelta(seconds=1), replica="r2"),
    ])  # fmt: skip
    found = await asked(stand, metric="requests_running", points=4)
    assert (found["unit"], found["agg"], found["by"], found["step_s"]) == ("count", "sum", None, 30)
    assert found["series"] == [
        {"of": None, "values": [5.0, None, None, 5.0], "unknown": [0, 1, 0, 0]}
    ]
    apart = await asked(stand, metric="requests_running", by="replica", points=4)
    assert apart["agg"] == "mean"
    assert {one["of"]: one["values"] for one in apart["series"]} == {
        "r1": [2.0, 4.0, None, None],
        "r2": [3.0, None, None, 5.0],
    }


async def test_a_quantile_is_that_of_all_requests(stand: Stand, store: MetricStore) -> None:
    fast = steady("r1", until=END - timedelta(seconds=1), scrapes=6, rps=9.0, ttft_s=0.1)
    slow = steady("r2", until=END - timedelta(seconds=1), scrapes=6, rps=1.0, ttft_s=1.0)
    await record(store, [*fast, *slow])
    for agg, low, high in (("p50", 0.09, 0.101), ("p95", 0.9, 1.01), ("mean", 0.189, 0.191)):
        found = await asked(stand, metric="ttft_s", agg=agg, points=2)
        (one,) = found["series"]
        assert low <= one["values"][1] <= high
    assert one["values"][0] is None
    assert found["how"] == "pooled over all requests of a step"


async def test_a_range_has_no_more_steps_than_asked_for(stand: Stand, store: MetricStore) -> None:
    begin = END - timedelta(hours=1)
    rows = [
        sample("requests_running", 1.0, at=begin + timedelta(seconds=n), replica="r1")
        for n in range(3_600)
    ]
    await record(store, rows)
    found = await asked(stand, metric="requests_running", points=500, **begun(begin))
    (one,) = found["series"]
    assert 400 < len(one["values"]) <= 500
    assert set(one["values"]) == {1.0}


async def test_nothing_measured_is_no_series_and_tenants_do_not_see_one_another(
    stand: Stand, store: MetricStore
) -> None:
    await record(store, [price(2.5, at=BEGIN)], family="cost")
    assert (await asked(stand, metric="usd_per_hour", points=1))["series"][0]["values"] == [2.5]
    assert (await asked(stand, metric="usd_per_hour", tenant="other"))["series"] == []
    assert (await asked(stand, metric="requests_running"))["series"] == []


async def test_machines_are_told_apart_by_gpu(stand: Stand, store: MetricStore) -> None:
    rows = [
        sample("gpu_power_watts", watts, at=BEGIN, unit=Unit.WATTS, host="a", gpu=gpu)
        for gpu, watts in (("0", 100.0), ("1", 200.0))
    ]
    await record(store, rows, deployment="host", family="resource")
    found = await asked(stand, deployment="host", metric="gpu_power_watts", by="gpu", points=1)
    assert [(one["of"], one["values"]) for one in found["series"]] == [
        ("a/0", [100.0]), ("a/1", [200.0]),
    ]  # fmt: skip
    both = await asked(stand, deployment="host", metric="gpu_power_watts", points=1)
    assert both["series"][0]["values"] == [300.0]


async def test_answers_count_alike_whatever_replica_gave_them(
    stand: Stand, store: MetricStore
) -> None:
    rows = [
        sample("answer_score", score, at=BEGIN, unit=Unit.SCORE, replica=replica, unit_id=str(n))
        for n, (replica, score) in enumerate([("r1", 1.0), ("r1", 1.0), ("r1", 1.0), ("r2", 0.0)])
    ]
    await record(store, rows, family="quality")
    found = await asked(stand, metric="answer_score", points=1)
    assert found["series"][0]["values"] == [0.75]


async def test_what_makes_no_sense_is_refused_with_what_does(stand: Stand) -> None:
    unknown = await asked(stand, 400, metric="tttf_s")
    assert "did you mean 'ttft_s'" in unknown["hint"]
    assert all(name in unknown["hint"] for name in MEASURES)
    fraction = await asked(stand, 400, metric="kv_usage_fraction", agg="sum")
    assert "fractions of different replicas do not add up" in fraction["detail"]
    assert fraction["hint"] == "ask for mean, max"
    apart = await asked(stand, 400, metric="requests_running", agg="sum", by="replica")
    assert "puts the replicas together" in apart["detail"]
    assert "not told apart by gpu" in (await asked(stand, 400, metric="ttft_s", by="gpu"))["detail"]
    backwards: dict[str, Any] = {"from": END.isoformat(), "to": BEGIN.isoformat()}
    assert "before it begins" in (await asked(stand, 400, metric="ttft_s", **backwards))["detail"]
    ancient: dict[str, Any] = {"from": "0001-01-01T00:00:00Z", "to": "0001-01-01T00:00:01Z"}
    assert "from 1971" in (await asked(stand, 400, metric="ttft_s", **ancient))["detail"]
    long = begun(END - timedelta(days=9))
    assert "8 days" in (await asked(stand, 400, metric="ttft_s", **long))["detail"]
    assert "points" in (await asked(stand, 400, metric="ttft_s", points=501))["detail"]


async def test_every_statistic_that_is_offered_can_be_had_and_no_other(stand: Stand) -> None:
    window = {"deployment": "chat", "from": BEGIN.isoformat(), "to": END.isoformat()}
    async with stand.client(Role.VIEWER) as client:
        offered = (await client.get("/api/v1/metrics")).json()["items"]
        assert {one["metric"] for one in offered} == set(MEASURES)
        for one in offered:
            for agg in Agg:
                query = urlencode(window | {"metric": one["metric"], "agg": agg.value})
                answer = await client.get(f"/api/v1/series?{query}")
                if agg.value in one["aggs"]:
                    assert answer.json()["series"] == []
                else:
                    assert "makes no sense" in answer.json()["detail"]
        for one in offered:
            if one["by"]:
                query = urlencode(window | {"metric": one["metric"], "by": one["by"]})
                assert (await client.get(f"/api/v1/series?{query}")).json()["series"] == []


async def test_a_long_range_is_read_from_rollups(stand: Stand, store: MetricStore) -> None:
    begin = END - timedelta(days=10)
    await record(store, [price(2.0, at=begin + timedelta(hours=n)) for n in range(240)])
    await store.fold(quiet_s=0)
    found = await asked(stand, metric="usd_per_hour", points=10, **begun(begin))
    assert found["step_s"] % 3_600 == 0
    (one,) = found["series"]
    assert [value for value in one["values"] if value is not None] == [2.0] * len(one["values"])


async def test_an_api_without_a_metric_store_says_so(database: str) -> None:
    async with open_database(database) as postgres, standing(postgres) as bare:
        found = await asked(bare, 503, metric="ttft_s")
    assert "OPTIINFRA_CLICKHOUSE_URL" in found["hint"]


async def test_a_closed_range_is_remembered_until_its_deployment_moves(
    stand: Stand, store: MetricStore
) -> None:
    async def seen(deployment: str = "chat") -> list[float | None]:
        found = await asked(stand, deployment=deployment, metric="usd_per_hour", points=1)
        assert found["closed"] is True
        values: list[float | None] = found["series"][0]["values"]
        return values

    for deployment in ("chat", "code"):
        await record(store, [price(2.0, at=BEGIN)], deployment=deployment)
        assert await seen(deployment) == [2.0]
        await record(store, [price(4.0, at=BEGIN)], deployment=deployment)
        assert await seen(deployment) == [2.0]
    proposal = recommendation()
    body = {"kind": "recommendation.proposed", "recommendation": proposal.model_dump(mode="json")}
    await said(stand, 1, body)
    await eventually(seen, [3.0])
    await record(store, [price(6.0, at=BEGIN)])
    assert await seen() == [3.0]
    await said(stand, 2, {"kind": "change.completed", "change": proposal.id})
    await eventually(seen, [4.0])
    assert await seen("code") == [2.0]


async def said(stand: Stand, sequence: int, body: dict[str, Any]) -> None:
    stand.feed.said.put_nowait(
        Delivered(
            sequence, "change.x.acme.y", {"ce-id": f"{sequence:032x}"},
            json.dumps(body).encode(), datetime.now(UTC),
        )
    )  # fmt: skip


async def eventually(seen: Any, expected: list[float | None]) -> None:
    async with asyncio.timeout(10):
        while await seen() != expected:  # noqa: ASYNC110 - seen from outside only
            await asyncio.sleep(0.05)


async def test_a_cache_that_is_away_is_as_good_as_an_empty_one(
    stand: Stand, store: MetricStore, cache: RegistryCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise Unavailable("Redis does not answer")

    monkeypatch.setattr(cache, "get_json", away)
    monkeypatch.setattr(cache, "set_json", away)
    await record(store, [price(2.0, at=BEGIN)])
    found = await asked(stand, metric="usd_per_hour", points=1)
    assert found["series"][0]["values"] == [2.0]


async def test_an_open_range_is_read_anew(stand: Stand, store: MetricStore) -> None:
    now = datetime.now(UTC)
    window: dict[str, Any] = {
        "from": (now - timedelta(minutes=2)).isoformat(),
        "to": (now + timedelta(minutes=1)).isoformat(),
    }
    for value, mean in ((2.0, 2.0), (4.0, 3.0)):
        await record(store, [price(value, at=now - timedelta(seconds=5))])
        found = await asked(stand, metric="usd_per_hour", points=1, **window)
        assert (found["closed"], found["series"][0]["values"]) == (False, [mean])
