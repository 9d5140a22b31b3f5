"""A continuous-batching scheduler like vLLM V1's, as pure state that is stepped through time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Self

from pydantic import Field, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Conflict, Rejected
from optiinfra.serving.blocks import BlockPool
from optiinfra.serving.cards import PerfCard
from optiinfra.serving.steps import step_ms


class SchedulerConfig(Value):
    """Engine settings under vLLM's names; `kv_tokens` overrides the card's KV capacity."""

    max_num_seqs: int = Field(default=256, ge=1)
    max_num_batched_tokens: int = Field(default=8192, ge=1)
    block_size: int = Field(default=16, ge=1)
    max_model_len: int = Field(default=8192, ge=2)
    kv_tokens: int | None = Field(default=None, ge=1)
    enable_prefix_caching: bool = True

    @model_validator(mode="after")
    def _every_decode_fits_in_a_step(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        return self


@dataclass(slots=True, eq=False)
class Request:
    """One request inside the scheduler, tokens counted; the scheduler owns the second half.

    `block_hashes` are chained hashes of its full blocks, over the prompt and as far into the output
    as the caller knows it. `computed` tokens lie in the KV cache; `generated` have been emitted.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    block_hashes: Sequence[int] = ()
    generated: int = 0
    computed: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    held: list[int] = field(default_factory=list)
    plain_blocks: int = 0
    live: bool = True

    @property
    def known_tokens(self) -> int:
        """Tokens whose KV the next emitted token needs."""
        return self.prompt_tokens + self.generated

    @property
    def blocks(self) -> int:
        """KV blocks it holds."""
        return len(self.held) + self.plain_blocks


