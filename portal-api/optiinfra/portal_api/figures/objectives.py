"""Whether a deployment keeps its objectives: quantiles, shares of requests within, and goodput."""

from __future__ import annotations

from pydantic import BaseModel, Field

from optiinfra.portal_api.figures.measured import Band, Measured, known, of_reading, unknown
from optiinfra.portal_api.figures.seen import NOTHING, Seen, within
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Unit

METRICS = (
    "ttft_s_bucket", "tpot_s_bucket", "ttft_s", "tpot_s", "requests_per_s", "errors_per_s",
)  # fmt: skip
"""What this reads."""
TARGET = 0.95
"""Objectives are on the p95."""


class Objective(BaseModel):
    """An objective and what was observed over the window."""

    objective: float
    unit: str
    observed: Measured = Field(description="the p95, or the share of requests that failed")
    within: float | None = Field(description="share of requests that keep it")
    requests: int | None
    met: bool | None = Field(description="null where it is not known")


class Objectives(BaseModel):
    deployment: str
    ttft: Objective
    tpot: Objective
    errors: Objective
    goodput: Band = Field(
        description="share of requests that keep both latencies: histograms bound it only"
    )
    met: bool | None = Field(description="all three; null where none is broken but one is unknown")


def objectives(seen: Seen, slo: SLO) -> Objectives:
    """Over the whole window, all replicas together."""
    ttft = _latency(seen, "ttft_s", slo.ttft_p95_s)
    tpot = _latency(seen, "tpot_s", slo.tpot_p95_s)
    errors = _errors(seen, slo.error_rate)
    return Objectives(
        deployment=seen.deployment,
        ttft=ttft,
        tpot=tpot,
        errors=errors,
        goodput=goodput(ttft, tpot),
        met=_all_met(ttft.met, tpot.met, errors.met),
    )


def goodput(ttft: Objective, tpot: Objective) -> Band:
    """Which requests are slow in both is not recorded, so the share lies between two bounds."""
    if ttft.within is None or tpot.within is None:
        missing = ttft if ttft.within is None else tpot
        return Band(low=None, high=None, reason=missing.observed.reason or NOTHING)
    least = max(0.0, ttft.within + tpot.within - 1.0)
    return Band(low=least, high=min(ttft.within, tpot.within))


def _latency(seen: Seen, metric: str, limit: float) -> Objective:
    distribution = seen.distribution(metric)
    observed = of_reading(distribution.quantile(TARGET), Unit.SECONDS)
    if observed.value is None:
        why = seen.unread(metric) or (NOTHING if not seen.of(metric) else observed.reason)
        observed = unknown(why or NOTHING, Unit.SECONDS)
    return Objective(
        objective=limit,
        unit=Unit.SECONDS,
        observed=observed,
        within=within(distribution, limit),
        requests=round(distribution.count) if distribution.count else None,
        met=None if observed.value is None else observed.value <= limit,
    )


def _errors(seen: Seen, limit: float) -> Objective:
    """Failed ÷ finished; unknown where an engine does not tell of failures."""
    share, total = _error_share(seen)
    return Objective(
        objective=limit,
        unit=Unit.FRACTION,
        observed=share,
        within=None if share.value is None else 1.0 - share.value,
        requests=total,
        met=None if share.value is None else share.value <= limit,
    )


def _error_share(seen: Seen) -> tuple[Measured, int | None]:
    for name in sorted({row.replica for row in seen.of("requests_per_s") if row.known}):
        told = seen.of("errors_per_s", replica=name)
        if not any(row.known for row in told):
            reason = told[0].last_reason if told else "not exposed"
            return unknown(f"{name}: {reason}", Unit.FRACTION), None
    failed = sum(row.weighted for row in seen.of("errors_per_s"))
    finished = sum(row.weighted for row in seen.of("requests_per_s"))
    total = max(failed, finished)
    if not total:
        return unknown(
            "nothing finished" if seen.of("requests_per_s") else NOTHING, "fraction"
        ), None
    return known(failed / total, Unit.FRACTION), round(total)


def _all_met(*met: bool | None) -> bool | None:
    if False in met:
        return False
    return None if None in met else True
