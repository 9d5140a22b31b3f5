"""A list-backed telemetry store for tests, and the samples that a steady replica would leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import HttpUrl

from optiinfra.events.facts import Fact, MetricsMeasured
from optiinfra.schemas.deployment import (
    Deployment,
    Instance,
    Market,
    Provider,
    Replica,
    ReplicaState,
)
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown

NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)


class Recorded:
    """The `Telemetry` port over a list; `down` makes it unavailable, `down_for` some metrics."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self.samples = list(samples)
        self.down = False
        self.down_for: set[str] = set()

    def record(self, facts: Sequence[Fact], deployment: str = "chat") -> None:
        """Store what was measured of `deployment`."""
        for fact in facts:
            if isinstance(fact, MetricsMeasured) and fact.deployment == deployment:
                self.samples += fact.samples

    async def window(
        self,
        tenant: str,
        deployment: str,
        metric: str,
        *,
        since: datetime,
        until: datetime,
        replicas: Sequence[str] | None = None,
    ) -> list[Sample]:
        if self.down or metric in self.down_for:
            raise Unavailable("the store is down")
        found = [
            s
            for s in self.samples
            if s.metric == metric
            and since <= s.at < until
            and (replicas is None or s.replica in replicas)
        ]
        return sorted(found, key=lambda s: s.at)


class Fleet:
    """The `ReplicaSource` port over a list; `down` makes it unavailable."""

    def __init__(self, *replicas: Replica) -> None:
        self.all = list(replicas)
        self.down = False

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        if self.down:
            raise Unavailable("the cloud does not answer")
        return self.all


def deployment(**changes: Any) -> Deployment:
    values: dict[str, Any] = {
        "id": "chat", "tenant": "acme", "model": "8b",
        "gateway_url": HttpUrl("http://127.0.0.1:9"),
    }  # fmt: skip
    return Deployment(**{**values, **changes})


def replica(
    name: str, *, zone: str = "a", market: Market = Market.ON_DEMAND, **changes: Any
) -> Replica:
    values: dict[str, Any] = {
        "id": name, "deployment": "chat", "state": ReplicaState.SERVING,
        "url": "http://127.0.0.1:9",
        "instance": Instance(
            id=f"i-{name}", provider=Provider.AWS, instance_type="g5.xlarge",
            region="us-east-1", zone=zone, market=market,
        ),
    }  # fmt: skip
    return Replica(**{**values, **changes})


def steady(
    name: str,
    *,
    until: datetime = NOW,
    scrapes: int = 11,
    every_s: float = 10.0,
    rps: float = 2.0,
    ttft_s: float = 0.2,
    tpot_s: float = 0.02,
    running: float = 4.0,
    waiting: float = 0.0,
    errors: Reading | float = 0.0,
    prompt: float = 500.0,
    output: float = 100.0,
) -> list[Sample]:
    """What scraping a replica every `every_s` up to `until` would have left, all steady."""
    found: list[Sample] = []
    for number in range(scrapes):
        at = until - timedelta(seconds=every_s * (scrapes - 1 - number))
        counted = rps * every_s

        def add(
            metric: str, unit: Unit, reading: Reading | float, *, at: datetime = at, **labels: str
        ) -> None:
            known = Known(value=reading) if isinstance(reading, float | int) else reading
            found.append(
                Sample(
                    metric=metric, unit=unit, reading=known, at=at, window_s=every_s,
                    replica=name, labels=labels,
                )
            )  # fmt: skip

        add("scrape_window_s", Unit.SECONDS, every_s)
        add("requests_running", Unit.COUNT, running)
        add("requests_waiting", Unit.COUNT, waiting)
        add("requests_per_s", Unit.PER_SECOND, rps)
        add("errors_per_s", Unit.PER_SECOND, errors)
        for metric, unit, value in (
            ("ttft_s", Unit.SECONDS, ttft_s),
            ("tpot_s", Unit.SECONDS, tpot_s),
            ("prompt_length_tokens", Unit.TOKENS, prompt),
            ("output_length_tokens", Unit.TOKENS, output),
        ):
            add(metric, unit, value, quantile="p95")
            if counted:
                low, high = repr(value * 0.9), repr(value * 1.01)
                add(f"{metric}_bucket", Unit.COUNT, counted, ge=low, le=high)
                add(f"{metric}_sum", unit, counted * value)
    return found


def gone_dark(name: str, why: Unknown, *, at: datetime = NOW) -> list[Sample]:
    """What is left when a replica's newest scrape failed."""
    return [
        Sample(metric=metric, unit=unit, reading=why, at=at, replica=name, labels=labels)
        for metric, unit, labels in (
            ("ttft_s", Unit.SECONDS, {"quantile": "p95"}),
            ("tpot_s", Unit.SECONDS, {"quantile": "p95"}),
            ("requests_running", Unit.COUNT, {}),
            ("requests_waiting", Unit.COUNT, {}),
            ("requests_per_s", Unit.PER_SECOND, {}),
        )
    ]
