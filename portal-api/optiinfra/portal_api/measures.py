"""What a series can be asked of: each metric's unit and meaning, and which statistics make sense.

How a metric adds up follows from what it is. Replicas' loads add, fractions do not; a latency's
quantile over several replicas can only be had from its buckets, and where there are none the
slowest replica's is all that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum

from optiinfra.schemas.answers import ANSWER_SCORE
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.telemetry import Unit
from optiinfra.storage.clickhouse_folds import Fold, FoldQuery, Part, PooledQuery, Rows
from optiinfra.storage.metric_rows import SeriesQuery

SPEND = "usd_per_hour"
OFFERED = "offered_rps"
SCRAPES = "scrape_window_s"


class Agg(StrEnum):
    """What becomes of the samples of a step."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    P50 = "p50"
    P95 = "p95"
    P99 = "p99"


class Shape(StrEnum):
    """What kind of quantity a metric is."""

    LOAD = "load"
    """Adds up over replicas: requests, tokens, rates."""
    PRICE = "price"
    """As a load, with a row for the whole deployment besides those of its replicas."""
    SHARE = "share"
    """A fraction of something of one replica."""
    WHOLE = "whole"
    """Known of the deployment or machine only."""
    GPU = "gpu"
    GPU_LOAD = "gpu_load"
    """Adds up over GPUs."""
    POOLED = "pooled"
    """A histogram with its buckets."""
    SPREAD = "spread"
    """A histogram of which each replica's own quantiles were kept."""
    ANSWERS = "answers"
    """One row for each answer."""


