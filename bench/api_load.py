"""What the API's benchmark asks and counts, and the hour of metrics that figures are made of."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from pydantic import HttpUrl

from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.ids import derived_id
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.metric_rows import MetricRow
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.setup import declare

DEPLOYMENTS = tuple(f"chat-{number}" for number in range(4))
REPLICAS = ("r1", "r2")
HOUR_S, SCRAPE_S = 3_600, 5
BUCKETS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 1.0), (1.0, float("inf")))
ID_CHARS = 32
FIGURES_IN = 10
"""One request in so many asks for figures; the rest is as it was before there were any."""


@dataclass
class Run:
    """Latencies of one target, s; what came back wrong is counted."""

    seconds: list[float] = field(default_factory=list)
    failed: int = 0
    cpu_s: float = 0.0
    by_route: dict[str, list[float]] = field(default_factory=dict)

    def add(self, path: str, took_s: float) -> None:
        """Routes are told apart without ids and queries."""
        self.seconds.append(took_s)
        parts = path.partition("?")[0].split("/")[3:]
        route = "/".join(part for part in parts if len(part) != ID_CHARS)
        self.by_route.setdefault(route, []).append(took_s)

    def summary(self) -> dict[str, Any]:
        return {
            "requests": len(self.seconds),
            "failed": self.failed,
            **quantiles_ms(self.seconds),
            "cpu_ms": round(self.cpu_s / len(self.seconds) * 1e3, 3),
            "by_route": {name: quantiles_ms(took) for name, took in sorted(self.by_route.items())},
        }


def quantiles_ms(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50_ms": round(statistics.median(ordered) * 1e3, 2),
        "p95_ms": round(ordered[int(len(ordered) * 0.95)] * 1e3, 2),
    }


def mixed(count: int, changes: int, events_a_change: int, seed: int) -> list[str]:
    """Page loads of the portal and the CLI's reads, in random order."""
    chosen = random.Random(seed)
    now = datetime.now(UTC)

    def change() -> str:
        return derived_id("bench", chosen.randrange(changes))

    def series(metric: str) -> str:
        begin = now - timedelta(minutes=chosen.randrange(20, 60))
        window = {"from": begin.isoformat(), "to": (begin + timedelta(minutes=15)).isoformat()}
        asked = {"deployment": chosen.choice(DEPLOYMENTS), "metric": metric} | window
        return f"/api/v1/series?{urlencode(asked)}"

    kinds = (
        lambda: "/api/v1/changes?limit=50",
        lambda: "/api/v1/recommendations?limit=50",
        lambda: "/api/v1/agents",
        lambda: f"/api/v1/changes/{change()}",
        lambda: f"/api/v1/recommendations/{change()}",
        lambda: f"/api/v1/events?limit=100&after={chosen.randrange(changes * events_a_change)}",
    )
    figures = (
        lambda: "/api/v1/overview",
        lambda: "/api/v1/costs?window_s=900",
        lambda: series("requests_running"),
        lambda: series("ttft_s"),
        lambda: "/api/v1/deployments/chat-0/performance",
        lambda: "/api/v1/deployments/chat-0/resources",
        lambda: f"/api/v1/recommendations/{change()}/card",
        lambda: "/api/v1/agents/detail",
        lambda: "/api/v1/outcomes",
        lambda: "/api/v1/policies",
    )
    order = chosen.sample(range(count), count)
    return [
        figures[n // FIGURES_IN % len(figures)]()
        if n % FIGURES_IN == 0
        else kinds[n % len(kinds)]()
        for n in order
    ]


async def fill_figures(database: Database, url: str, tenant: str) -> None:
    """Declares deployments, and leaves what an hour of scraping them would have left."""
    declared = [
        Deployment(id=name, tenant=tenant, model="8b", gateway_url=HttpUrl("http://127.0.0.1:9"))
        for name in DEPLOYMENTS
    ]
    await declare(database, tenant, declared)
    store = MetricStore(url)
    try:
        await store.migrate()
        for number, deployment in enumerate(DEPLOYMENTS):
            await store.insert(list(_hour(tenant, deployment)), f"bench-{number}")
    finally:
        await store.aclose()


def _hour(tenant: str, deployment: str) -> Iterator[MetricRow]:
    now = datetime.now(UTC).replace(microsecond=0)
    for second in range(0, HOUR_S, SCRAPE_S):
        at = now - timedelta(seconds=second)

        def row(
            metric: str,
            value: float,
            replica: str | None,
            unit: str = "count",
            *,
            at: datetime = at,
            **labels: str,
        ) -> MetricRow:
            return MetricRow(
                tenant=tenant, deployment=deployment, metric=metric, at=at, value=value, unit=unit,
                replica=replica, labels={"__window_s": repr(float(SCRAPE_S)), **labels},
                event_id=f"{metric}-{replica}-{at.timestamp()}-{labels}",
            )  # fmt: skip

        yield row("usd_per_hour", 2.0 * len(REPLICAS), None, "usd_per_hour")
        for replica in REPLICAS:
            yield row("usd_per_hour", 2.0, replica, "usd_per_hour", market="spot")
            yield row("scrape_window_s", SCRAPE_S, replica, "s")
            for metric in ("requests_running", "requests_waiting"):
                yield row(metric, float(second % 7), replica)
            for metric in ("requests_per_s", "prompt_tokens_per_s", "generation_tokens_per_s"):
                yield row(metric, 4.0, replica, "per_s")
            yield row("errors_per_s", 0.0, replica, "per_s")
            for metric in ("ttft_s", "tpot_s"):
                yield row(metric, 0.2, replica, "s", quantile="p95")
                yield row(f"{metric}_sum", 4.0, replica, "s")
                for low, high in BUCKETS:
                    yield row(f"{metric}_bucket", 4.0, replica, ge=repr(low), le=repr(high))
