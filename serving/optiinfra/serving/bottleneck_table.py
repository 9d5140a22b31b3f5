"""The decision table of the bottleneck finder, as data: quantities, thresholds and rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Reading, Unit
from optiinfra.serving.signals import Signals, lifted

_RAREST_RPS = 0.01
"""Requests/s that a replica which finishes none is taken to finish, so that its queue has a length
in time."""

_SHORTEST_S = 1e-6
"""Latencies below it count as this long."""


class Cause(StrEnum):
    """What binds a replica; `none` says that it is inside its objectives."""

    COMPUTE = "compute"
    MEMORY_BANDWIDTH = "memory_bandwidth"
    KV_CAPACITY = "kv_capacity"
    SCHEDULER_CAP = "scheduler_cap"
    QUEUE = "queue"
    PREFIX_MISSES = "prefix_misses"
    PREEMPTION = "preemption"
    NETWORK = "network"
    NONE = "none"
    UNKNOWN = "unknown"


class Thresholds(Value):
    """Where the conditions of the table lie.

    *Table* is the bottleneck table of this project's performance design. The others are set so that
    the share named is the larger part of the whole, with room for the card's error band (15-30 %);
    `bench/bottleneck.py` says what they are worth.
    """

    objectives: float = Field(default=1.0, gt=0)
    """Times the latency objective (1): at or above it a latency is a symptom. The deployment's
    SLO."""
    queue_objectives: float = Field(default=0.5, gt=0)
    """Mean time in the queue ÷ TTFT objective (1). Half: prefill needs the rest."""
    waiting_requests: float = Field(default=0.25, gt=0)
    """Mean requests waiting: under it, those that a scrape finds have only just arrived."""
    preempted_fraction: float = Field(default=0.5, gt=0)
    """Preemptions ÷ finished requests (1). Half of the requests are computed twice; a full cache
    that only keeps prompts out stays under 0.3 (emulator)."""
    prefill_share: float = Field(default=0.7, gt=0, le=1)
    """Share of time that prefill takes (fraction): the card's limit less its widest band, 30 %."""
    spared_fraction: float = Field(default=0.3, gt=0, le=1)
    """Share that the usual hits would spare (fraction), of all time or of the prefill of one
    prompt: what takes a prefill at its limit down to `prefill_share`."""
    prefix_queries_per_s: float = Field(default=1.0, gt=0)
    """Tokens/s asked of the prefix cache. One: the cache is on."""
    cap_fraction: float = Field(default=0.95, gt=0, le=1)
    """Running ÷ `max_num_seqs` (fraction). *Table*: at the cap; a request that has just ended
    leaves its place free until the next step."""
    kv_half: float = Field(default=0.5, gt=0, le=1)
    """KV usage (fraction) under which the cap, not memory, keeps the batch small. *Table*: 50 %."""
    kv_full: float = Field(default=0.9, gt=0, le=1)
    """KV usage (fraction) from which the cache is full. *Table*: 90 %."""
    kv_room_prompts: float = Field(default=1.0, gt=0)
    """Mean prompts that the free KV cache holds (1). Under one, vLLM does not admit the next."""
    decode_share: float = Field(default=0.5, gt=0, le=1)
    """Share of time that decode steps take (fraction): the larger part."""
    own_prefill_fraction: float = Field(default=0.5, gt=0, le=1)
    """Prefill of one prompt on an idle replica ÷ mean TTFT (fraction): the larger part."""
    network_fraction: float = Field(default=0.5, gt=0, le=1)
    """Share of the client's mean TTFT spent outside the engine (fraction): the larger part."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A quantity of the table: `formula` of the objectives and of the signals that it `needs`.

    `at_most` names signals that bound it from above.
    """

    name: str
    unit: Unit
    needs: tuple[str, ...]
    formula: Callable[..., float]
    at_most: tuple[str, ...] = ()

    def reading(self, seen: Signals, slo: SLO) -> Reading:
        """Its value; unknown as soon as a signal that it needs is."""
        return lifted(partial(self.formula, slo), *(getattr(seen, name) for name in self.needs))


