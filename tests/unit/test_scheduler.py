"""The continuous-batching scheduler and the simulations on it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from optiinfra.schemas.errors import Conflict, Invariant, Rejected
from optiinfra.serving.blocks import BlockPool
from optiinfra.serving.cards import DecodeCost, load_card
from optiinfra.serving.scheduler import Request, Scheduler, SchedulerConfig, StepOutcome
from optiinfra.serving.simulation import (
    Arrival,
    capacity_rps,
    forecast_ttft_tpot,
    percentile,
    poisson_arrivals,
    simulate,
)
from optiinfra.serving.steps import step_ms

CARD = load_card("h100-8b-fp16-tp1")
LENGTHS = [(1024, 256), (200, 100), (600, 60)]


def drain(scheduler: Scheduler, *, leap: bool = False) -> dict[str, int]:
    """Run until idle, checking what must hold after every step; tokens emitted by request."""
    tokens: dict[str, int] = {}
    now_s = 0.0
    while scheduler.has_work:
        outcome = scheduler.step(now_s, now_s + 0.05 if leap else None)
        assert outcome is not None
        assert outcome.duration_s > 0
        now_s += outcome.duration_s
        check(scheduler, outcome)
        for request in outcome.emitted:
            tokens[request.id] = tokens.get(request.id, 0) + outcome.steps
    assert scheduler.pool.used == 0
    return tokens


def check(scheduler: Scheduler, outcome: StepOutcome) -> None:
    pool, size = scheduler.pool, scheduler.config.block_size
    assert 0 <= pool.used <= pool.total
    assert len(scheduler.running) <= scheduler.config.max_num_seqs
    for request in scheduler.running:
        assert request.computed <= request.blocks * size
        assert request.generated < request.output_tokens
    assert all(r.generated == r.output_tokens and not r.live for r in outcome.finished)


requests = st.lists(
    st.tuples(st.integers(1, 90), st.integers(1, 60), st.integers(0, 3)), min_size=1, max_size=14
)


@settings(max_examples=150, deadline=None)
@given(
    mix=requests,
    kv_blocks=st.integers(10, 40),
    max_seqs=st.integers(1, 8),
    batched=st.integers(8, 64),
    caching=st.booleans(),
    leap=st.booleans(),
)
def test_every_request_finishes_with_the_tokens_it_asked_for(
    *,
    mix: list[tuple[int, int, int]],
    kv_blocks: int,
    max_seqs: int,
    batched: int,
    caching: bool,
    leap: bool,
) -> None:
    config = SchedulerConfig(
        kv_tokens=kv_blocks * 16,
        max_num_seqs=max_seqs,
        max_num_batched_tokens=batched,
        enable_prefix_caching=caching,
    )
    scheduler, expected = Scheduler(CARD, config), {}
    for number, (prompt, output, family) in enumerate(mix):
        blocks = (prompt + output) // 16
        hashes = [family * 100 + i for i in range(blocks)] if family else []
        scheduler.add(Request(str(number), prompt, output, hashes))
        expected[str(number)] = output
    assert drain(scheduler, leap=leap) == expected


@settings(max_examples=60, deadline=None)
@given(mix=requests, drop=st.integers(0, 13), after=st.integers(0, 20))
def test_an_aborted_request_leaves_no_kv_behind(
    mix: list[tuple[int, int, int]], drop: int, after: int
) -> None:
    scheduler = Scheduler(CARD, SchedulerConfig(kv_tokens=160, max_num_seqs=4))
    for number, (prompt, output, _) in enumerate(mix):
        scheduler.add(Request(str(number), prompt, output))
    for _ in range(after):
        scheduler.step()
    plan = scheduler.plan()
    known = scheduler.abort(str(drop))
    assert not scheduler.abort(str(drop))
    if plan is not None:
        outcome = scheduler.commit(plan)
        assert not known or str(drop) not in {r.id for r in outcome.emitted}
    drain(scheduler)


@settings(max_examples=40, deadline=None)
@given(
    gaps=st.lists(st.floats(0, 0.4), min_size=1, max_size=20),
    kv_blocks=st.sampled_from([60, 4000]),
    lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 300)), min_size=20, max_size=20),
)
def test_leaping_over_equal_steps_changes_no_latency(
    gaps: list[float], kv_blocks: int, lengths: list[tuple[int, int]]
) -> None:
    config = SchedulerConfig(kv_tokens=kv_blocks * 16, max_num_seqs=8)
    arrivals, now_s = [], 0.0
    for gap, (prompt, output) in zip(gaps, lengths, strict=False):
        now_s += gap
        arrivals.append(Arrival(now_s, prompt, output))
    leapt = simulate(CARD, arrivals, config)
    walked = _simulate_step_by_step(arrivals, config)
    for result, (first_s, finished_s) in zip(leapt, walked, strict=True):
        assert result.arrived_s + result.ttft_s == pytest.approx(first_s, rel=1e-6)
        assert result.finished_s == pytest.approx(finished_s, rel=1e-6)


def _simulate_step_by_step(
    arrivals: list[Arrival], config: SchedulerConfig
) -> list[tuple[float, float]]:
    scheduler, now_s, index = Scheduler(CARD, config), 0.0, 0
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    while index < len(arrivals) or scheduler.has_work:
        if not scheduler.has_work:
            now_s = max(now_s, arrivals[index].at_s)
        while index < len(arrivals) and arrivals[index].at_s <= now_s:
            a = arrivals[index]
            scheduler.add(Request(str(index), a.prompt_tokens, a.output_tokens))
            index += 1
        outcome = scheduler.step(now_s)
        assert outcome is not None
        now_s += outcome.duration_s
        first.update((r.id, now_s) for r in outcome.first)
        last.update((r.id, now_s) for r in outcome.finished)
    return [(first[str(i)], last[str(i)]) for i in range(len(arrivals))]


def test_a_lone_request_takes_its_prefill_and_its_decode_steps() -> None:
    [result] = simulate(CARD, [Arrival(1.0, 1000, 3)])
    assert result.ttft_s == pytest.approx(step_ms(CARD, 0, 0, [(0, 1000)], 1) / 1e3)
    decode_s = (step_ms(CARD, 1, 1001) + step_ms(CARD, 1, 1002)) / 1e3
    assert result.tpot_s == pytest.approx(decode_s / 2)
    assert result.finished_s == pytest.approx(1.0 + result.ttft_s + decode_s)


def test_a_long_prompt_is_prefilled_in_chunks_beside_decodes() -> None:
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=100)
    scheduler = Scheduler(CARD, config)
    scheduler.add(Request("short", 10, 50))
    scheduler.step()
    scheduler.add(Request("long", 250, 2))
    sizes = []
    while len(scheduler.running) == 2 or scheduler.waiting:
        plan = scheduler.plan()
        assert plan is not None
        assert [r.id for r in plan.decodes][:1] == ["short"]
        sizes.append(plan.prefill_tokens)
        scheduler.commit(plan)
    assert sizes == [99, 99, 52, 0]


def test_when_kv_runs_out_the_latest_is_preempted_and_still_finishes() -> None:
    scheduler = Scheduler(CARD, SchedulerConfig(kv_tokens=128, max_num_seqs=4))
    scheduler.add(Request("first", 40, 60))
    scheduler.add(Request("second", 40, 60))
    preempted = []
    while scheduler.has_work:
        outcome = scheduler.step(0.0, 1.0)
        assert outcome is not None
        preempted += [r.id for r in outcome.preempted]
        check(scheduler, outcome)
    assert preempted[0] == "second"
    assert "first" not in preempted


def test_a_request_that_outgrows_the_cache_last_in_line_preempts_itself() -> None:
    scheduler = Scheduler(CARD, SchedulerConfig(kv_tokens=64, max_num_seqs=2))
    scheduler.add(Request("first", 16, 40))
    scheduler.add(Request("second", 16, 30))
    assert drain(scheduler) == {"first": 40, "second": 30}


def test_a_repeated_prefix_is_not_computed_again() -> None:
    scheduler = Scheduler(CARD, SchedulerConfig())
    hashes = list(range(1, 9))
    for name in ("a", "b"):
        scheduler.add(Request(name, 128, 2, hashes))
        plan = scheduler.plan()
        assert plan is not None
        assert plan.queried_tokens == 128
        assert plan.hit_tokens == (0 if name == "a" else 112)
        assert plan.prefill_tokens == 128 - plan.hit_tokens
        scheduler.commit(plan)
        drain(scheduler)


def test_two_requests_with_one_prefix_at_once_keep_one_cached_copy() -> None:
    scheduler = Scheduler(CARD, SchedulerConfig(kv_tokens=320))
    for name in ("a", "b"):
        scheduler.add(Request(name, 64, 4, [1, 2, 3, 4]))
    drain(scheduler)
    assert scheduler.pool.cached_prefix([1, 2, 3, 4]) == 4
    scheduler.pool.forget_idle()
    assert scheduler.pool.cached_prefix([1, 2, 3, 4]) == 0
    assert scheduler.pool.free == scheduler.pool.total


def test_the_least_recently_used_prefix_goes_first_from_its_tail() -> None:
    pool = BlockPool(4)
    pool.take(4)
    assert all(pool.fill(value) for value in (1, 2, 3, 4))
    assert not pool.fill(1)
    pool.release([1, 2], 0)
    pool.release([3, 4], 0)
    pool.hold([1])
    pool.take(1)
    assert pool.cached_prefix([1, 2]) == 1
    assert pool.cached_prefix([3, 4]) == 2
    assert pool.usage_fraction == 0.5
    with pytest.raises(Invariant):
        pool.take(3)


@pytest.mark.parametrize(
    ("prompt", "output"), [(0, 1), (1, 0), (9000, 10)], ids=["no prompt", "no output", "too long"]
)
def test_a_request_that_can_never_be_served_is_rejected(prompt: int, output: int) -> None:
    with pytest.raises(Rejected):
        Scheduler(CARD).add(Request("x", prompt, output))


def test_an_id_in_use_is_a_conflict_and_an_unknown_one_cannot_be_aborted() -> None:
    scheduler = Scheduler(CARD)
    assert scheduler.step() is None
    scheduler.add(Request("x", 5, 5))
    with pytest.raises(Conflict):
        scheduler.add(Request("x", 5, 5))
    assert not scheduler.abort("y")
    assert scheduler.kv_capacity_tokens == CARD.kv_tokens // 16 * 16


def test_a_step_must_hold_one_token_of_every_sequence() -> None:
    with pytest.raises(ValidationError):
        SchedulerConfig(max_num_seqs=10, max_num_batched_tokens=9)


def test_a_card_whose_steps_do_not_grow_leaps_as_well() -> None:
    flat = CARD.model_copy(
        update={"decode": DecodeCost(alpha_ms=10, beta_ms_per_seq=0, gamma_ms_per_kv_token=0)}
    )
    scheduler = Scheduler(flat)
    scheduler.add(Request("x", 10, 100))
    scheduler.step()
    outcome = scheduler.step(0.0, 0.1)
    assert outcome is not None
    assert outcome.steps == 10
    assert outcome.duration_s == pytest.approx(10 * 0.0103)


def test_simulating_nothing_or_backwards() -> None:
    assert simulate(CARD, []) == []
    with pytest.raises(Rejected, match="order"):
        simulate(CARD, [Arrival(2, 1, 1), Arrival(1, 1, 1)])


def test_one_output_token_has_no_tpot() -> None:
    [result] = simulate(CARD, [Arrival(0, 10, 1)])
    assert result.tpot_s is None
    forecast = forecast_ttft_tpot(CARD, SchedulerConfig(), [(10, 1)], 1.0, requests=20)
    assert forecast.tpot_p95_s == 0.0


def test_the_capacity_is_the_highest_rate_inside_the_slo() -> None:
    config, slo = SchedulerConfig(), (0.5, 0.05)
    capacity = capacity_rps(CARD, config, LENGTHS, slo, requests=200)
    inside = forecast_ttft_tpot(CARD, config, LENGTHS, capacity, requests=200)
    beyond = forecast_ttft_tpot(CARD, config, LENGTHS, capacity * 1.1, requests=200)
    assert 5 < capacity < 60
    assert inside.within(*slo)
    assert not beyond.within(*slo)
    assert inside.error_band == CARD.error_band


def test_a_faster_gpu_has_more_capacity() -> None:
    rates = [
        capacity_rps(load_card(name), SchedulerConfig(), [(300, 100)], (0.5, 0.05), requests=120)
        for name in ("a10g-8b-fp16-tp1", "l40s-8b-fp16-tp1", "h100-8b-fp16-tp1")
    ]
    assert rates == sorted(rates)
    assert rates[0] > 0


def test_a_replica_too_slow_for_the_slo_has_no_capacity() -> None:
    l4 = load_card("l4-8b-fp16-tp1")
    assert capacity_rps(l4, SchedulerConfig(), LENGTHS, (0.5, 0.05), requests=60) == 0.0


def test_an_slo_that_nothing_breaks_ends_the_search() -> None:
    rate = capacity_rps(CARD, SchedulerConfig(), [(1, 1)], (1e9, 1e9), requests=20)
    assert rate > 4000


def test_a_forecast_needs_lengths_and_takes_no_load_as_idle() -> None:
    with pytest.raises(Rejected):
        forecast_ttft_tpot(CARD, SchedulerConfig(), [], 1.0)
    idle = forecast_ttft_tpot(CARD, SchedulerConfig(), [(1000, 10)], 0.0, requests=20)
    assert idle.rate_rps == 0.0
    assert idle.ttft_p95_s == pytest.approx(step_ms(CARD, 0, 0, [(0, 1000)], 1) / 1e3)


def test_the_same_seed_gives_the_same_requests_at_every_rate() -> None:
    slow = poisson_arrivals(LENGTHS, 1.0, requests=50, seed=3)
    fast = poisson_arrivals(LENGTHS, 2.0, requests=50, seed=3)
    assert [a.prompt_tokens for a in slow] == [a.prompt_tokens for a in fast]
    assert slow[-1].at_s == pytest.approx(2 * fast[-1].at_s)
    assert poisson_arrivals(LENGTHS, 1.0, requests=50, seed=4) != slow


def test_percentiles_are_nearest_rank() -> None:
    values = [float(v) for v in range(1, 101)]
    assert percentile(values, 0.95) == 95.0
    assert percentile([7.0], 0.95) == 7.0


def test_closed_loops_agree_with_vllm_measured_on_silicon() -> None:
    """vLLM, 70B fp8 TP2 on H100: mean TTFT and TPOT, aiconfigurator-core 0.12.0 sample."""
    card = load_card("h100-70b-fp8-tp2")
    for loop, prompt, ttft_ms, tpot_ms in (
        (4, 1024, 121.3, 17.4), (8, 1024, 150.2, 18.2),
        (4, 8192, 737.5, 20.6), (8, 8192, 962.9, 25.0),
    ):  # fmt: skip
        ttft_s, tpot_s = _closed_loop(card.name, loop, prompt)
        assert ttft_s * 1e3 == pytest.approx(ttft_ms, rel=0.2)
        assert tpot_s * 1e3 == pytest.approx(tpot_ms, rel=0.08)


def _closed_loop(card_name: str, loop: int, prompt: int, output: int = 1024) -> tuple[float, float]:
    """Mean TTFT and TPOT with `loop` requests always in flight, lengths uniform in 80-100 %."""
    scheduler = Scheduler(load_card(card_name), SchedulerConfig(max_model_len=16384))
    started: dict[str, float] = {}
    first: dict[str, float] = {}
    ttfts: list[float] = []
    tpots: list[float] = []
    now_s = 0.0
    while len(ttfts) < 8 * loop:
        while len(started) < len(ttfts) + loop:
            number = len(started)
            share = 0.8 + 0.2 * (number * 0.618 % 1)
            scheduler.add(Request(str(number), int(prompt * share), int(output * share)))
            started[str(number)] = now_s
        outcome = scheduler.step(now_s, now_s + 1e6)
        assert outcome is not None
        now_s += outcome.duration_s
        first.update((r.id, now_s) for r in outcome.first)
        for r in outcome.finished:
            ttfts.append(first[r.id] - started[r.id])
            tpots.append((now_s - first[r.id]) / (r.output_tokens - 1))
    return sum(ttfts) / len(ttfts), sum(tpots) / len(tpots)
