"""What the API's benchmark asks and counts."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from optiinfra.schemas.ids import derived_id

ID_CHARS = 32
QUARTER = timedelta(minutes=15)
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
        """Routes are told apart without ids, deployments and queries."""
        self.seconds.append(took_s)
        parts = path.partition("?")[0].split("/")[3:]
        route = "/".join(part for part in parts if len(part) != ID_CHARS and part[:5] != "chat-")
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


@dataclass(frozen=True, slots=True)
class Asked:
    """What there is to ask for."""

    events: int
    events_a_change: int
    deployments: tuple[str, ...]
    days: float


def mixed(count: int, asked: Asked, seed: int) -> list[str]:
    """Page loads of the portal and the CLI's reads, in random order."""
    chosen = random.Random(seed)
    now = datetime.now(UTC)

    def change() -> str:
        return derived_id("bench", chosen.randrange(asked.events // asked.events_a_change))

    def series(metric: str, length: timedelta = QUARTER) -> str:
        begin = now - length - timedelta(minutes=chosen.randrange(45))
        window = {"from": begin.isoformat(), "to": (begin + length).isoformat()}
        named = {"deployment": one(), "metric": metric} | window
        return f"/api/v1/series?{urlencode(named)}"

    def one() -> str:
        return chosen.choice(asked.deployments)

    kinds = (
        lambda: "/api/v1/changes?limit=50",
        lambda: "/api/v1/recommendations?limit=50",
        lambda: "/api/v1/agents",
        lambda: f"/api/v1/changes/{change()}",
        lambda: f"/api/v1/recommendations/{change()}",
        lambda: f"/api/v1/events?limit=100&after={chosen.randrange(asked.events)}",
    )
    figures = (
        lambda: "/api/v1/overview",
        lambda: "/api/v1/costs?window_s=900",
        lambda: series("requests_running"),
        lambda: series("ttft_s"),
        lambda: series("usd_per_hour", timedelta(days=asked.days)),
        lambda: f"/api/v1/deployments/{one()}/performance",
        lambda: f"/api/v1/deployments/{one()}/resources",
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
