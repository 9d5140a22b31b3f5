"""Heat map, forecasts and lanes over HTTP, out of real stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from optiinfra.agents.resource.forecast import ForecastPolicy
from optiinfra.agents.resource.policy import FORECAST, OFFERED, ResourcePolicy
from optiinfra.agents.resource.record import ForecastRecord
from optiinfra.events import facts as f
from optiinfra.portal_api.figures import forecast as forecasting
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.setup import declare
from optiinfra.storage.telemetry import StoredTelemetry
from tests.factories import AT
from tests.integration.api_stand import Stand, got, standing
from tests.integration.figures_stand import MISSING, completed
from tests.measured import just_now, metric_store, record, sample
from tests.telemetry import deployment, gone_dark, steady


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    async with metric_store(servers.clickhouse_url) as made:
        yield made


@pytest.fixture
async def stand(postgres: Database, store: MetricStore) -> AsyncIterator[Stand]:
    await declare(postgres, "acme", [deployment(slo=SLO(ttft_p95_s=0.5))])
    await declare(postgres, "other", [])
    async with standing(postgres, metrics=store) as made:
        yield made


async def test_the_heat_map_adds_replicas_up_and_leaves_gaps_empty(
    stand: Stand, store: MetricStore
) -> None:
    now = just_now()
    early = now - timedelta(minutes=4)
    dark = Unknown(reason=UnknownReason.UNREACHABLE, detail="no answer")
    await record(store, [
        *steady("r1", until=early, scrapes=6, rps=4.0, ttft_s=0.2),
        *steady("r2", until=early, scrapes=6, rps=1.0, ttft_s=0.2),
        *steady("r2", until=early, scrapes=6, rps=2.0, ttft_s=1.0),
        *gone_dark("r1", dark, at=early + timedelta(seconds=30)),
        *steady("r1", until=now, scrapes=4, rps=0.0, ttft_s=0.2),
    ])  # fmt: skip
    found = await got(stand, "/deployments/chat/ttft?window_s=600")
    assert (found["column_s"], len(found["columns"]), found["objective_s"]) == (30.0, 20, 0.5)
    assert [one["up_to_s"] for one in found["rows"]] == [0.202, 0.9, 1.01]
    known = [one["counts"] for one in found["columns"] if one["counts"] is not None]
    assert [sum(row) for row in zip(*known, strict=True)] == [6 * 50, 0, 6 * 20]
    assert known[-1] == [0, 0, 0]
    (out,) = [one for one in found["columns"] if one["counts"] is None and one["unread"]]
    assert out["reason"] == "unreachable"
    empty = [
        one for one in found["columns"] if one["reason"] == "nothing was measured in this time"
    ]
    assert len(empty) >= 6
    assert (await got(stand, "/deployments/chat/ttft?window_s=60"))["rows"] == []
    await got(stand, "/deployments/chat/ttft", tenant="other", status=404)


async def test_a_forecast_is_recorded_when_it_is_made_and_judged_by_what_came(
    stand: Stand, store: MetricStore
) -> None:
    assert (await got(stand, "/deployments/chat/forecast"))["recorded_since"] is None
    assert forecasting.FORECAST == FORECAST
    now = just_now()
    policy = ResourcePolicy(forecast=ForecastPolicy(bin_s=10, horizon_s=60, recent_s=60))
    recording = ForecastRecord(StoredTelemetry(store), policy)
    begin = now - timedelta(seconds=300 + now.second % 10)
    for number in range(31):
        at = begin + timedelta(seconds=10 * number)
        load = 9.0 if number == 25 else 4.0
        await kept(store, [sample(OFFERED, load, at=at, unit=Unit.PER_SECOND)])
        known = await recording.made(deployment(), at + timedelta(seconds=1))
        assert await recording.made(deployment(), at + timedelta(seconds=2)) == []
        await kept(store, known)
    found = await got(stand, "/deployments/chat/forecast?window_s=600")
    points = found["points"]
    assert len(points) == found["forecasts"] == 31
    assert points[0]["reason"] == "1 of 5 steps of 10 s of load history"
    assert (points[0]["high_rps"], points[0]["held"]) == (None, None)
    assert (points[10]["expected_rps"], points[10]["came_rps"], points[10]["held"]) == (4, 4, True)
    surprised = [one for one in points if one["held"] is False]
    assert {one["came_rps"] for one in surprised} == {9.0}
    assert all(when(one["made_at"]) < begin + timedelta(seconds=250) for one in surprised)
    assert points[-1]["came_reason"] == "its time is not over"
    assert (found["over"], found["held"]) == (found["held"] + len(surprised), found["held"])
    assert (found["aims_at"], found["horizon_s"], found["method"]) == (0.95, 60.0, "level")
    assert when(found["recorded_since"]) == begin + timedelta(seconds=1)
    await got(stand, "/deployments/chat/forecast", tenant="other", status=404)


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def kept(store: MetricStore, samples: Sequence[Sample]) -> None:
    await record(store, samples, family="resource")


async def test_lanes_tell_who_did_what_and_a_change_from_its_opening_to_its_end(
    stand: Stand,
) -> None:
    change = await completed(stand, "a", MISSING)
    waiting = await stand.fleet.awaiting("b", deployment="code", title="Move b to spot")
    lost: dict[str, Any] = {"tenant": "acme", "agent": "resource", "instance": "i1"}
    await stand.fleet.hear(
        f.AgentRegistered(**lost, version="1", capabilities=(), at=AT),
        f.AgentLost(**lost, last_seen_at=just_now()),
    )
    found = await got(stand, "/lanes")
    lanes = {one["lane"]: one for one in found["lanes"]}
    assert [*lanes] == ["people", "coordinator", "cost", "performance", "resource", "application"]
    kinds = {
        name: {(one["kind"], one["detail"]) for one in lane["marks"]}
        for name, lane in lanes.items()
    }
    assert kinds["people"] == {("approval.granted", None)}
    assert {("change.completed", None), ("gate.closed", "pass")} <= kinds["coordinator"]
    assert {("recommendation.proposed", None), ("execution.staged", None)} <= kinds["cost"]
    for voter in VOTERS:
        assert ("vote.cast", "approve") in kinds[voter]
    assert ("gate.answered", "pass") in kinds["performance"]
    assert ("agent.lost", None) in kinds["resource"]
    spans = {one["change"]: one for one in lanes["coordinator"]["spans"]}
    assert (spans[change]["state"], spans[change]["title"]) == ("completed", "Move a to spot")
    assert spans[change]["since"] < spans[change]["until"]
    assert (spans[waiting.id]["state"], spans[waiting.id]["until"]) == ("awaiting_approval", None)
    stages = [one for one in lanes["cost"]["spans"] if one["kind"] == "stage"]
    assert [one["state"] for one in stages] == ["passed"] * len(stages) != []
    (silence,) = lanes["resource"]["spans"]
    assert (silence["kind"], silence["until"], silence["title"]) == ("silence", None, "i1")
    events = {one["id"] for one in (await got(stand, "/events?limit=200"))["items"]}
    assert {one["event"] for lane in lanes.values() for one in lane["marks"]} <= events
    code = await got(stand, "/lanes?deployment=code")
    changes = {one["change"] for lane in code["lanes"] for one in lane["marks"] + lane["spans"]}
    assert changes == {waiting.id, None}
    other = await got(stand, "/lanes", tenant="other")
    assert all(one["marks"] == one["spans"] == [] for one in other["lanes"])