@dataclass(slots=True)
class Plan:
    """What runs next: `steps` equal engine steps of `duration_s` in all, not yet carried out.

    `prefills` pairs a request with its chunk of tokens; `admitted` are in a batch for the first
    time; `queried_tokens` and `hit_tokens` count prefix-cache look-ups of those.
    """

    decodes: list[Request] = field(default_factory=list)
    prefills: list[tuple[Request, int]] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    queried_tokens: int = 0
    hit_tokens: int = 0
    steps: int = 1
    duration_s: float = 0.0

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed in it."""
        return sum(count for _, count in self.prefills)


@dataclass(slots=True)
class StepOutcome:
    """What a step brought: each request of `emitted` got `steps` tokens, `first` its first one."""

    duration_s: float
    steps: int
    emitted: list[Request]
    first: list[Request]
    finished: list[Request]
    admitted: list[Request]
    preempted: list[Request]


class Scheduler:
    """Decode first, chunked prefill, KV blocks, recompute preemption of the latest, prefix cache.

    `plan` decides and reserves, `commit` carries out; between them a driver lets the time pass.
    A request enters when its known tokens fit wholly (vLLM's `scheduler_reserve_full_isl`).
    """

    def __init__(self, card: PerfCard, config: SchedulerConfig | None = None) -> None:
        self.card = card
        self.config = config or SchedulerConfig()
        tokens = self.config.kv_tokens or card.kv_tokens
        self.pool = BlockPool(max(1, tokens // self.config.block_size))
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._requests: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._requests)

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that the KV blocks hold."""
        return self.pool.total * self.config.block_size

    def add(self, request: Request) -> None:
        """Queue a request. Raises `Rejected` if it can never fit, `Conflict` for an id in use."""
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise Rejected("a request needs at least one prompt token and one output token")
        total = request.prompt_tokens + request.output_tokens
        limit = min(self.config.max_model_len, self.kv_capacity_tokens)
        if total > limit:
            raise Rejected(f"{total} tokens asked for, {limit} fit", hint="shorten the request")
        if request.id in self._requests:
            raise Conflict(f"request {request.id!r} is already here")
        self._requests[request.id] = request
        self.waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its KV; False when it is not here (any more)."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        self._retire(request)
        return True

    def step(self, now_s: float = 0.0, until_s: float | None = None) -> StepOutcome | None:
        """`plan` and `commit` at once; None when idle."""
        plan = self.plan(now_s, until_s)
        return self.commit(plan) if plan is not None else None

    def plan(self, now_s: float = 0.0, until_s: float | None = None) -> Plan | None:
        """Schedule the next step and reserve its KV; None when idle.

        With `until_s`, steps whose batch stays the same are taken together, the last of them
        beginning before that time.
        """
        if not self._requests:
            return None
        plan = Plan()
        budget = self._schedule_running(plan)
        if not plan.preempted:
            self._schedule_waiting(plan, budget)
        self._time(plan, now_s, until_s)
        return plan

    def commit(self, plan: Plan) -> StepOutcome:
        """Carry out a plan: KV computed, tokens emitted, finished requests gone."""
        emitted: list[Request] = []
        first: list[Request] = []
        for request, count in plan.prefills:
            if request.live:
                self._advance(request, count)
                if request.computed == request.known_tokens:
                    if not request.generated:
                        first.append(request)
                    request.generated += 1
                    emitted.append(request)
        for request in plan.decodes:
            if request.live:
                self._advance(request, plan.steps)
                request.generated += plan.steps
                emitted.append(request)
        finished = [r for r in emitted if r.generated >= r.output_tokens]
        if finished:
            self._finish(finished)
        return StepOutcome(
            plan.duration_s, plan.steps, emitted, first, finished, plan.admitted, plan.preempted
        )

    def _schedule_running(self, plan: Plan) -> int:
        """Give every running request its tokens, preempting the latest when KV runs out."""
        budget, position, size = self.config.max_num_batched_tokens, 0, self.config.block_size
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            missing = request.prompt_tokens + request.generated - request.computed
            count = min(missing, budget) if missing > 1 else 1
            room = (len(request.held) + request.plain_blocks) * size - request.computed
            if room < count and not self._make_room(request, count, plan):
                break
            budget -= count
            position += 1
            if missing == 1 and request.generated:
                plan.decodes.append(request)
            else:
                plan.prefills.append((request, count))
        return budget

    def _make_room(self, request: Request, count: int, plan: Plan) -> bool:
        """Reserve blocks for `count` more tokens; False when the request itself had to go."""
        needed = self._blocks(request.computed + count) - request.blocks
        while needed > self.pool.free:
            victim = self.running.pop()
            self._preempt(victim)
            plan.preempted.append(victim)
            if victim is request:
                return False
        self.pool.take(needed)
        request.plain_blocks += needed
        return True

    def _preempt(self, victim: Request) -> None:
        """Free its KV and put it first in the queue; it recomputes prompt and output so far."""
        self._free(victim)
        victim.preemptions += 1
        self.waiting.appendleft(victim)

    def _schedule_waiting(self, plan: Plan, budget: int) -> None:
        """Admit from the head of the queue while sequences, token budget and KV allow."""
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            hits = self._prefix_hits(request)
            idle = self.pool.idle_among(hits)
            if self._blocks(request.known_tokens) - len(hits) > self.pool.free - idle:
                return
            self.waiting.popleft()
            self.running.append(request)
            count = self._admit(request, hits, budget)
            budget -= count
            plan.prefills.append((request, count))
            if not request.preemptions:
                plan.admitted.append(request)
                request.cached_tokens = request.computed
                if self.config.enable_prefix_caching:
                    plan.queried_tokens += request.prompt_tokens
                    plan.hit_tokens += request.computed

    def _prefix_hits(self, request: Request) -> Sequence[int]:
        """Cached blocks at its head, leaving at least one token to compute."""
        if not self.config.enable_prefix_caching or not request.block_hashes:
            return ()
        usable = request.block_hashes[: (request.known_tokens - 1) // self.config.block_size]
        return usable[: self.pool.cached_prefix(usable)]

    def _admit(self, request: Request, hits: Sequence[int], budget: int) -> int:
        self.pool.hold(hits)
        request.held = list(hits)
        request.computed = len(hits) * self.config.block_size
        count = min(request.known_tokens - request.computed, budget)
        request.plain_blocks = self._blocks(request.computed + count) - len(hits)
        self.pool.take(request.plain_blocks)
        return count

    def _time(self, plan: Plan, now_s: float, until_s: float | None) -> None:
        decodes = len(plan.decodes)
        kv_tokens = sum(r.known_tokens for r in plan.decodes)
        chunks = [(r.computed, count) for r, count in plan.prefills]
        one = step_ms(self.card, decodes, kv_tokens, chunks, len(plan.admitted)) / 1e3
        if until_s is not None and decodes and not plan.prefills and not plan.preempted:
            grow = self.card.decode.gamma_ms_per_kv_token * decodes / 1e3
            plan.steps = self._reserve_steps(plan, _steps_before(until_s - now_s, one, grow))
            plan.duration_s = plan.steps * one + grow * plan.steps * (plan.steps - 1) / 2
        else:
            plan.duration_s = one

    def _reserve_steps(self, plan: Plan, wanted: int) -> int:
        """KV for as many equal steps as no request finishes in and blocks last for, at least 1."""
        steps = min(wanted, *(r.output_tokens - r.generated for r in plan.decodes))
        while steps > 1:
            needs = [max(0, self._blocks(r.computed + steps) - r.blocks) for r in plan.decodes]
            if sum(needs) <= self.pool.free:
                self.pool.take(sum(needs))
                for request, needed in zip(plan.decodes, needs, strict=True):
                    request.plain_blocks += needed
                return steps
            steps //= 2
        return 1

    def _advance(self, request: Request, count: int) -> None:
        """Count computed tokens, and give blocks that became full their hash."""
        before = request.computed // self.config.block_size
        request.computed += count
        after = request.computed // self.config.block_size
        if after == before or not self.config.enable_prefix_caching:
            return
        # A block whose content is cached elsewhere keeps no hash, and ends the chain held here.
        if len(request.held) == before:
            for value in request.block_hashes[before:after]:
                if not self.pool.fill(value):
                    return
                request.held.append(value)
                request.plain_blocks -= 1

    def _finish(self, finished: list[Request]) -> None:
        for request in finished:
            self._retire(request)
        self.running = [r for r in self.running if r.live]

    def _retire(self, request: Request) -> None:
        self._free(request)
        request.live = False
        del self._requests[request.id]

    def _free(self, request: Request) -> None:
        self.pool.release(request.held, request.plain_blocks)
        request.held, request.plain_blocks, request.computed = [], 0, 0

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)


def _steps_before(span_s: float, one_s: float, grow_s: float) -> int:
    """Fewest steps k ≥ 1 with `k·one + grow·k(k−1)/2 ≥ span`."""
    if span_s <= one_s:
        return 1
    linear = one_s - grow_s / 2
    if grow_s <= 0:
        return int(-(-span_s // one_s))
    root = (sqrt(linear * linear + 2 * grow_s * span_s) - linear) / grow_s
    return max(1, int(-(-root // 1)))
