"""A fleet in figures, for tests: two deployments whose readings differ from scrape to scrape."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from optiinfra.events import facts as f
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.money import Interval
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.tenant import Role
from optiinfra.storage.clickhouse import MetricStore
from tests.factories import AT
from tests.integration.api_stand import Stand
from tests.measured import just_now, price, record, sample

MISSING = Unknown(reason=UnknownReason.MISSING, detail="not asked")
SCRAPES, EVERY_S = 40, 10.0
BUCKETS = {"ttft_s": (0.0, 0.1, 0.5, 1.0), "tpot_s": (0.0, 0.02, 0.08)}
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
GPU = {
    "gpu_busy_fraction": "busy", "gpu_memory_used_fraction": "memory_used",
    "gpu_temperature_celsius": "temperature", "gpu_power_watts": "power",
}  # fmt: skip
"""Metrics of a GPU, and what the API calls them."""
ANSWERS: tuple[tuple[Reading, dict[str, Any]], ...] = (
    (Known(value=0.7), {"source": "live", "ok": "true"}),
    (Known(value=0.4), {"source": "live", "ok": "true", "refusal": "true"}),
    (MISSING, {"source": "live", "ok": "false"}),
    (Known(value=0.9), {"source": "golden", "ok": "true"}),
)


def scrapes(replica: str, until: datetime, load: float) -> Iterator[Sample]:
    """Each reading differs from the one before; without load there is none."""
    for number in range(SCRAPES):
        at = until - timedelta(seconds=EVERY_S * number)
        swing = load * (1.0 + number * 7 % 5 / 10)

        def one(
            metric: str, value: float, unit: Unit = Unit.COUNT, *, at: datetime = at, **labels: str
        ) -> Sample:
            return sample(
                metric, value, at=at, unit=unit, replica=replica, window_s=EVERY_S, **labels
            )

        yield one("scrape_window_s", EVERY_S, Unit.SECONDS)
        yield one("requests_running", 3.0 * swing)
        yield one("requests_waiting", 0.5 * swing)
        for metric, per_s in (
            ("requests_per_s", 4.0), ("errors_per_s", 0.05), ("prompt_tokens_per_s", 200.0),
            ("generation_tokens_per_s", 90.0), ("preemptions_per_s", 0.1),
        ):  # fmt: skip
            yield one(metric, per_s * swing, Unit.PER_SECOND)
        yield one("kv_usage_fraction", 0.2 * swing, Unit.FRACTION)
        yield one("kv_capacity_tokens", 40_000.0)
        yield one("prefix_cache_hit_fraction", 0.1 * swing, Unit.FRACTION)
        for metric in ("queue_time_s", "e2e_s"):
            for place, quantile in enumerate(QUANTILES, 1):
                yield one(metric, place * (0.1 + swing), Unit.SECONDS, quantile=quantile)
        for metric, edges in BUCKETS.items():
            yield one(metric, edges[1] * (1 + swing), Unit.SECONDS, quantile="p95")
            for place, (low, high) in enumerate(pairwise(edges)):
                count = load * (30 - 9 * place + number % 3)
                if count:
                    yield one(f"{metric}_bucket", count, ge=repr(low), le=repr(high))
            yield one(f"{metric}_sum", 5.0 * swing, Unit.SECONDS)


def prices(until: datetime, each: dict[str, float]) -> list[Sample]:
    """Twice a minute, of each replica and of all."""
    listed = {"instance_type": "g5.xlarge", "price_source": "list"}
    return [
        one
        for number in range(10)
        for at in (until - timedelta(seconds=30 * number),)
        for one in (
            price(sum(each.values()) + number / 10, at=at),
            *(
                price(usd + number / 20, at=at, replica=name, market="spot", **listed)
                for name, usd in each.items()
            ),
        )
    ]


async def fill(stand: Stand, store: MetricStore) -> None:
    """Two deployments, one of them with an idle replica; what some changes came to."""
    now = just_now()
    said = [*scrapes("r1", now, 1.0), *scrapes("r2", now, 0.0)]
    await record(store, said)
    await record(store, [
        sample("offered_rps", 4.5, at=now, unit=Unit.PER_SECOND),
        *prices(now, {"r1": 2.0, "r2": 1.5}),
    ], family="cost")  # fmt: skip
    await record(store, scrapes("r3", now, 2.0), deployment="code")
    await record(store, prices(now, {"r3": 2.5}), family="cost", deployment="code")
    await record(store, [
        sample(metric, 0.3 + place / 10, at=now - timedelta(seconds=earlier), host="a", gpu=gpu)
        for gpu in "01" for place, metric in enumerate(GPU) for earlier in (0, 20)
    ], family="resource", deployment="host")  # fmt: skip
    for number, (score, labels) in enumerate(ANSWERS):
        at = now - timedelta(seconds=number)
        answer = sample("answer_score", score, at=at, unit=Unit.SCORE, replica="r1", **labels)
        await record(store, [answer], family="quality")
    baseline: dict[str, Any] = {"scorer": "overall/3", "units": "60", "stdev": "0.11"}
    await record(store, [
        sample("quality_baseline", 0.93, at=now, unit=Unit.SCORE, **baseline)
    ], family="quality")  # fmt: skip
    told: dict[str, Any] = {"ttft_p95_s": Known(value=0.31), "features": {"replicas": 2.0}}
    await completed(stand, "a", Known(value=730.5), before=Known(value=5.25), **told)
    await completed(stand, "b", Known(value=365.0), before=Known(value=4.0), **told)
    await completed(stand, "c", MISSING, **told)
    await stand.fleet.awaiting("d")


async def completed(
    stand: Stand, name: str, realised: Reading, *, before: Reading = MISSING, **told: Any
) -> str:
    """A change that was approved and carried out, and what its outcome tells; its id."""
    proposal = await stand.fleet.awaiting(name, title=f"Move {name} to spot")
    await approved(stand, proposal)
    await stand.fleet.play()
    given: dict[str, Any] = {
        "change": proposal.id, "deployment": "chat", "kind": "spot_migration",
        "terminal": ChangeState.COMPLETED,
        "predicted_usd_per_month": Interval(low=500.0, mid=700.0, high=900.0),
        "realised_usd_per_month": realised, "usd_per_hour_before": before,
        "usd_per_hour_after": MISSING, "ttft_p95_s": MISSING, "tpot_p95_s": MISSING,
        "quality_mean": MISSING, "features": {}, "at": AT + timedelta(minutes=ord(name)),
    }  # fmt: skip
    outcome = Outcome(**(given | told))
    await stand.fleet.hear(f.OutcomeRecorded(outcome=outcome))
    return proposal.id


async def approved(stand: Stand, proposal: Recommendation) -> None:
    """A person says yes to it, and the coordinator hears that."""
    async with stand.client(Role.APPROVER) as client:
        answer = await client.post(
            f"/api/v1/recommendations/{proposal.id}/approve",
            json={"reason": "looks right"},
            headers={"If-Match": f'"{proposal.version_hash}"'},
        )
    assert answer.status_code == 202, answer.text
    await stand.fleet.take_in(stand.said.events)
