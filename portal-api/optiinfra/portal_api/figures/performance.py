"""How fast a deployment answers, now and over a window, beside its objectives."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field

from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures import objectives as slo
from optiinfra.portal_api.figures.measured import Measured, known, of_reading, unknown
from optiinfra.portal_api.figures.objectives import Objectives, objectives
from optiinfra.portal_api.figures.seen import GONE, LATEST_S, NOTHING, Seen
from optiinfra.portal_api.measures import MEASURES
from optiinfra.schemas.deployment import SLO, Deployment
from optiinfra.schemas.telemetry import Unit

FRACTIONS = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
POOLED, SLOWEST = ("ttft_s", "tpot_s"), ("queue_time_s", "e2e_s")
LEVELS: tuple[tuple[str, Literal["sum", "mean"]], ...] = (
    ("requests_running", "sum"),
    ("requests_waiting", "sum"),
    ("requests_per_s", "sum"),
    ("errors_per_s", "sum"),
    ("prompt_tokens_per_s", "sum"),
    ("generation_tokens_per_s", "sum"),
    ("preemptions_per_s", "sum"),
    ("kv_usage_fraction", "mean"),
    ("prefix_cache_hit_fraction", "mean"),
)
METRICS = tuple(
    dict.fromkeys((*slo.METRICS, *SLOWEST, *(name for name, _ in LEVELS), "scrape_window_s"))
)


class Quantiles(BaseModel):
    p50: Measured
    p95: Measured
    p99: Measured


class Latency(BaseModel):
    """`exact`: over all requests; else the slowest replica's, which all requests keep within."""

    metric: str
    objective_s: float | None
    exact: bool
    latest: Quantiles
    window: Quantiles


class Level(BaseModel):
    metric: str
    unit: str
    fold: Literal["sum", "mean"] = Field(description="over the replicas")
    latest: Measured
    window: Measured = Field(description="the mean over the window")


class PerformanceView(BaseModel):
    model_config = shown_as("performance")

    deployment: str
    model: str
    at: AwareDatetime
    window_s: float
    latest_s: float
    simulated: bool = Field(description="part of the telemetry comes from an emulator")
    slo: SLO
    objectives: Objectives
    latencies: list[Latency]
    levels: list[Level]


def performance(deployment: Deployment, seen: Seen) -> PerformanceView:
    """All figures of one deployment."""
    limits = {"ttft_s": deployment.slo.ttft_p95_s, "tpot_s": deployment.slo.tpot_p95_s}
    pooled = [
        Latency(
            metric=metric,
            objective_s=limits[metric],
            exact=True,
            latest=_pooled(seen, metric, recent=True),
            window=_pooled(seen, metric, recent=False),
        )
        for metric in POOLED
    ]
    slowest = [
        Latency(
            metric=metric,
            objective_s=None,
            exact=False,
            latest=Quantiles(**{name: _slowest_now(seen, metric, name) for name in FRACTIONS}),
            window=Quantiles(**{name: _slowest(seen, metric, name) for name in FRACTIONS}),
        )
        for metric in SLOWEST
    ]
    return PerformanceView(
        deployment=deployment.id,
        model=deployment.model,
        at=seen.span.until,
        window_s=seen.span.seconds,
        latest_s=LATEST_S,
        simulated=seen.is_emulated,
        slo=deployment.slo,
        objectives=objectives(seen, deployment.slo),
        latencies=[*pooled, *slowest],
        levels=[
            Level(
                metric=metric,
                unit=MEASURES[metric].unit,
                fold=fold,
                latest=seen.latest(metric, fold),
                window=seen.over_window(metric, fold),
            )
            for metric, fold in LEVELS
        ],
    )


def _pooled(seen: Seen, metric: str, *, recent: bool) -> Quantiles:
    """Over all requests; the latest ones are unknown while a replica cannot be read."""
    unread = seen.unread(metric) if recent else None
    distribution = seen.distribution(metric, recent=recent)
    none = _why_none(seen, metric)

    def one(fraction: float) -> Measured:
        if unread is not None:
            return unknown(unread, Unit.SECONDS)
        if not distribution.count:
            return unknown(none, Unit.SECONDS)
        return of_reading(distribution.quantile(fraction), Unit.SECONDS)

    return Quantiles(**{name: one(fraction) for name, fraction in FRACTIONS.items()})


def _why_none(seen: Seen, metric: str) -> str:
    if not seen.of(metric):
        return NOTHING
    return seen.unread(metric) or "no request was answered"


def _slowest_now(seen: Seen, metric: str, name: str) -> Measured:
    parts = [
        seen.newest(metric, replica=replica, quantile=name)
        for replica in seen.present
        if seen.of(metric, replica=replica, quantile=name)
    ]
    read = [one.value for one in parts if one.value is not None]
    silent = [one for one in parts if one.value is None and one.reason != "no_traffic"]
    if silent:
        return silent[0]
    if read:
        return known(max(read), Unit.SECONDS)
    return unknown("no_traffic" if parts else GONE, Unit.SECONDS)


def _slowest(seen: Seen, metric: str, name: str) -> Measured:
    rows = seen.of(metric, quantile=name)
    highs = [row.high for row in rows if row.high is not None]
    if highs:
        return known(max(highs), Unit.SECONDS)
    reasons = {row.last_reason for row in rows if row.last_reason}
    return unknown(", ".join(sorted(reasons)) or NOTHING, Unit.SECONDS)
