"""What machines cost: the shipped price list, and the judgement of live spot quotes against it."""

from __future__ import annotations

import csv
import gzip
import io
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from itertools import accumulate
from typing import Self

from pydantic import Field, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Market
from optiinfra.schemas.money import PriceSource
from optiinfra.schemas.telemetry import Unknown, UnknownReason

_LIST = "aws_gpu_prices_2025-11-30.csv.gz"
_LIST_NAME = "aws price list"
_LIST_AS_OF = datetime(2025, 11, 30, tzinfo=UTC)
CONFIDENCE = 0.9
"""The part of the time that a price spends inside its band (5th to 95th percentile)."""


class PriceBand(Value):
    """USD per instance-hour: the middle of the distribution and the bounds around it."""

    low: float = Field(gt=0, allow_inf_nan=False)
    mid: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)
    source: PriceSource

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"band is not ordered: {self.low} ≤ {self.mid} ≤ {self.high}")
        return self


class InterruptionBand(Value):
    """Share of instances that are interrupted in a month; `label` as the cloud prints it."""

    label: str
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @property
    def mid(self) -> float:
        return (self.low + self.high) / 2


class Shape(Value):
    """The accelerators of an instance type; memory over all of them, GiB."""

    gpu: str
    gpus: float = Field(gt=0)
    gpu_memory_gib: float = Field(ge=0)


@dataclass(frozen=True, slots=True)
class SpotQuote:
    """A spot price that holds in `zone` from `at` until the zone's next quote."""

    zone: str
    usd_per_hour: float
    at: datetime


@dataclass(frozen=True, slots=True)
class QuoteLimits:
    """When a live quote is believed.

    AWS repeats a price that does not move once a day (24 h 1 min at the 99.9th percentile of the
    public p2/p3 history), so a zone is stale when it has been silent for longer than that.
    The plausible band is relative to the on-demand price.
    """

    max_age: timedelta = timedelta(hours=26)
    window: timedelta = timedelta(days=7)
    min_ratio: float = 0.05
    max_ratio: float = 1.5


DEFAULT_LIMITS = QuoteLimits()


@dataclass(frozen=True, slots=True)
class _Row:
    shape: Shape
    on_demand: float
    spot: tuple[float, float, float] | None
    interruption: InterruptionBand | None
    reserved: tuple[float, ...]


class Catalogue:
    """Prices by instance type and region. What is not listed has no price: None, never 0."""

    def __init__(self, rows: Mapping[tuple[str, str], _Row], name: str, as_of: datetime) -> None:
        self._rows = rows
        self._shapes = {instance_type: row.shape for (instance_type, _), row in rows.items()}
        self._source = PriceSource(name=name, as_of=as_of)

    @staticmethod
    def load() -> Catalogue:
        """The list that ships with the product."""
        return _shipped()

    @classmethod
    def read(cls, lines: Iterable[str], name: str, as_of: datetime) -> Catalogue:
        """A list of one's own in the columns of the shipped one (see its ATTRIBUTION.md)."""
        rows = {
            (line["instance_type"], line["region"]): _row(line) for line in csv.DictReader(lines)
        }
        return cls(rows, name, as_of)

    @property
    def source(self) -> PriceSource:
        return self._source

    def price(self, instance_type: str, region: str, market: Market) -> PriceBand | None:
        """USD per instance-hour; None when the list does not say.

        On-demand is exact. Spot is (minimum, average, maximum) of the list's window. Reserved runs
        from the cheapest to the dearest commitment, since the list does not know which was bought.
        """
        row = self._rows.get((instance_type, region))
        if row is None:
            return None
        return _band(_prices(row, market), self._source)

    def interruption(self, instance_type: str, region: str) -> InterruptionBand | None:
        """Monthly spot interruption band, None when the list has none."""
        row = self._rows.get((instance_type, region))
        return row.interruption if row else None

    def shape(self, instance_type: str) -> Shape | None:
        return self._shapes.get(instance_type)

    def regions(self, instance_type: str) -> tuple[str, ...]:
        """Where the type is listed, sorted."""
        return tuple(sorted(region for kind, region in self._rows if kind == instance_type))


def spot_band(
    history: Sequence[SpotQuote],
    now: datetime,
    on_demand_usd_per_hour: float,
    limits: QuoteLimits = DEFAULT_LIMITS,
) -> PriceBand | Unknown:
    """The distribution of the spot price over the window, weighted by how long each price held.

    A zone counts only when its last quote is fresh and all its quotes are
    plausible; without such a zone the price is unknown, with the reason.
    """
    zones: dict[str, list[SpotQuote]] = {}
    for quote in sorted(history, key=lambda quote: quote.at):
        if quote.at <= now:
            zones.setdefault(quote.zone, []).append(quote)
    verdicts = {
        zone: _judged(quotes, now, on_demand_usd_per_hour, limits) for zone, quotes in zones.items()
    }
    good = [zones[zone] for zone, verdict in verdicts.items() if verdict is None]
    if not good:
        return _why_unknown([verdict for verdict in verdicts.values() if verdict is not None])
    weighted = sorted(pair for quotes in good for pair in _held(quotes, now, limits.window))
    newest = max(quotes[-1].at for quotes in good)
    return PriceBand(
        low=_percentile(weighted, (1 - CONFIDENCE) / 2),
        mid=_percentile(weighted, 0.5),
        high=_percentile(weighted, (1 + CONFIDENCE) / 2),
        source=PriceSource(name="spot price history", as_of=newest),
    )


