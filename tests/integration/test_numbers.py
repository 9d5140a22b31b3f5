"""No number is invented: each one that the API tells is recomputed out of the rows as stored.

A number without a recomputation fails, so whoever adds a figure says here where it comes from.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any

import pytest

from optiinfra.portal_api.measures import MEASURES
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.tenant import Role
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.setup import declare
from tests.integration.api_stand import Stand, standing
from tests.integration.figures_stand import EVERY_S, GPU, QUANTILES, fill
from tests.measured import just_now, metric_store
from tests.raw_figures import HOURS_A_MONTH, Raw, is_exactly, logged, numbers, under
from tests.telemetry import deployment

SCRAPED = ("scrape_window_s", "ttft_s_bucket", "tpot_s_bucket")
WINDOW_S = 300.0
LIMITS = SLO(ttft_p95_s=0.4, tpot_p95_s=0.05, error_rate=0.02)
LEVELS: dict[str, Callable[[list[float]], float]] = {
    "requests_running": sum, "requests_waiting": sum, "requests_per_s": sum, "errors_per_s": sum,
    "prompt_tokens_per_s": sum, "generation_tokens_per_s": sum, "preemptions_per_s": sum,
    "kv_usage_fraction": fmean, "prefix_cache_hit_fraction": fmean,
}  # fmt: skip


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    async with metric_store(servers.clickhouse_url) as made:
        yield made


@pytest.fixture
async def stand(postgres: Database, store: MetricStore) -> AsyncIterator[Stand]:
    await declare(postgres, "acme", [deployment(slo=LIMITS), deployment(id="code", slo=LIMITS)])
    async with standing(postgres, metrics=store) as made:
        await fill(made, store)
        yield made


class Stored:
    """Rows as they are stored, read without any of the queries that figures are made by."""

    def __init__(self, store: MetricStore, database: Database) -> None:
        self._store = store
        self._database = database

    async def raw(self, view: Any, deployment: str) -> Raw:
        until = datetime.fromisoformat(view["at"])
        rows = [
            row
            for metric in (*MEASURES, *SCRAPED)
            for row in await self._store.window(
                "acme", deployment, metric, since=until - timedelta(days=1), until=until
            )
        ]
        return Raw(rows, until, view["window_s"])

    async def events(self, kind: str) -> list[dict[str, Any]]:
        return await logged(self._database, kind)

    async def outcomes(self, deployment: str) -> list[dict[str, Any]]:
        told = [one["fact"]["outcome"] for one in await self.events("outcome.recorded")]
        return [one for one in told if one["deployment"] == deployment]


def objectives(raw: Raw) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, limit in (("ttft", LIMITS.ttft_p95_s), ("tpot", LIMITS.tpot_p95_s)):
        metric = f"{name}_s"
        found |= under(name, {
            "objective": limit, "observed.value": raw.quantile(metric, 0.95),
            "within": raw.within(metric, limit), "requests": raw.requests(metric),
        })  # fmt: skip
    found |= under("errors", {
        "objective": LIMITS.error_rate, "observed.value": raw.error_share(),
        "within": 1 - raw.error_share(), "requests": round(raw.counted("requests_per_s")),
    })  # fmt: skip
    return found | under("goodput", goodput(raw))


def goodput(raw: Raw) -> dict[str, float]:
    ttft = raw.within("ttft_s", LIMITS.ttft_p95_s)
    tpot = raw.within("tpot_s", LIMITS.tpot_p95_s)
    return {"low": max(0.0, ttft + tpot - 1), "high": min(ttft, tpot)}


def saved(outcomes: list[dict[str, Any]]) -> list[float]:
    """Of those of which it is known."""
    told = [one["realised_usd_per_month"] for one in outcomes]
    return [one["value"] for one in told if "value" in one]


def cost(raw: Raw, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    now = raw.newest("usd_per_hour", replica=None)
    each = {one: raw.newest("usd_per_hour", replica=one) for one in raw.replicas("usd_per_hour")}
    idle = [one for one in each if not any(raw.values("requests_running", replica=one))]
    prompt, made = raw.counted("prompt_tokens_per_s"), raw.counted("generation_tokens_per_s")
    watched_s = {one: EVERY_S * len(raw.of("generation_tokens_per_s", replica=one)) for one in each}
    paid = sum(
        fmean(raw.values("usd_per_hour", replica=one)) * watched_s[one] / 3_600 for one in each
    )
    million = paid / (prompt + made) * 1e6
    good = goodput(raw)
    found = {
        "usd_per_hour.value": now,
        "usd_per_month.value": now * HOURS_A_MONTH,
        "idle_usd_per_hour.value": sum(each[one] for one in idle),
        "components[spot].usd_per_hour": sum(each[one] for one in each if one not in idle),
        "unpriced_replicas": 0,
        "tokens.prompt": prompt,
        "tokens.generated": made,
        "usd_per_million_tokens.value": million,
        "usd_per_million_good_tokens.low": million / good["high"],
        "usd_per_million_good_tokens.high": million / good["low"],
    }
    if idle:
        found["components[idle].usd_per_hour"] = sum(each[one] for one in idle)
    return found | under("waterfall", waterfall(now, outcomes))


def waterfall(now: float, outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    known = saved(outcomes)
    found: dict[str, Any] = {
        "realised_usd_per_hour.value": sum(known) / HOURS_A_MONTH,
        "current_usd_per_hour.value": now,
        "changes": len(outcomes),
        "unknown": len(outcomes) - len(known),
    }
    if outcomes:
        before = min(outcomes, key=lambda one: one["at"])["usd_per_hour_before"]["value"]
        found["baseline_usd_per_hour.value"] = before
        found["other_usd_per_hour.value"] = now - before + sum(known) / HOURS_A_MONTH
    return found


@dataclass(frozen=True)
class Told:
    """An answer, and the rows of stores beside it."""

    view: Any
    stored: Stored

    async def raw(self, deployment: str = "chat") -> Raw:
        return await self.stored.raw(self.view, deployment)

    def is_exactly(self, expected: dict[str, Any]) -> None:
        is_exactly(self.view, expected)


Asks = Callable[[str], Awaitable[Told]]


@pytest.fixture
async def ask(stand: Stand, store: MetricStore, postgres: Database) -> AsyncIterator[Asks]:
    stored = Stored(store, postgres)
    async with stand.client(Role.VIEWER) as client:

        async def one(path: str) -> Told:
            answer = await client.get(f"/api/v1{path}")
            assert answer.status_code == 200, answer.text
            return Told(answer.json(), stored)

        yield one


async def test_the_overview(ask: Asks) -> None:
    told = await ask(f"/overview?window_s={WINDOW_S}")
    fleet = {name: await told.raw(name) for name in ("chat", "code")}
    spent = {name: raw.newest("usd_per_hour", replica=None) for name, raw in fleet.items()}
    outcomes = await told.stored.events("outcome.recorded")
    facts = [one["fact"]["outcome"] for one in outcomes]
    asked = await told.stored.events("approval.requested")
    expected = {
        "window_s": WINDOW_S,
        "spend.usd_per_hour.value": sum(spent.values()),
        "spend.usd_per_month.value": sum(spent.values()) * HOURS_A_MONTH,
        "realised.usd_per_month.value": sum(saved(facts)),
        "realised.changes": len(facts),
        "realised.unknown": len(facts) - len(saved(facts)),
        "realised.event_position": outcomes[-1]["position"],
        "pending.count": len(asked) - len(await told.stored.events("approval.granted")),
        "pending.snoozed": len(await told.stored.events("recommendation.snoozed")),
        "running.count": 0,
    }
    for name, raw in fleet.items():
        expected[f"spend.deployments[{name}].usd_per_hour.value"] = spent[name]
        expected |= under(f"slo.deployments[{name}]", objectives(raw))
    age_s = told.view["pending"].pop("oldest_age_s")
    waited_s = (datetime.now(UTC) - asked[-1]["at"]).total_seconds()
    assert 0 <= waited_s - age_s < 30
    told.is_exactly(expected)


async def test_what_it_costs(ask: Asks) -> None:
    told = await ask(f"/costs?window_s={WINDOW_S}")
    expected: dict[str, Any] = {"window_s": WINDOW_S}
    each = {
        name: cost(await told.raw(name), await told.stored.outcomes(name))
        for name in ("chat", "code")
    }
    for name, values in each.items():
        expected |= under(f"deployments[{name}]", values)
    for part in ("usd_per_hour", "usd_per_month", "idle_usd_per_hour"):
        expected[f"total.{part}.value"] = sum(one[f"{part}.value"] for one in each.values())
    told.is_exactly(expected)


async def test_how_fast_a_deployment_is(ask: Asks) -> None:
    told = await ask(f"/deployments/chat/performance?window_s={WINDOW_S}")
    raw = await told.raw()
    expected: dict[str, Any] = {
        "window_s": WINDOW_S, "latest_s": 60.0,
        **under("slo", dict(LIMITS)), **under("objectives", objectives(raw)),
    }  # fmt: skip
    for metric, limit in (("ttft_s", LIMITS.ttft_p95_s), ("tpot_s", LIMITS.tpot_p95_s)):
        expected[f"latencies[{metric}].objective_s"] = limit
        for name, part in QUANTILES.items():
            at = f"latencies[{metric}].%s.{name}.value"
            expected[at % "latest"] = raw.quantile(metric, part, last_s=60.0)
            expected[at % "window"] = raw.quantile(metric, part)
    for metric in ("queue_time_s", "e2e_s"):
        for name in QUANTILES:
            at = f"latencies[{metric}].%s.{name}.value"
            newest = (raw.newest(metric, replica=one, quantile=name) for one in ("r1", "r2"))
            expected[at % "latest"] = max(newest)
            expected[at % "window"] = max(raw.values(metric, quantile=name))
    for metric, fold in LEVELS.items():
        expected[f"levels[{metric}].latest.value"] = raw.newest_of_all(metric, fold)
        expected[f"levels[{metric}].window.value"] = raw.at_each_time(metric, fold)
    told.is_exactly(expected)


async def test_what_a_deployment_runs_on(ask: Asks) -> None:
    told = await ask(f"/deployments/chat/resources?window_s={WINDOW_S}")
    raw, machines = await told.raw(), await told.raw("host")
    levels = {
        "usd_per_hour": "usd_per_hour", "kv_usage": "kv_usage_fraction",
        "kv_capacity_tokens": "kv_capacity_tokens", "running": "requests_running",
        "waiting": "requests_waiting", "requests_per_s": "requests_per_s",
    }  # fmt: skip
    idle = raw.newest("usd_per_hour", replica="r2")
    expected: dict[str, Any] = {
        "window_s": WINDOW_S,
        "idle.usd_per_hour.value": idle,
        "idle.usd_in_window.value": idle * WINDOW_S / 3_600,
        "offered_rps.value": raw.newest("offered_rps", replica=None),
    }
    for replica in ("r1", "r2"):
        for name, metric in levels.items():
            at = f"replicas[{replica}].{name}.value"
            expected[at] = raw.newest(metric, replica=replica)
    for gpu in "01":
        for metric, name in GPU.items():
            expected[f"gpus[{gpu}].{name}.value"] = machines.newest(metric, gpu=gpu)
    assert told.view["idle"]["replicas"] == ["r2"]
    told.is_exactly(expected)


async def test_how_good_answers_are(ask: Asks) -> None:
    told = await ask(f"/deployments/chat/quality?window_s={WINDOW_S}")
    raw = await told.raw()
    baseline = raw.of("quality_baseline")[-1]
    expected: dict[str, Any] = {
        "window_s": WINDOW_S,
        "baseline.mean": baseline.value,
        "baseline.stdev": float(baseline.labels["stdev"]),
        "baseline.units": int(baseline.labels["units"]),
        **under("floor", dict(numbers(deployment().quality.model_dump(mode="json")))),
    }
    for source in ("live", "golden"):
        scores = raw.values("answer_score", source=source)
        expected |= under(f"answers[{source}]", {
            "count": len(raw.of("answer_score", source=source)), "scored": len(scores),
            "mean.value": fmean(scores),
            "failed": len(raw.of("answer_score", source=source, ok="false")),
            "refused": len(raw.of("answer_score", source=source, refusal="true")),
        })  # fmt: skip
    told.is_exactly(expected)

    listed = await ask("/deployments/chat/answers")
    scored = [row for row in raw.of("answer_score") if row.value is not None]
    listed.is_exactly({f"items[{row.event_id}].score.value": row.value for row in scored})


async def test_how_changes_turned_out(ask: Asks) -> None:
    told = await ask("/outcomes")
    facts = {one["change"]: one for one in await told.stored.outcomes("chat")}
    assert len(facts) == 3
    told.is_exactly(
        {
            f"items[{change}].outcome.{name}": value
            for change, fact in facts.items()
            for name, value in numbers(fact)
        }
    )


@pytest.mark.parametrize(
    ("metric", "agg"),
    [("requests_running", "sum"), ("kv_usage_fraction", "mean"), ("ttft_s", "p95"),
     ("usd_per_hour", "sum")],
)  # fmt: skip
async def test_a_series(ask: Asks, metric: str, agg: str) -> None:
    until = just_now()
    since = until - timedelta(seconds=WINDOW_S)
    path = f"/series?deployment=chat&metric={metric}&agg={agg}&points=4"
    told = await ask(f"{path}&from={_zulu(since)}&to={_zulu(until)}")
    step_s = WINDOW_S / 4
    expected: dict[str, Any] = {"step_s": step_s}
    for place in range(4):
        ends = since + timedelta(seconds=step_s * (place + 1))
        raw = await told.stored.raw({"at": ends.isoformat(), "window_s": step_s}, "chat")
        expected[f"series[0].values[{place}]"] = step(raw, metric)
        expected[f"series[0].unknown[{place}]"] = 0
    told.is_exactly(expected)


def step(raw: Raw, metric: str) -> float:
    if metric == "ttft_s":
        return raw.quantile(metric, 0.95)
    if metric == "usd_per_hour":
        return fmean(raw.values(metric, replica=None))
    each = [fmean(raw.values(metric, replica=one)) for one in raw.replicas(metric)]
    return fmean(each) if metric in MEASURES and MEASURES[metric].unit == "fraction" else sum(each)


def _zulu(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
