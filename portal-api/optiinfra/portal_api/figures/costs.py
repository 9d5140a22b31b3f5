"""What each deployment costs, for what, and what changes have saved of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter

from optiinfra.portal_api.examples import shown_as
from optiinfra.portal_api.figures import objectives as slo
from optiinfra.portal_api.figures import spending
from optiinfra.portal_api.figures.measured import (
    Band,
    Measured,
    added,
    known,
    of_reading,
    unknown,
)
from optiinfra.portal_api.figures.objectives import objectives
from optiinfra.portal_api.figures.overview import REALISED_SOURCE, SPEND_SOURCE, saved
from optiinfra.portal_api.figures.seen import Seen, Span
from optiinfra.portal_api.figures.spending import Component, a_month
from optiinfra.portal_api.measures import SPEND
from optiinfra.schemas.deployment import SLO, Deployment
from optiinfra.schemas.money import HOURS_PER_MONTH
from optiinfra.schemas.telemetry import Reading, Unit

METRICS = tuple(dict.fromkeys((*spending.METRICS, *slo.METRICS)))
_USD = Unit.USD_PER_HOUR
_READING: TypeAdapter[Reading] = TypeAdapter(Reading)
_NONE: dict[str, Any] = {"changes": 0, "known": 0, "usd_per_month": None, "before": None}


class TokensView(BaseModel):
    """Tokens of the window; null where a replica does not tell."""

    prompt: float | None
    generated: float | None


class Waterfall(BaseModel):
    """baseline − realised + other = current."""

    baseline_usd_per_hour: Measured = Field(description="before the first completed change")
    realised_usd_per_hour: Measured
    other_usd_per_hour: Measured = Field(description="what no change of ours explains")
    current_usd_per_hour: Measured
    changes: int
    unknown: int = Field(description="completed changes whose saving is not known")


class CostOf(BaseModel):
    deployment: str
    model: str | None = Field(description="null for what is paid for and not declared")
    usd_per_hour: Measured
    usd_per_month: Measured
    idle_usd_per_hour: Measured
    components: list[Component] = Field(
        description="busy replicas by market, `idle` and `unmeasured` ones apart; they add up to"
        " the whole where every replica has a price"
    )
    unpriced_replicas: int
    tokens: TokensView
    usd_per_million_tokens: Measured
    usd_per_million_good_tokens: Band
    waterfall: Waterfall


class TotalCost(BaseModel):
    usd_per_hour: Measured
    usd_per_month: Measured
    idle_usd_per_hour: Measured


class CostSources(BaseModel):
    spend: str
    tokens: str
    realised: str


class CostsView(BaseModel):
    model_config = shown_as("costs")

    at: AwareDatetime
    window_s: float
    price_sources: list[str]
    total: TotalCost
    deployments: list[CostOf]
    sources: CostSources


def costs(told: Any, seen: dict[str, Seen], span: Span, only: str | None) -> CostsView:
    """Of all deployments that are declared or paid for, or of one."""
    declared = {body["id"]: Deployment.model_validate(body) for body in told["deployments"]}
    paid_for = {name for name, one in seen.items() if one.of(SPEND)}
    names = sorted(name for name in declared.keys() | paid_for if only is None or name == only)
    each = [
        _cost(seen.get(name) or Seen(name, span), declared.get(name), told["outcomes"].get(name))
        for name in names
    ]
    total = _total((one.deployment, one.usd_per_hour) for one in each)
    sources = {
        row.labels["price_source"]
        for name in names
        if name in seen
        for row in seen[name].of(SPEND)
        if "price_source" in row.labels
    }
    return CostsView(
        at=span.until,
        window_s=span.seconds,
        price_sources=sorted(sources),
        total=TotalCost(
            usd_per_hour=total,
            usd_per_month=a_month(total),
            idle_usd_per_hour=_total((one.deployment, one.idle_usd_per_hour) for one in each),
        ),
        deployments=each,
        sources=CostSources(
            spend=SPEND_SOURCE,
            tokens="metric store: prompt_tokens_per_s and generation_tokens_per_s of the window",
            realised=REALISED_SOURCE,
        ),
    )


def _total(parts: Iterable[tuple[str, Measured]]) -> Measured:
    return added(list(parts), _USD, "no deployment is declared")


def _cost(seen: Seen, declared: Deployment | None, outcomes: Any) -> CostOf:
    replicas, usd = spending.priced(seen), spending.rate(seen)
    every = spending.per_million(seen)
    tokens = spending.tokens(seen)
    good = objectives(seen, declared.slo if declared else SLO()).goodput
    if declared is None:
        good = Band(low=None, high=None, reason="it is not declared, so it has no objectives")
    return CostOf(
        deployment=seen.deployment,
        model=declared.model if declared else None,
        usd_per_hour=usd,
        usd_per_month=a_month(usd),
        idle_usd_per_hour=spending.idle_rate(replicas, usd),
        components=spending.components(replicas),
        unpriced_replicas=sum(one.usd.value is None for one in replicas),
        tokens=TokensView(prompt=tokens.prompt, generated=tokens.generated),
        usd_per_million_tokens=every,
        usd_per_million_good_tokens=spending.per_million_good(every, good),
        waterfall=waterfall(outcomes or _NONE, usd),
    )


def waterfall(told: Any, current: Measured) -> Waterfall:
    """What completed changes saved of what was paid before the first of them."""
    baseline = unknown("no change has completed yet", _USD)
    if told["before"] is not None:
        baseline = of_reading(_READING.validate_python(told["before"]), _USD)
    realised = saved(told).times(1 / HOURS_PER_MONTH, _USD)
    return Waterfall(
        baseline_usd_per_hour=baseline,
        realised_usd_per_hour=realised,
        other_usd_per_hour=_other(baseline, realised, current),
        current_usd_per_hour=current,
        changes=told["changes"],
        unknown=told["changes"] - told["known"],
    )


def _other(baseline: Measured, realised: Measured, current: Measured) -> Measured:
    if baseline.value is None or realised.value is None or current.value is None:
        missing = next(one for one in (baseline, realised, current) if one.value is None)
        return unknown(missing.reason or "unknown", _USD)
    return known(current.value - baseline.value + realised.value, _USD)


_COLUMNS = (
    "deployment", "model", "usd_per_hour", "usd_per_month", "idle_usd_per_hour",
    "prompt_tokens", "generated_tokens", "usd_per_million_tokens",
    "usd_per_million_good_tokens_low", "usd_per_million_good_tokens_high",
    "baseline_usd_per_hour", "realised_usd_per_hour", "completed_changes",
)  # fmt: skip


def as_csv(view: CostsView) -> str:
    """The table; what is not known is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(_COLUMNS)
    for one in view.deployments:
        good, water = one.usd_per_million_good_tokens, one.waterfall
        writer.writerow((
            one.deployment, one.model, one.usd_per_hour.value, one.usd_per_month.value,
            one.idle_usd_per_hour.value, one.tokens.prompt, one.tokens.generated,
            one.usd_per_million_tokens.value, good.low, good.high,
            water.baseline_usd_per_hour.value, water.realised_usd_per_hour.value, water.changes,
        ))  # fmt: skip
    return out.getvalue()