_QUANTILES = (Agg.P95, Agg.P50, Agg.P99)
AGGS: dict[Shape, tuple[Agg, ...]] = {
    Shape.LOAD: (Agg.SUM, Agg.MEAN, Agg.MAX),
    Shape.PRICE: (Agg.SUM, Agg.MEAN, Agg.MAX),
    Shape.SHARE: (Agg.MEAN, Agg.MAX),
    Shape.WHOLE: (Agg.MEAN, Agg.MAX),
    Shape.GPU: (Agg.MEAN, Agg.MAX),
    Shape.GPU_LOAD: (Agg.SUM, Agg.MEAN, Agg.MAX),
    Shape.POOLED: (*_QUANTILES, Agg.MEAN),
    Shape.SPREAD: _QUANTILES,
    Shape.ANSWERS: (Agg.MEAN, Agg.P50, Agg.MAX),
}
"""The statistics that make sense; the first one is what is meant when none is named."""
_PARTS: dict[Shape, Part | None] = {
    Shape.WHOLE: None,
    Shape.GPU: Part.GPU,
    Shape.GPU_LOAD: Part.GPU,
}
_ROLLED_UP = frozenset({Shape.LOAD, Shape.PRICE, Shape.SHARE, Shape.WHOLE})
"""What rollups hold: they know no labels."""
RAW_DAYS, ROLLUP_DAYS = 8, 400


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric that can be asked for."""

    metric: str
    unit: Unit
    shape: Shape
    meaning: str

    @property
    def aggs(self) -> tuple[Agg, ...]:
        return AGGS[self.shape]

    @property
    def part(self) -> Part | None:
        """What it can be told apart by."""
        return _PARTS.get(self.shape, Part.REPLICA)

    @property
    def longest(self) -> timedelta:
        """The longest window that can be asked for."""
        return timedelta(days=ROLLUP_DAYS if self.shape in _ROLLED_UP else RAW_DAYS)

    @property
    def is_rolled_up(self) -> bool:
        return self.shape in _ROLLED_UP


def _s(metric: str, shape: Shape, meaning: str) -> Measure:
    return Measure(metric, Unit.SECONDS, shape, meaning)


def _rate(metric: str, meaning: str, shape: Shape = Shape.LOAD) -> Measure:
    return Measure(metric, Unit.PER_SECOND, shape, meaning)


def _fraction(metric: str, meaning: str, shape: Shape = Shape.SHARE) -> Measure:
    return Measure(metric, Unit.FRACTION, shape, meaning)


_ALL = (
    _s("ttft_s", Shape.POOLED, "time to the first token"),
    _s("tpot_s", Shape.POOLED, "time per output token after the first"),
    _s("itl_s", Shape.SPREAD, "time between two tokens"),
    _s("e2e_s", Shape.SPREAD, "a request's whole time"),
    _s("queue_time_s", Shape.SPREAD, "a request's time in the queue"),
    Measure("prompt_length_tokens", Unit.TOKENS, Shape.POOLED, "tokens of a prompt"),
    Measure("output_length_tokens", Unit.TOKENS, Shape.POOLED, "tokens of an answer"),
    Measure("requests_running", Unit.COUNT, Shape.LOAD, "requests at work"),
    Measure("requests_waiting", Unit.COUNT, Shape.LOAD, "requests in the queue"),
    _rate("requests_per_s", "finished requests"),
    _rate("errors_per_s", "failed requests"),
    _rate("preemptions_per_s", "requests thrown out of the KV cache"),
    _rate("prompt_tokens_per_s", "prompt tokens read"),
    _rate("generation_tokens_per_s", "output tokens made"),
    _rate("prefill_seconds_per_s", "time that requests spent in prefill, added up"),
    _rate(OFFERED, "requests that clients offer", Shape.WHOLE),
    _fraction("kv_usage_fraction", "part of the KV cache in use"),
    _fraction("prefix_cache_hit_fraction", "prompt tokens found in the prefix cache"),
    Measure("kv_capacity_tokens", Unit.TOKENS, Shape.LOAD, "tokens that the KV cache holds"),
    Measure("max_num_seqs", Unit.COUNT, Shape.LOAD, "requests that may be at work at once"),
    Measure(SPEND, Unit.USD_PER_HOUR, Shape.PRICE, "what is paid"),
    Measure(ANSWER_SCORE, Unit.SCORE, Shape.ANSWERS, "quality of single answers, 0 to 1"),
    _fraction("answer_ok", "answers that are one", Shape.ANSWERS),
    Measure("quality_baseline", Unit.SCORE, Shape.WHOLE, "mean quality of the golden prompts"),
    _fraction("gpu_busy_fraction", "time with a kernel running: no measure of work", Shape.GPU),
    _fraction("gpu_tensor_active_fraction", "cycles in which tensor cores work", Shape.GPU),
    _fraction("gpu_dram_active_fraction", "cycles in which memory works", Shape.GPU),
    _fraction("gpu_memory_used_fraction", "part of the memory that is taken", Shape.GPU),
    Measure("gpu_temperature_celsius", Unit.CELSIUS, Shape.GPU, "temperature"),
    Measure("gpu_power_watts", Unit.WATTS, Shape.GPU_LOAD, "power"),
    _fraction("host_cpu_busy_fraction", "processor time in use", Shape.WHOLE),
    _fraction("host_memory_used_fraction", "memory in use", Shape.WHOLE),
    _fraction("host_disk_used_fraction", "disk in use", Shape.WHOLE),
    _rate("host_received_bytes_per_s", "bytes received", Shape.WHOLE),
    _rate("host_sent_bytes_per_s", "bytes sent", Shape.WHOLE),
)  # fmt: skip
MEASURES: dict[str, Measure] = {one.metric: one for one in _ALL}


def measure_of(metric: str) -> Measure:
    """Raises `Rejected` naming those that there are."""
    found = MEASURES.get(metric)
    if found is None:
        near = get_close_matches(metric, MEASURES, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise Rejected(
            f"there is no metric {metric!r}", hint=f"{meant}there are {', '.join(sorted(MEASURES))}"
        )
    return found


@dataclass(frozen=True, slots=True)
class Plan:
    """How a series is read, and in words how its steps were made."""

    question: FoldQuery | PooledQuery
    how: str


def plan(measure: Measure, agg: Agg, window: SeriesQuery, *, apart: bool) -> Plan:
    """The question for a series, told `apart` by replica or GPU or put together.

    Raises `Rejected` for what makes no sense.
    """
    _require_sense(measure, agg, window, apart=apart)
    match measure.shape:
        case Shape.POOLED:
            fold = Fold.EACH if apart else Fold.MEAN
            how = "pooled over all requests of a step"
            return Plan(PooledQuery(window=window, stat=agg.value, fold=fold), how)
        case Shape.SPREAD:
            spread = FoldQuery(
                window=window, stat="max", quantile=agg.value, fold=Fold.EACH if apart else Fold.MAX
            )
            how = "the highest of any scrape; over all requests of a step it is at most that"
            return Plan(spread, how)
        case Shape.ANSWERS:
            part = Part.REPLICA if apart else Part.ALL
            answers = FoldQuery(window=window, stat=agg.value, part=part, fold=Fold.EACH)
            return Plan(answers, "over all answers of a step")
    return _levels(measure, agg, window, apart=apart)


def _levels(measure: Measure, agg: Agg, window: SeriesQuery, *, apart: bool) -> Plan:
    rows = Rows.ALL
    if measure.shape is Shape.PRICE:
        rows = Rows.WHOLE if agg is Agg.SUM else Rows.REPLICAS
    stat = "max" if agg is Agg.MAX else "mean"
    fold = Fold.EACH if apart else Fold(agg.value)
    part = measure.part or Part.REPLICA
    question = FoldQuery(window=window, stat=stat, part=part, rows=rows, fold=fold)
    within = "the highest" if agg is Agg.MAX else "the mean"
    many = f", then the {agg.value} of all" if not apart and measure.part else ""
    return Plan(question, f"{within} of each step{many}")


def _require_sense(measure: Measure, agg: Agg, window: SeriesQuery, *, apart: bool) -> None:
    known = ", ".join(measure.aggs)
    if agg not in measure.aggs:
        raise Rejected(
            f"{agg.value} of {measure.metric} makes no sense: {_WHY[measure.shape]}",
            hint=f"ask for {known}",
        )
    if apart and agg is Agg.SUM:
        raise Rejected(
            f"a sum puts the {measure.part}s together", hint="leave `by` out, or ask for the mean"
        )
    if window.until - window.since > measure.longest:
        raise Rejected(
            f"{measure.metric} can be asked for over {measure.longest.days} days at most",
            hint="ask for a shorter range",
        )


_WHY = {
    Shape.LOAD: "it is no distribution",
    Shape.PRICE: "it is no distribution",
    Shape.SHARE: "fractions of different replicas do not add up, and it is no distribution",
    Shape.WHOLE: "there is one value at a time",
    Shape.GPU: "values of different GPUs do not add up, and it is no distribution",
    Shape.GPU_LOAD: "it is no distribution",
    Shape.POOLED: "of a histogram quantiles and the mean are known",
    Shape.SPREAD: "only each replica's quantiles were kept",
    Shape.ANSWERS: "scores do not add up",
}
