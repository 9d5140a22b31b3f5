"""What a perf card says about live traffic: the length mix, latencies and capacity, cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Protocol, TypeVar

from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.telemetry import Known, Unknown
from optiinfra.serving.cards import PerfCard
from optiinfra.serving.histograms import Distribution
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.serving.simulation import (
    LatencyForecast,
    Lengths,
    capacity_rps,
    forecast_ttft_tpot,
)

STRATA = 8
"""Equal shares of each length distribution that a mix keeps apart."""
GRID = 1.1
"""Ratio of neighbouring lengths and rates that the cache tells apart: ± 5 %."""
_MOST_CACHED = 256

FrozenLengths = tuple[tuple[int, int], ...]
K = TypeVar("K")
V = TypeVar("V")


class LoadModel(Protocol):
    """How one replica of a deployment behaves under load."""

    @property
    def error_band(self) -> float:
        """Relative error of what it says."""
        ...

    def forecast(self, lengths: Lengths, rate_rps: float) -> LatencyForecast:
        """p95 latencies of one replica at `rate_rps`. Raises `Rejected` for an empty mix."""
        ...

    def capacity_rps(self, lengths: Lengths, slo: tuple[float, float]) -> float:
        """Highest rate with p95 (TTFT, TPOT) inside `slo`, s. Raises as `forecast`."""
        ...


@dataclass(frozen=True, slots=True)
class CardModel:
    """A `LoadModel` over the simulator; inputs are rounded to a grid of ± 5 % and cached.

    `time_scale` is how many times faster than the card's hardware the server runs: an emulator
    at 10 answers ten times sooner and carries ten times the rate.
    """

    card: PerfCard
    config: SchedulerConfig = field(default_factory=SchedulerConfig)
    time_scale: float = 1.0
    requests: int = 600
    _forecasts: dict[tuple[FrozenLengths, float], LatencyForecast] = field(
        default_factory=dict, compare=False, repr=False
    )
    _capacities: dict[tuple[FrozenLengths, float, float], float] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def error_band(self) -> float:
        return self.card.error_band

    def forecast(self, lengths: Lengths, rate_rps: float) -> LatencyForecast:
        """As `LoadModel.forecast`, at the nearest rate of the grid."""
        key = (self._rounded(lengths), _on_grid(rate_rps / self.time_scale))
        if key not in self._forecasts:
            found = forecast_ttft_tpot(
                self.card, self.config, key[0], key[1], requests=self.requests
            )
            _keep(self._forecasts, key, found)
        found = self._forecasts[key]
        return LatencyForecast(
            rate_rps=rate_rps,
            ttft_p95_s=found.ttft_p95_s / self.time_scale,
            tpot_p95_s=found.tpot_p95_s / self.time_scale,
            error_band=found.error_band,
        )

    def capacity_rps(self, lengths: Lengths, slo: tuple[float, float]) -> float:
        """As `LoadModel.capacity_rps`, to 5 %."""
        ttft_s, tpot_s = (limit * self.time_scale for limit in slo)
        key = (self._rounded(lengths), ttft_s, tpot_s)
        if key not in self._capacities:
            found = capacity_rps(
                self.card, self.config, key[0], (ttft_s, tpot_s),
                requests=self.requests, tolerance=0.05,
            )  # fmt: skip
            _keep(self._capacities, key, found)
        return self._capacities[key] * self.time_scale

    def _rounded(self, lengths: Lengths) -> FrozenLengths:
        """Lengths on the grid, cut to what the engine accepts."""
        kv_tokens = self.config.kv_tokens or self.card.kv_tokens
        limit = min(self.config.max_model_len, kv_tokens - self.config.block_size)
        rounded = []
        for prompt, output in lengths:
            prompt_tokens = min(round(_on_grid(prompt)), limit - 1)
            output_tokens = min(round(_on_grid(output)), limit - prompt_tokens)
            rounded.append((max(1, prompt_tokens), max(1, output_tokens)))
        return tuple(rounded)


def length_mix(prompts: Distribution, outputs: Distribution, strata: int = STRATA) -> Lengths:
    """An empirical mix from two marginal distributions: each stratum of one with each of the other.

    Strata are equal shares at their middle quantile, scaled so that the means are the measured
    ones; that prompt and output lengths are independent is an assumption, since engines do not
    expose them jointly. Raises `Rejected` when one of them is empty.
    """
    return [(p, o) for p in _strata(prompts, strata) for o in _strata(outputs, strata)]


def _strata(lengths: Distribution, strata: int) -> Sequence[int]:
    middles = [lengths.quantile((k + 0.5) / strata) for k in range(strata)]
    mean = lengths.mean
    if isinstance(mean, Unknown):
        raise Rejected("no request has finished, so that the length mix is not known")
    values = [max(1.0, one.value) for one in middles if isinstance(one, Known)]
    factor = max(1.0, mean.value) * len(values) / sum(values)
    return [max(1, round(value * factor)) for value in values]


def _on_grid(value: float) -> float:
    """The nearest power of the grid's ratio; 0 and less stay."""
    if value <= 0:
        return 0.0
    return exp(round(log(value) / log(GRID)) * log(GRID))


def _keep(cache: dict[K, V], key: K, value: V) -> None:
    """Add to a cache that forgets its oldest entry when full."""
    if len(cache) >= _MOST_CACHED:
        del cache[next(iter(cache))]
    cache[key] = value