@dataclass(frozen=True, slots=True)
class Criterion:
    """`measure` at or above `threshold`, or under it where `is_low`."""

    measure: Measure
    threshold: float
    is_low: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A cause and its conditions: all must hold, and of each condition one test is enough."""

    cause: Cause
    conditions: tuple[tuple[Criterion, ...], ...]


_PREFILL_AT_MOST = ("gpu_busy_fraction", "prefill_seconds_per_s")


def _spared(_: SLO, hits: float, reference: float) -> float:
    return max(0.0, reference - hits) / (1 - hits) if hits < 1 else 0.0


QUEUE = Measure(
    "queue_in_ttft_objectives", Unit.COUNT, ("waiting", "requests_per_s"),
    lambda slo, waiting, rps: waiting / max(rps, _RAREST_RPS) / slo.ttft_p95_s,
)  # fmt: skip
"""Time that a request waits, by Little's law, ÷ the TTFT objective."""
WAITING = Measure("waiting", Unit.COUNT, ("waiting",), lambda _, waiting: waiting)
TTFT = Measure(
    "ttft_in_objectives", Unit.COUNT, ("ttft_p95_s",), lambda slo, ttft: ttft / slo.ttft_p95_s
)
TPOT = Measure(
    "tpot_in_objectives", Unit.COUNT, ("tpot_p95_s",), lambda slo, tpot: tpot / slo.tpot_p95_s
)
CLIENT_TTFT = Measure(
    "client_ttft_in_objectives", Unit.COUNT, ("client_ttft_p95_s",),
    lambda slo, ttft: ttft / slo.ttft_p95_s,
)  # fmt: skip
PREEMPTED = Measure(
    "preempted_fraction", Unit.FRACTION, ("preemptions_per_s", "requests_per_s"),
    lambda _, preempted, rps: preempted / max(rps, _RAREST_RPS),
)  # fmt: skip
PREFILL_SHARE = Measure(
    "prefill_share", Unit.FRACTION,
    ("prompt_tokens_per_s", "prefix_hit_fraction", "prefill_limit_tokens_per_s"),
    lambda _, tokens, hits, limit: tokens * (1 - hits) / max(1.0, limit),
    at_most=_PREFILL_AT_MOST,
)  # fmt: skip
"""Share of time that prefill takes: computed prompt tokens/s ÷ the card's limit."""
DECODE_SHARE = Measure(
    "decode_share", Unit.FRACTION, ("generation_tokens_per_s", "running", "decode_step_s"),
    lambda _, tokens, running, step_s: tokens / max(1.0, running) * step_s,
    at_most=("gpu_busy_fraction",),
)  # fmt: skip
"""Share of time that decode takes: steps/s (tokens/s ÷ batch) × the card's step of this batch."""
SPARED = Measure(
    "prefill_spared_by_usual_hits", Unit.FRACTION,
    ("prefix_hit_fraction", "prefix_hit_reference"), _spared,
)  # fmt: skip
SPARED_TIME = Measure(
    "time_spared_by_usual_hits", Unit.FRACTION, (*PREFILL_SHARE.needs, "prefix_hit_reference"),
    lambda slo, tokens, hits, limit, usual: (
        PREFILL_SHARE.formula(slo, tokens, hits, limit) * _spared(slo, hits, usual)
    ),
    at_most=_PREFILL_AT_MOST,
)  # fmt: skip
QUERIES = Measure(
    "prefix_queries_per_s", Unit.PER_SECOND, ("prefix_queries_per_s",), lambda _, rate: rate
)
CAP = Measure(
    "running_per_cap", Unit.FRACTION, ("running", "max_num_seqs"),
    lambda _, running, cap: running / max(1.0, cap),
)  # fmt: skip
KV_USAGE = Measure(
    "kv_usage_fraction", Unit.FRACTION, ("kv_usage_fraction",), lambda _, usage: usage
)
KV_ROOM = Measure(
    "kv_room_prompts", Unit.COUNT,
    ("kv_usage_fraction", "kv_capacity_tokens", "prompt_length_tokens"),
    lambda _, usage, capacity, prompt: (1 - usage) * capacity / max(1.0, prompt),
)  # fmt: skip
OWN_PREFILL = Measure(
    "own_prefill_fraction", Unit.FRACTION, ("prefill_alone_s", "ttft_mean_s"),
    lambda _, alone, ttft: alone / max(ttft, _SHORTEST_S),
)  # fmt: skip
NETWORK = Measure(
    "network_fraction", Unit.FRACTION, ("client_ttft_mean_s", "ttft_mean_s"),
    lambda _, client, engine: 1 - engine / max(client, _SHORTEST_S),
)  # fmt: skip


def table(limit: Thresholds) -> tuple[Row, ...]:
    """The rows in the order in which they are judged; numbered from 1 in what is said of them."""
    queue = Criterion(QUEUE, limit.queue_objectives)
    ttft, tpot = Criterion(TTFT, limit.objectives), Criterion(TPOT, limit.objectives)
    slow, queued = (queue, ttft, tpot), (queue, ttft)
    waits = (Criterion(WAITING, limit.waiting_requests),)
    prefill = (Criterion(PREFILL_SHARE, limit.prefill_share),)
    own = (Criterion(OWN_PREFILL, limit.own_prefill_fraction),)
    some_prefill = (Criterion(PREFILL_SHARE, limit.spared_fraction),)
    cached = (Criterion(QUERIES, limit.prefix_queries_per_s),)
    spared = (Criterion(SPARED, limit.spared_fraction),)
    spared_time = (Criterion(SPARED_TIME, limit.spared_fraction),)
    full = (
        Criterion(KV_USAGE, limit.kv_full),
        Criterion(KV_ROOM, limit.kv_room_prompts, is_low=True),
    )
    at_cap = (Criterion(CAP, limit.cap_fraction),)
    half = Criterion(KV_USAGE, limit.kv_half)
    network = (
        (Criterion(CLIENT_TTFT, limit.objectives),),
        (Criterion(NETWORK, limit.network_fraction),),
    )
    return (
        Row(Cause.PREEMPTION, (slow, (Criterion(PREEMPTED, limit.preempted_fraction),))),
        Row(Cause.PREFIX_MISSES, (slow, cached, some_prefill, spared_time)),
        Row(Cause.COMPUTE, (slow, prefill)),
        Row(Cause.SCHEDULER_CAP, (queued, waits, at_cap, (_not(half),))),
        Row(Cause.KV_CAPACITY, (queued, waits, full)),
        Row(Cause.QUEUE, (queued, waits, at_cap, (half,))),
        Row(Cause.MEMORY_BANDWIDTH, ((tpot,), (Criterion(DECODE_SHARE, limit.decode_share),))),
        Row(Cause.PREFIX_MISSES, ((ttft,), own, cached, spared)),
        Row(Cause.COMPUTE, ((ttft,), own)),
        Row(Cause.NETWORK, network),
        Row(Cause.NONE, tuple((_not(one),) for one in (*slow, *network[0]))),
    )


def _not(test: Criterion) -> Criterion:
    return replace(test, is_low=not test.is_low)
