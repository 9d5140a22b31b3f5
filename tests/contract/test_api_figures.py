"""Overview, costs, performance, resources and quality, out of real stores; unknown stays null."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.tenant import Role
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.setup import declare
from tests.integration.api_stand import Stand, got, standing
from tests.integration.figures_stand import completed
from tests.measured import DARK, just_now, metric_store, price, record, sample
from tests.telemetry import deployment, steady

MISSING = Unknown(reason=UnknownReason.MISSING, detail="not asked")


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    async with metric_store(servers.clickhouse_url) as made:
        yield made


@pytest.fixture
async def stand(postgres: Database, store: MetricStore) -> AsyncIterator[Stand]:
    await declare(postgres, "acme", [deployment(slo=SLO(ttft_p95_s=0.5, tpot_p95_s=0.05))])
    await declare(postgres, "other", [])
    async with standing(postgres, metrics=store) as made:
        yield made


def tokens(replica: str, per_s: float, *, scrapes: int = 31) -> list[Sample]:
    """Half as many prompt tokens as are generated, for five minutes."""
    until = just_now()
    return [
        sample(
            metric, per_s * share, at=until - timedelta(seconds=10.0 * number),
            unit=Unit.PER_SECOND, replica=replica, window_s=10.0,
        )
        for number in range(scrapes)
        for metric, share in (("prompt_tokens_per_s", 0.5), ("generation_tokens_per_s", 1.0))
    ]  # fmt: skip


async def fleet(store: MetricStore) -> None:
    """Five minutes of a busy spot replica and of an idle one that costs half as much."""
    now = just_now()
    busy = steady("r1", until=now, scrapes=31, rps=4.0, ttft_s=0.2, tpot_s=0.02)
    idle = steady("r2", until=now, scrapes=31, rps=0.0, running=0.0)
    await record(store, [*busy, *idle, *tokens("r1", 100.0), *tokens("r2", 0.0)])
    market = {"instance_type": "g5.xlarge", "price_source": "list of 2026-01-01"}
    await record(store, family="cost", samples=[
        price(2.0, at=now, replica="r1", market="spot", **market),
        price(1.0, at=now, replica="r2", market="on_demand", **market),
        price(3.0, at=now),
    ])  # fmt: skip


async def test_an_empty_fleet_knows_nothing_and_says_why(stand: Stand) -> None:
    found = await got(stand, "/overview")
    assert found["spend"]["usd_per_hour"]["value"] is None
    assert found["spend"]["usd_per_hour"]["reason"] == "chat: nothing was measured in this time"
    assert (found["realised"]["usd_per_month"]["value"], found["realised"]["changes"]) == (0.0, 0)
    assert (found["pending"]["count"], found["pending"]["oldest_age_s"]) == (0, None)
    (slo,) = found["slo"]["deployments"]
    assert (slo["met"], slo["ttft"]["within"], slo["goodput"]["low"]) == (None, None, None)
    assert all(found[part]["source"] for part in ("spend", "realised", "pending", "running", "slo"))


async def test_the_overview_adds_up_what_is_known(stand: Stand, store: MetricStore) -> None:
    await fleet(store)
    await completed(stand, "a", Known(value=800.0))
    await completed(stand, "b", MISSING)
    waiting = await stand.fleet.awaiting("c", title="Move c to spot")
    found = await got(stand, "/overview?window_s=300")
    assert found["spend"]["usd_per_hour"]["value"] == 3.0
    assert found["spend"]["usd_per_month"]["value"] == 3.0 * 730
    realised = found["realised"]
    assert (realised["usd_per_month"]["value"], realised["changes"], realised["unknown"]) == (
        800.0, 2, 1,
    )  # fmt: skip
    assert (realised["deployments"], found["simulated"]) == (["chat"], [])
    events = (await got(stand, "/events?kind=outcome.recorded"))["items"]
    assert realised["event_position"] == events[-1]["position"]
    (asked,) = found["pending"]["items"]
    assert (asked["id"], asked["title"], asked["risk"]) == (waiting.id, "Move c to spot", "high")
    assert asked["expires_at"] > asked["asked_at"]
    assert found["pending"]["oldest_age_s"] > 0
    (slo,) = found["slo"]["deployments"]
    assert slo["ttft"]["within"] == slo["tpot"]["within"] == 1.0
    assert (slo["goodput"]["low"], slo["goodput"]["high"], slo["met"]) == (1.0, 1.0, True)


async def test_the_overview_names_what_is_simulated(stand: Stand, store: MetricStore) -> None:
    await record(
        store, [sample("requests_per_s", 1.0, at=just_now(), replica="r1", emulated="true")]
    )
    assert (await got(stand, "/overview"))["simulated"] == ["chat"]


async def test_a_running_change_is_counted(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as client:
        await client.post(
            f"/api/v1/recommendations/{proposal.id}/approve",
            json={}, headers={"If-Match": f'"{proposal.version_hash}"'},
        )  # fmt: skip
    await stand.fleet.take_in(stand.said.events)
    running = (await got(stand, "/overview"))["running"]
    assert running["count"] == 1
    assert (running["items"][0]["id"], running["items"][0]["state"]) == (proposal.id, "executing")
    assert (await got(stand, "/overview", tenant="other"))["running"]["count"] == 0


async def test_a_slow_fleet_breaks_its_objective_and_a_dark_one_is_unknown(
    stand: Stand, store: MetricStore
) -> None:
    now = just_now()
    await record(store, steady("r1", until=now, rps=4.0, ttft_s=1.0, errors=DARK))
    (slo,) = (await got(stand, "/overview?window_s=300"))["slo"]["deployments"]
    assert (slo["ttft"]["met"], slo["ttft"]["within"], slo["met"]) == (False, 0.0, False)
    assert (slo["tpot"]["met"], slo["goodput"]["high"]) == (True, 0.0)
    assert (slo["errors"]["met"], slo["errors"]["observed"]["reason"]) == (None, "r1: unreachable")


async def test_costs_stand_apart_by_what_replicas_do(stand: Stand, store: MetricStore) -> None:
    await fleet(store)
    found = await got(stand, "/costs?window_s=300")
    (chat,) = found["deployments"]
    assert chat["components"] == [
        {"component": "idle", "usd_per_hour": 1.0}, {"component": "spot", "usd_per_hour": 2.0},
    ]  # fmt: skip
    assert chat["idle_usd_per_hour"]["value"] == 1.0
    assert found["total"]["usd_per_hour"]["value"] == 3.0
    assert found["price_sources"] == ["list of 2026-01-01"]
    made = chat["tokens"]["generated"]
    assert chat["tokens"]["prompt"] == made / 2
    # Both replicas are paid for as long as they were watched: 3 USD an hour for 150 tokens/s.
    assert chat["usd_per_million_tokens"]["value"] == pytest.approx(3.0 / 3_600 / 150 * 1e6)
    good = chat["usd_per_million_good_tokens"]
    assert good["low"] == good["high"] == pytest.approx(chat["usd_per_million_tokens"]["value"])


async def test_a_replica_that_has_gone_is_paid_for_no_longer(
    stand: Stand, store: MetricStore
) -> None:
    """Its price is of late, and the fleet was looked at since: parts add up to the whole."""
    await fleet(store)
    later = just_now() + timedelta(milliseconds=500)
    await record(store, family="cost", samples=[
        price(2.0, at=later, replica="r1", market="spot"), price(2.0, at=later),
    ])  # fmt: skip
    (chat,) = (await got(stand, "/costs?window_s=300"))["deployments"]
    assert chat["usd_per_hour"]["value"] == 2.0
    assert chat["components"] == [{"component": "spot", "usd_per_hour": 2.0}]
    assert chat["idle_usd_per_hour"]["value"] == 0.0


async def test_what_is_not_known_of_costs_is_null(stand: Stand, store: MetricStore) -> None:
    now = just_now()
    dark = steady("r1", until=now, scrapes=31, rps=0.0, running=0.0, errors=DARK)
    await record(store, [one for one in dark if one.metric != "requests_waiting"])
    await record(store, family="cost", samples=[
        price(2.0, at=now, replica="r1", market="spot"),
        price(DARK, at=now, replica="r2", market="spot"),
        price(DARK, at=now),
    ])  # fmt: skip
    (chat,) = (await got(stand, "/costs?window_s=300"))["deployments"]
    assert (chat["usd_per_hour"]["value"], chat["usd_per_hour"]["reason"]) == (None, "unreachable")
    assert chat["components"] == [{"component": "unmeasured", "usd_per_hour": 2.0}]
    assert (chat["unpriced_replicas"], chat["idle_usd_per_hour"]["value"]) == (1, None)
    assert chat["tokens"] == {"prompt": None, "generated": None}
    assert chat["usd_per_million_tokens"]["value"] is None
    assert chat["usd_per_million_good_tokens"]["low"] is None
    water = chat["waterfall"]
    assert water["baseline_usd_per_hour"]["reason"] == "no change has completed yet"
    assert water["other_usd_per_hour"]["value"] is None


async def test_the_waterfall_leads_from_the_first_spend_to_the_present_one(
    stand: Stand, store: MetricStore
) -> None:
    await fleet(store)
    await completed(stand, "a", Known(value=730.0), before=Known(value=5.0))
    await completed(stand, "b", Known(value=365.0), before=Known(value=4.0))
    (chat,) = (await got(stand, "/costs?window_s=300&deployment=chat"))["deployments"]
    water = {name: part["value"] for name, part in chat["waterfall"].items() if name[-1] == "r"}
    assert water == {
        "baseline_usd_per_hour": 5.0, "realised_usd_per_hour": pytest.approx(1.5),
        "other_usd_per_hour": pytest.approx(-0.5), "current_usd_per_hour": 3.0,
    }  # fmt: skip
    assert (await got(stand, "/costs?deployment=nothing"))["deployments"] == []


async def test_costs_can_be_had_as_a_table(stand: Stand, store: MetricStore) -> None:
    await fleet(store)
    async with stand.client(Role.VIEWER) as client:
        answer = await client.get("/api/v1/costs?window_s=300", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert "x-event-seq" in answer.headers
    (row,) = csv.DictReader(io.StringIO(answer.text))
    assert (row["deployment"], row["usd_per_hour"], row["baseline_usd_per_hour"]) == (
        "chat", "3.0", "",
    )  # fmt: skip


async def test_outcomes_come_a_page_at_a_time(stand: Stand) -> None:
    first = await completed(stand, "a", Known(value=800.0))
    second = await completed(stand, "b", MISSING)
    page = await got(stand, "/outcomes?limit=1&kind=spot_migration&state=completed")
    assert [one["id"] for one in page["items"]] == [second]
    rest = await got(stand, page["next"].removeprefix("/api/v1"))
    assert [one["id"] for one in rest["items"]] == [first]
    assert rest["next"] is None
    (one,) = rest["items"]
    assert one["outcome"]["predicted_usd_per_month"]["mid"] == 700.0
    assert one["title"] == "Move a to spot"
    assert (await got(stand, "/outcomes?deployment=other"))["items"] == []
    assert (await got(stand, "/outcomes", tenant="other"))["items"] == []


async def test_performance_tells_the_last_minute_and_the_window_apart(
    stand: Stand, store: MetricStore
) -> None:
    now = just_now()
    before = steady("r1", until=now - timedelta(seconds=120), rps=4.0, ttft_s=1.0, running=8.0)
    recent = steady("r1", until=now, scrapes=5, rps=4.0, ttft_s=0.2, running=2.0)
    spread = [
        sample(
            "queue_time_s", 0.3, at=now, unit=Unit.SECONDS, replica=replica, quantile=quantile,
            emulated="true",
        )
        for replica, quantile in (("r1", "p50"), ("r1", "p95"), ("r2", "p95"), ("r1", "p99"))
    ]  # fmt: skip
    await record(store, [*before, *recent, *spread])
    found = await got(stand, "/deployments/chat/performance?window_s=300")
    latencies = {one["metric"]: one for one in found["latencies"]}
    assert latencies["ttft_s"]["latest"]["p95"]["value"] < 0.21
    assert latencies["ttft_s"]["window"]["p95"]["value"] > 0.9
    assert (latencies["ttft_s"]["exact"], latencies["queue_time_s"]["exact"]) == (True, False)
    assert latencies["queue_time_s"]["latest"]["p95"]["value"] == 0.3
    assert latencies["e2e_s"]["latest"]["p95"]["reason"] == "no replica was measured of late"
    levels = {one["metric"]: one for one in found["levels"]}
    assert levels["requests_running"]["latest"]["value"] == 2.0
    assert 2.0 < levels["requests_running"]["window"]["value"] < 8.0
    assert levels["kv_usage_fraction"]["latest"]["value"] is None
    assert (found["simulated"], found["slo"]["ttft_p95_s"]) == (True, 0.5)


async def test_a_replica_that_went_dark_makes_the_present_unknown(
    stand: Stand, store: MetricStore
) -> None:
    now = just_now()
    gone = [
        sample("ttft_s", DARK, at=now, unit=Unit.SECONDS, replica="r2", quantile="p95"),
        sample("requests_running", DARK, at=now, replica="r2"),
    ]
    await record(store, [*steady("r1", until=now), *steady("r2", until=now - timedelta(seconds=9))])
    await record(store, gone)
    found = await got(stand, "/deployments/chat/performance?window_s=300")
    ttft = found["latencies"][0]
    assert (ttft["latest"]["p95"]["value"], ttft["latest"]["p95"]["reason"]) == (
        None, "r2: unreachable",
    )  # fmt: skip
    assert ttft["window"]["p95"]["value"] > 0
    running = found["levels"][0]["latest"]
    assert (running["value"], running["reason"]) == (None, "r2: unreachable")


async def test_a_replica_that_was_stopped_is_counted_no_more(
    stand: Stand, store: MetricStore
) -> None:
    now = just_now()
    stopped = steady("r2", until=now - timedelta(seconds=120), running=4.0)
    await record(store, [*steady("r1", until=now, running=3.0), *stopped])
    found = await got(stand, "/deployments/chat/performance?window_s=300")
    assert found["levels"][0]["latest"]["value"] == 3.0


async def test_resources_show_who_idles_and_what_that_costs(
    stand: Stand, store: MetricStore
) -> None:
    await fleet(store)
    now = just_now()
    gpu: dict[str, Any] = {"host": "a", "gpu": "0", "name": "L4"}
    await record(store, deployment="host", family="resource", samples=[
        sample("gpu_busy_fraction", 0.5, at=now, unit=Unit.FRACTION, **gpu),
        sample("gpu_power_watts", DARK, at=now, unit=Unit.WATTS, **gpu),
    ])  # fmt: skip
    await record(store, [sample("offered_rps", 4.0, at=now, unit=Unit.PER_SECOND)])
    found = await got(stand, "/deployments/chat/resources?window_s=300")
    states = {one["replica"]: (one["state"], one["market"]) for one in found["replicas"]}
    assert states == {"r1": ("busy", "spot"), "r2": ("idle", "on_demand")}
    assert found["replicas"][0]["running"]["value"] == 4.0
    assert found["replicas"][0]["kv_usage"]["value"] is None
    assert found["idle"]["replicas"] == ["r2"]
    assert found["idle"]["usd_per_hour"]["value"] == 1.0
    assert found["idle"]["usd_in_window"]["value"] == pytest.approx(300 / 3_600)
    assert found["offered_rps"]["value"] == 4.0
    (one,) = found["gpus"]
    assert (one["name"], one["busy"]["value"], one["power"]["reason"]) == (
        "L4", 0.5, "unreachable",
    )  # fmt: skip
    assert one["temperature"]["value"] is None


async def test_a_new_replica_is_not_called_idle(stand: Stand, store: MetricStore) -> None:
    now = just_now()
    await record(store, steady("r1", until=now, scrapes=5, rps=0.0, running=0.0))
    await record(store, [price(2.0, at=now, replica="r1", market="spot")], family="cost")
    found = await got(stand, "/deployments/chat/resources?window_s=300")
    assert [one["state"] for one in found["replicas"]] == ["unknown"]
    assert found["idle"]["usd_per_hour"]["reason"] == "r1: its load is not known"


async def test_quality_counts_what_is_missing_as_missing(stand: Stand, store: MetricStore) -> None:
    now = just_now()
    rows: list[tuple[Reading | float, dict[str, Any]]] = [
        (1.0, {"source": "live", "ok": "true"}),
        (0.5, {"source": "live", "ok": "true", "refusal": "true"}),
        (MISSING, {"source": "live", "ok": "false", "fault": "failed"}),
        (0.8, {"source": "golden", "ok": "true"}),
    ]
    await record(store, family="quality", samples=[
        *(
            sample("answer_score", score, at=now - timedelta(seconds=number), unit=Unit.SCORE,
                   replica="r1", stratum="live", **labels)
            for number, (score, labels) in enumerate(rows)
        ),
        sample("quality_baseline", 0.9, at=now, unit=Unit.SCORE, scorer="overall/3", units="60",
               stdev="0.1", pair_stdev="0.05"),
    ])  # fmt: skip
    found = await got(stand, "/deployments/chat/quality")
    live, golden = found["answers"]
    assert (live["count"], live["scored"], live["failed"], live["refused"]) == (3, 2, 1, 1)
    assert (live["mean"]["value"], golden["mean"]["value"]) == (0.75, 0.8)
    assert (found["baseline"]["mean"], found["baseline"]["units"]) == (0.9, 60)
    assert found["floor"]["max_relative_drop"] == 0.05

    page = await got(stand, "/deployments/chat/answers?limit=2&source=live")
    assert [one["score"]["value"] for one in page["items"]] == [1.0, 0.5]
    assert [one["refusal"] for one in page["items"]] == [False, True]
    rest = await got(stand, page["next"].removeprefix("/api/v1"))
    (failed,) = rest["items"]
    assert (failed["ok"], failed["fault"], failed["score"]["reason"]) == (
        False, "failed", "not asked",
    )  # fmt: skip
    assert rest["next"] is None


async def test_gates_are_listed_with_their_evidence(stand: Stand) -> None:
    change = await completed(stand, "a", MISSING)
    found = await got(stand, "/deployments/chat/gates?limit=2")
    assert {one["change"] for one in found["items"]} == {change}
    positions = [one["position"] for one in found["items"]]
    rest = await got(stand, found["next"].removeprefix("/api/v1"))
    positions += [one["position"] for one in rest["items"]]
    assert positions == sorted(positions, reverse=True)
    one_voice = await got(stand, "/deployments/chat/gates?assessor=application&verdict=pass")
    assert {one["answer"]["assessor"] for one in one_voice["items"]} == {"application"}
    assert (await got(stand, "/deployments/chat/gates?verdict=hold"))["items"] == []
    assert (await got(stand, "/deployments/chat/gates", tenant="other"))["items"] == []


@pytest.mark.parametrize("part", ["", "/performance", "/resources", "/quality"])
async def test_a_deployment_of_somebody_else_is_not_there(stand: Stand, part: str) -> None:
    assert await got(stand, f"/deployments/chat{part}")
    problem = await got(stand, f"/deployments/chat{part}", tenant="other", status=404)
    assert problem["detail"] == "there is no deployment chat"
