"""The emulated engine in real time: drives the pure scheduler and hands tokens to their streams."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from optiinfra.serving.scheduler import Plan, Request, Scheduler, StepOutcome
from optiinfra.twin.exposition import Exposition

_MOST_LAG_S = 0.25
_LONGEST_HOLD_S = 0.005


class EngineStopped(Exception):
    """The engine went away before the request was done."""


@dataclass(slots=True, eq=False)
class Stream:
    """One request's way out: tokens that became ready, and the wall times that metrics need.

    A reader that wants each burst sets `eager`; others are woken at the end only.
    """

    request: Request
    tokens: Sequence[str]
    finish_reason: str
    max_tokens: int
    arrived_s: float
    eager: bool = True
    scheduled_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    ready: int = 0
    taken: int = 0
    stopped: bool = False
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        """Whether every token is ready."""
        return self.ready >= len(self.tokens)

    def push(self, count: int) -> None:
        """More tokens are ready."""
        self.ready += count
        if self.eager or self.done:
            self._wake.set()

    def stop(self) -> None:
        """No more tokens will come."""
        self.stopped = True
        self._wake.set()

    async def burst(self) -> Sequence[str]:
        """The tokens that became ready since the last call, at least one.

        Raises `EngineStopped` when no more will come.
        """
        while self.ready == self.taken and not self.stopped:
            self._wake.clear()
            await self._wake.wait()
        if self.ready == self.taken:
            raise EngineStopped
        burst = self.tokens[self.taken : self.ready]
        self.taken = self.ready
        return burst

    async def whole(self) -> Sequence[str]:
        """All tokens, once they are ready; raises `EngineStopped` like `burst`."""
        while not self.done and not self.stopped:
            self._wake.clear()
            await self._wake.wait()
        if not self.done:
            raise EngineStopped
        return self.tokens


class Engine:
    """Runs the scheduler's steps at the pace of the card, `time_scale` times as fast.

    Steps end on an absolute timetable, so that late wake-ups do not add up; when the machine falls
    more than a quarter of a second behind, the timetable moves and `lag_s` says by how much in all.
    """

    def __init__(self, scheduler: Scheduler, metrics: Exposition, time_scale: float) -> None:
        self.scheduler = scheduler
        self.slowdown = 1.0
        self.lag_s = 0.0
        self.stopped = False
        self._metrics = metrics
        self._time_scale = time_scale
        self._streams: dict[str, Stream] = {}
        self._work = asyncio.Event()
        self._itl = metrics.histogram("inter_token_latency_seconds")
        self._iteration = metrics.histogram("iteration_tokens_total")

    def submit(self, stream: Stream) -> None:
        """Queue a request; raises `EngineStopped`, and `Rejected` as the scheduler does."""
        if self.stopped:
            raise EngineStopped
        self.scheduler.add(stream.request)
        self._streams[stream.request.id] = stream
        self._work.set()

    def abort(self, stream: Stream) -> None:
        """Forget a request whose client has gone, and free its KV."""
        if self.scheduler.abort(stream.request.id):
            del self._streams[stream.request.id]
            self._metrics.count("request_success_total", label="abort")

    async def run(self) -> None:
        """Step for ever; streams are stopped when this ends for any reason."""
        loop = asyncio.get_running_loop()
        due_s = yielded_s = loop.time()
        try:
            while True:
                plan = self.scheduler.plan()
                if plan is None:
                    self._work.clear()
                    await self._work.wait()
                    due_s = yielded_s = loop.time()
                    continue
                self._planned(plan, due_s)
                due_s = self._next_due(due_s, plan.duration_s, loop.time())
                if due_s > loop.time() or loop.time() - yielded_s > _LONGEST_HOLD_S:
                    await asyncio.sleep(max(0.0, due_s - loop.time()))
                    yielded_s = loop.time()
                self._deliver(plan, self.scheduler.commit(plan), loop.time())
        finally:
            self.stopped = True
            for stream in self._streams.values():
                stream.stop()

    def _next_due(self, due_s: float, duration_s: float, now_s: float) -> float:
        due_s += duration_s * self.slowdown / self._time_scale
        behind_s = now_s - _MOST_LAG_S - due_s
        if behind_s > 0:
            self.lag_s += behind_s
            due_s += behind_s
        return due_s

    def _planned(self, plan: Plan, now_s: float) -> None:
        metrics = self._metrics
        for request in plan.admitted:
            stream = self._streams[request.id]
            stream.scheduled_s = max(now_s, stream.arrived_s)
        if plan.queried_tokens:
            metrics.count("prefix_cache_queries_total", plan.queried_tokens)
            metrics.count("prefix_cache_hits_total", plan.hit_tokens)
            metrics.count("prompt_tokens_cached_by_source_total", plan.hit_tokens, "device")
        if plan.preempted:
            metrics.count("num_preemptions_total", len(plan.preempted))

    def _deliver(self, plan: Plan, outcome: StepOutcome, now_s: float) -> None:
        self._iteration.observe(plan.prefill_tokens + len(plan.decodes))
        if outcome.emitted:
            self._metrics.count("generation_tokens_total", len(outcome.emitted))
        for request in outcome.first:
            self._first_token(self._streams[request.id], now_s)
        for request in outcome.emitted:
            stream = self._streams[request.id]
            if stream.ready:
                self._itl.observe(now_s - stream.last_s)
            stream.last_s = now_s
            stream.push(1)
        for request in outcome.finished:
            self._finished(self._streams.pop(request.id))

    def _first_token(self, stream: Stream, now_s: float) -> None:
        stream.first_s = now_s
        metrics, request = self._metrics, stream.request
        metrics.histogram("time_to_first_token_seconds").observe(now_s - stream.arrived_s)
        computed = request.prompt_tokens - request.cached_tokens
        metrics.count("prompt_tokens_total", request.prompt_tokens)
        metrics.count("prompt_tokens_cached_total", request.cached_tokens)
        metrics.count("prompt_tokens_by_source_total", computed, "local_compute")
        metrics.count("prompt_tokens_by_source_total", request.cached_tokens, "local_cache_hit")

    def _finished(self, stream: Stream) -> None:
        request, metrics = stream.request, self._metrics
        decode_s = stream.last_s - stream.first_s
        gaps = request.generated - 1
        metrics.count("request_success_total", label=stream.finish_reason)
        observed = {
            "e2e_request_latency_seconds": stream.last_s - stream.arrived_s,
            "request_queue_time_seconds": stream.scheduled_s - stream.arrived_s,
            "request_inference_time_seconds": stream.last_s - stream.scheduled_s,
            "request_prefill_time_seconds": stream.first_s - stream.scheduled_s,
            "request_decode_time_seconds": decode_s,
            "request_time_per_output_token_seconds": decode_s / gaps if gaps else 0.0,
            "request_prompt_tokens": request.prompt_tokens,
            "request_generation_tokens": request.generated,
            "request_max_num_generation_tokens": request.generated,
            "request_params_n": 1,
            "request_params_max_tokens": stream.max_tokens,
            "request_num_preemptions": request.preemptions,
            "request_prefill_kv_computed_tokens": request.prompt_tokens - request.cached_tokens,
        }
        for name, value in observed.items():
            metrics.histogram(name).observe(value)

    def gauge(self) -> None:
        """Bring the gauges up to date, for a scrape."""
        waiting = len(self.scheduler.waiting)
        self._metrics.set("num_requests_running", len(self.scheduler.running))
        self._metrics.set("num_requests_waiting", waiting)
        self._metrics.set("num_requests_waiting_by_reason", waiting, "capacity")
        self._metrics.set("kv_cache_usage_perc", self.scheduler.pool.usage_fraction)
        self._metrics.set("engine_sleep_state", 1, "awake")