def zones_by_price(
    history: Sequence[SpotQuote],
    now: datetime,
    on_demand_usd_per_hour: float,
    limits: QuoteLimits = DEFAULT_LIMITS,
) -> tuple[str, ...]:
    """Zones with a believable price, cheapest median first."""
    medians = []
    for zone in {quote.zone for quote in history}:
        quotes = [quote for quote in history if quote.zone == zone]
        band = spot_band(quotes, now, on_demand_usd_per_hour, limits)
        if isinstance(band, PriceBand):
            medians.append((band.mid, zone))
    return tuple(zone for _, zone in sorted(medians))


def _judged(
    quotes: Sequence[SpotQuote], now: datetime, on_demand: float, limits: QuoteLimits
) -> Unknown | None:
    """Why a zone's quotes (oldest first) are not believed, None when they are."""
    last = quotes[-1]
    if now - last.at > limits.max_age:
        return Unknown(
            reason=UnknownReason.STALE,
            detail=f"last quote in {last.zone} is of {last.at:%Y-%m-%dT%H:%MZ}",
        )
    low, high = limits.min_ratio * on_demand, limits.max_ratio * on_demand
    for quote in quotes:
        if not low <= quote.usd_per_hour <= high:
            return Unknown(
                reason=UnknownReason.IMPLAUSIBLE,
                detail=(
                    f"${quote.usd_per_hour:g}/h in {quote.zone} is outside "
                    f"${low:.4g}-{high:.4g}/h, the plausible band around on-demand"
                ),
            )
    return None


def _why_unknown(verdicts: Sequence[Unknown]) -> Unknown:
    if not verdicts:
        return Unknown(reason=UnknownReason.MISSING, detail="the cloud gave no spot quote")
    for verdict in verdicts:
        if verdict.reason is UnknownReason.IMPLAUSIBLE:
            return verdict
    return verdicts[0]


def _held(
    quotes: Sequence[SpotQuote], now: datetime, window: timedelta
) -> Iterable[tuple[float, float]]:
    """(price, seconds that it held inside the window) of one zone, oldest first."""
    start = now - window
    ends = [later.at for later in quotes[1:]] + [now]
    for quote, end in zip(quotes, ends, strict=True):
        seconds = (end - max(quote.at, start)).total_seconds()
        if seconds > 0 or quote is quotes[-1]:
            yield quote.usd_per_hour, max(seconds, 1.0)


def _percentile(weighted: Sequence[tuple[float, float]], fraction: float) -> float:
    """The smallest price that held, with all cheaper ones, for `fraction` of the time."""
    sums = list(accumulate(seconds for _, seconds in weighted))
    return weighted[bisect_left(sums, fraction * sums[-1])][0]


def _prices(row: _Row, market: Market) -> tuple[float, float, float] | None:
    if market is Market.ON_DEMAND:
        return row.on_demand, row.on_demand, row.on_demand
    if market is Market.SPOT:
        return row.spot
    if not row.reserved:
        return None
    ordered = sorted(row.reserved)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def _band(prices: tuple[float, float, float] | None, source: PriceSource) -> PriceBand | None:
    if prices is None:
        return None
    low, mid, high = prices
    return PriceBand(low=low, mid=mid, high=high, source=source)


@lru_cache(maxsize=1)
def _shipped() -> Catalogue:
    packed = (files("optiinfra.serving") / "data" / "prices" / _LIST).read_bytes()
    text = gzip.decompress(packed).decode()
    return Catalogue.read(io.StringIO(text), _LIST_NAME, _LIST_AS_OF)


def _row(line: Mapping[str, str]) -> _Row:
    reserved = (_number(value) for name, value in line.items() if name.startswith("ri_"))
    return _Row(
        shape=Shape(
            gpu=line["gpu_model"],
            gpus=float(line["gpu_count"]),
            gpu_memory_gib=float(line["gpu_memory_gib_total"]),
        ),
        on_demand=float(line["ondemand_usd_hr"]),
        spot=_spot(line),
        interruption=interruption_band(line["spot_interrupt_band"]),
        reserved=tuple(price for price in reserved if price is not None),
    )


def _spot(line: Mapping[str, str]) -> tuple[float, float, float] | None:
    """None without a measured spread: those averages are a round tenth of on-demand."""
    prices = [_number(line[f"spot_{name}_usd_hr"]) for name in ("min", "avg", "max")]
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return None
    low, mid, high = known
    return min(low, mid), mid, max(mid, high)


def _number(text: str) -> float | None:
    return float(text) if text else None


def interruption_band(label: str) -> InterruptionBand | None:
    """The band that a label such as "<5%", "5-10%" or ">20%" stands for.

    The open upper band reaches 1. None for an empty label; `ValueError` for an unreadable one.
    """
    if not label:
        return None
    if matched := re.fullmatch(r"<(\d+)%", label):
        return InterruptionBand(label=label, low=0, high=int(matched[1]) / 100)
    if matched := re.fullmatch(r">(\d+)%", label):
        return InterruptionBand(label=label, low=int(matched[1]) / 100, high=1)
    if matched := re.fullmatch(r"(\d+)-(\d+)%", label):
        return InterruptionBand(label=label, low=int(matched[1]) / 100, high=int(matched[2]) / 100)
    raise ValueError(f"not an interruption band: {label!r}")
