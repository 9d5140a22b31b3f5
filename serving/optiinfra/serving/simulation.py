"""What a replica would do under a load: latencies, capacity inside an SLO, and forecasts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import ceil
from random import Random

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected
from optiinfra.serving.cards import PerfCard
from optiinfra.serving.scheduler import Request, Scheduler, SchedulerConfig

_NO_MORE_ARRIVALS_S = 1e9
_SLOWEST_RATE_RPS = 1e-3
_FASTEST_RATE_RPS = 4096.0
_WARM_UP_FRACTION = 0.1

Lengths = Sequence[tuple[int, int]]
"""An empirical mix of (prompt tokens, output tokens)."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that arrives at `at_s`; hashes as in `scheduler.Request`."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    block_hashes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class RequestLatency:
    """What one request saw; `tpot_s` is None for a single output token."""

    arrived_s: float
    ttft_s: float
    tpot_s: float | None
    finished_s: float
    preemptions: int


class LatencyForecast(Value):
    """p95 latencies of one replica at an offered rate; the card's band gives low and high."""

    rate_rps: float = Field(ge=0)
    ttft_p95_s: float
    tpot_p95_s: float
    error_band: float

    def within(self, slo_ttft_s: float, slo_tpot_s: float) -> bool:
        """Whether both forecasts meet their objective, the band left aside."""
        return self.ttft_p95_s <= slo_ttft_s and self.tpot_p95_s <= slo_tpot_s


def simulate(
    card: PerfCard,
    arrivals: Iterable[Arrival],
    config: SchedulerConfig | None = None,
    watch: Callable[[Scheduler], None] | None = None,
) -> list[RequestLatency]:
    """Latencies of every arrival, in order of arrival.

    `watch` sees the scheduler in each step, with the KV of that step reserved. Raises `Rejected`
    when a request can never fit or arrivals go back in time.
    """
    queue = list(arrivals)
    if any(later.at_s < earlier.at_s for earlier, later in pairwise(queue)):
        raise Rejected("arrivals must be in order of time")
    scheduler, clock = Scheduler(card, config), _Clock(queue)
    clock.admit(scheduler)
    while plan := scheduler.plan(clock.now_s, clock.next_arrival_s):
        if watch is not None:
            watch(scheduler)
        outcome = scheduler.commit(plan)
        clock.now_s += outcome.duration_s
        for request in outcome.first:
            clock.first_s[int(request.id)] = clock.now_s
        for request in outcome.finished:
            clock.record(request)
        clock.admit(scheduler)
    return [clock.done[index] for index in range(len(queue))]


class _Clock:
    """The time of one simulation and what has happened by then."""

    __slots__ = ("done", "first_s", "next", "now_s", "queue")

    def __init__(self, queue: list[Arrival]) -> None:
        self.queue = queue
        self.next = 0
        self.now_s = queue[0].at_s if queue else 0.0
        self.first_s: dict[int, float] = {}
        self.done: dict[int, RequestLatency] = {}

    @property
    def next_arrival_s(self) -> float:
        if self.next < len(self.queue):
            return self.queue[self.next].at_s
        return self.now_s + _NO_MORE_ARRIVALS_S

    def admit(self, scheduler: Scheduler) -> None:
        """Hand over what has arrived; an idle replica waits for the next arrival."""
        if not scheduler.has_work and self.next < len(self.queue):
            self.now_s = max(self.now_s, self.next_arrival_s)
        while self.next < len(self.queue) and self.queue[self.next].at_s <= self.now_s:
            a = self.queue[self.next]
            scheduler.add(Request(str(self.next), a.prompt_tokens, a.output_tokens, a.block_hashes))
            self.next += 1

    def record(self, request: Request) -> None:
        index = int(request.id)
        arrived_s, first_s = self.queue[index].at_s, self.first_s.pop(index)
        gaps = request.output_tokens - 1
        self.done[index] = RequestLatency(
            arrived_s=arrived_s,
            ttft_s=first_s - arrived_s,
            tpot_s=(self.now_s - first_s) / gaps if gaps else None,
            finished_s=self.now_s,
            preemptions=request.preemptions,
        )


def poisson_arrivals(
    lengths: Lengths, rate_rps: float, *, requests: int, seed: int
) -> list[Arrival]:
    """`requests` Poisson arrivals with lengths drawn from the mix.

    The draws depend on the seed alone, so that two rates see the same requests in the same order.
    """
    random = Random(seed)
    mix = [random.choice(lengths) for _ in range(requests)]
    times = accumulate(random.expovariate(1.0) for _ in range(requests))
    return [Arrival(t / rate_rps, p, o) for t, (p, o) in zip(times, mix, strict=True)]


def forecast_ttft_tpot(
    card: PerfCard,
    config: SchedulerConfig,
    lengths: Lengths,
    rate_rps: float,
    *,
    requests: int = 600,
    seed: int = 0,
) -> LatencyForecast:
    """p95 TTFT and TPOT of one replica offered `rate_rps` of this mix, by simulation.

    For "one replica gone" of n, pass the fleet's rate ÷ (n − 1). A mix of single-token answers has
    a TPOT of 0. Raises `Rejected` for an empty mix or a request that can never fit.
    """
    if not lengths:
        raise Rejected("a forecast needs at least one (prompt, output) length")
    rate = max(rate_rps, _SLOWEST_RATE_RPS)
    results = simulate(card, poisson_arrivals(lengths, rate, requests=requests, seed=seed), config)
    steady = results[int(len(results) * _WARM_UP_FRACTION) :]
    return LatencyForecast(
        rate_rps=max(rate_rps, 0.0),
        ttft_p95_s=percentile([r.ttft_s for r in steady], 0.95),
        tpot_p95_s=percentile([r.tpot_s for r in steady if r.tpot_s is not None] or [0.0], 0.95),
        error_band=card.error_band,
    )


def capacity_rps(
    card: PerfCard,
    config: SchedulerConfig,
    lengths: Lengths,
    slo: tuple[float, float],
    *,
    requests: int = 600,
    seed: int = 0,
    tolerance: float = 0.02,
) -> float:
    """Highest rate, in requests/s, that one replica serves with p95 TTFT and TPOT (s) inside `slo`.

    Bisection over `forecast_ttft_tpot` to a relative `tolerance`; 0.0 when even an idle replica is
    too slow. Raises as `forecast_ttft_tpot`.
    """

    def meets(rate_rps: float) -> bool:
        forecast = forecast_ttft_tpot(card, config, lengths, rate_rps, requests=requests, seed=seed)
        return forecast.within(*slo)

    if not meets(_SLOWEST_RATE_RPS):
        return 0.0
    low, high = _SLOWEST_RATE_RPS, 1.0
    while high < _FASTEST_RATE_RPS and meets(high):
        low, high = high, high * 2
    while high - low > tolerance * low:
        middle = (low + high) / 2
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that `fraction` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(fraction * len(ordered)) - 1)]
