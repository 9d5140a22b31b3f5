"""What the performance model says of other knobs, precisions and parallelism, and where not."""

from __future__ import annotations

from typing import Any

import pytest

from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.telemetry import Unknown
from optiinfra.serving.cards import PerfCard, load_card
from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from optiinfra.serving.predictions import (
    KERNELS,
    QUALITY,
    Candidate,
    Prediction,
    Replica,
    candidates,
    modelled,
    other_cards,
    predict,
)
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.serving.simulation import Arrival, percentile, poisson_arrivals, simulate

CARD = load_card("h100-8b-fp16-tp1")
NOW = VllmConfig(model="m", max_num_seqs=16, max_num_batched_tokens=2048)
SCHEDULER = SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=2048)
REPLICA = Replica(CARD, NOW, SCHEDULER)
LOAD = poisson_arrivals([(400, 120), (900, 60)], 25.0, requests=120, seed=3)
LIMITS = (0.5, 0.05)


def with_knobs(**changes: Any) -> VllmConfig:
    return NOW.model_copy(update=changes)


def replica_on(name: str, **changes: Any) -> Replica:
    return Replica(load_card(name).model_copy(update=changes), NOW, SCHEDULER)


def known(candidate: Candidate) -> Prediction:
    assert isinstance(candidate.predicted, Prediction), candidate
    return candidate.predicted


def why(candidate: Candidate) -> str:
    assert isinstance(candidate.predicted, Unknown), candidate
    return candidate.predicted.detail


def config_of(then: EngineConfig, replica: Replica = REPLICA) -> SchedulerConfig:
    found = modelled(replica, then)
    assert isinstance(found, SchedulerConfig), found
    return found


def test_the_middle_is_the_simulation_with_the_card_as_it_is() -> None:
    predicted = predict(CARD, SCHEDULER, LOAD)
    seen = simulate(CARD, LOAD, SCHEDULER)
    assert predicted.ttft_p95_s.mid == percentile([one.ttft_s for one in seen], 0.95)
    assert predicted.tpot_p95_s.mid == percentile([o.tpot_s for o in seen if o.tpot_s], 0.95)
    span_s = max(one.finished_s for one in seen) - LOAD[0].at_s
    tokens = sum(one.output_tokens for one in LOAD)
    assert predicted.tokens_per_s.mid == pytest.approx(tokens / span_s)
    assert 0 < predicted.kv_usage_peak.mid < 0.2


def test_the_bounds_are_simulated_at_both_ends_of_the_band() -> None:
    narrow = predict(CARD.model_copy(update={"error_band": 0.05}), SCHEDULER, LOAD)
    wide = predict(CARD.model_copy(update={"error_band": 0.3}), SCHEDULER, LOAD)
    for one in ("ttft_p95_s", "tpot_p95_s", "tokens_per_s"):
        inner, outer = getattr(narrow, one), getattr(wide, one)
        assert outer.low < inner.low < inner.mid < inner.high < outer.high
    alone = predict(CARD, SCHEDULER, [Arrival(0.0, 500, 100)])
    assert alone.tpot_p95_s.high == pytest.approx(alone.tpot_p95_s.mid * (1 + CARD.error_band))
    assert alone.ttft_p95_s.low == pytest.approx(alone.ttft_p95_s.mid / (1 + CARD.error_band))


def test_queues_widen_the_interval_beyond_the_cards_band() -> None:
    busy = predict(CARD, SCHEDULER, LOAD).ttft_p95_s
    assert busy.high / busy.mid > 1 + CARD.error_band


def test_the_kv_peak_is_what_the_requests_hold() -> None:
    small = SCHEDULER.model_copy(update={"kv_tokens": 1600})
    one = predict(CARD, small, [Arrival(0.0, 700, 100)])
    assert one.kv_usage_peak.mid == pytest.approx(0.5)


def test_answers_of_one_token_have_no_time_between_tokens() -> None:
    assert predict(CARD, SCHEDULER, [Arrival(0.0, 10, 1)]).tpot_p95_s.high == 0.0


def test_without_traffic_nothing_is_predicted() -> None:
    with pytest.raises(Rejected, match="without arrivals"):
        predict(CARD, SCHEDULER, [])


def test_what_meets_the_limits_comes_first_then_the_fastest_and_the_unknown_last() -> None:
    refused = with_knobs(chunked_prefill=False)
    given = [refused, NOW, with_knobs(max_num_seqs=256), with_knobs(max_num_seqs=8)]
    found = candidates(REPLICA, given, LOAD, LIMITS)
    assert [one.name for one in found] == [
        "max_num_seqs 256", "as it is", "max_num_seqs 8", "chunked_prefill False",
    ]  # fmt: skip
    assert known(found[0]).meets(LIMITS)
    assert not known(found[1]).meets(LIMITS)
    assert known(found[1]).tokens_per_s.mid > known(found[2]).tokens_per_s.mid
    assert found[0].config == given[2]
    strict = candidates(REPLICA, given[1:3], LOAD, (10.0, known(found[1]).tpot_p95_s.mid))
    assert strict[0].name == "as it is"


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (SglangConfig(model="m"), "the scheduler of sglang is not modelled"),
        (with_knobs(chunked_prefill=False), "not chunked"),
        (with_knobs(max_num_seqs=4096), "at least max_num_seqs"),
        (with_knobs(kv_cache_dtype="nvfp4"), "not in the tables"),
    ],
)
def test_what_the_model_does_not_stand_for_is_unknown(then: EngineConfig, reason: str) -> None:
    [found] = candidates(REPLICA, [then], LOAD, LIMITS)
    assert reason in why(found)


def test_requests_that_never_fit_make_it_unknown() -> None:
    [found] = candidates(REPLICA, [with_knobs(max_model_len=100)], LOAD, LIMITS)
    assert "fit" in why(found)


def test_each_knob_of_the_scheduler_reaches_its_model() -> None:
    then = with_knobs(
        max_num_seqs=32, max_num_batched_tokens=4096, kv_block_tokens=32, prefix_caching=False,
        max_model_len=5000,
    )  # fmt: skip
    assert config_of(then) == SchedulerConfig(
        max_num_seqs=32, max_num_batched_tokens=4096, block_size=32, max_model_len=5000,
        enable_prefix_caching=False, kv_tokens=CARD.kv_tokens,
    )  # fmt: skip


def test_memory_becomes_kv_tokens() -> None:
    more = config_of(with_knobs(gpu_memory_fraction=0.97)).kv_tokens
    gib = (0.97 - 0.92) * 79.6
    assert more == pytest.approx(CARD.kv_tokens + gib * 2**30 / CARD.kv_bytes_per_token, abs=1)
    assert config_of(with_knobs(gpu_memory_fraction=0.01)).kv_tokens == 1


def test_the_memory_of_a_gpu_that_is_not_in_the_tables_is_unknown() -> None:
    [found] = candidates(
        replica_on("h100-8b-fp16-tp1", gpu="x9"),
        [with_knobs(gpu_memory_fraction=0.95)],
        LOAD,
        LIMITS,
    )
    assert why(found) == "the memory of x9 is not in the tables"


def test_small_values_hold_twice_as_many_tokens_and_only_perhaps_are_read_faster() -> None:
    [plain] = candidates(REPLICA, [NOW], LOAD, LIMITS)
    [small] = candidates(REPLICA, [with_knobs(kv_cache_dtype="fp8")], LOAD, LIMITS)
    assert config_of(with_knobs(kv_cache_dtype="fp8")).kv_tokens == 2 * CARD.kv_tokens
    assert known(small).tpot_p95_s.mid == known(plain).tpot_p95_s.mid
    assert known(small).tpot_p95_s.low < known(plain).tpot_p95_s.low
    assert known(small).tpot_p95_s.high == known(plain).tpot_p95_s.high
    assert small.caveat == QUALITY
    assert plain.caveat == ""


def test_going_back_to_full_values_halves_the_cache() -> None:
    was = with_knobs(kv_cache_dtype="fp8")
    measured = SCHEDULER.model_copy(update={"kv_tokens": 100_000})
    replica = Replica(CARD, was, measured)
    assert config_of(was, replica).kv_tokens == 100_000
    assert config_of(with_knobs(kv_cache_dtype="auto"), replica).kv_tokens == 50_000


def test_a_card_whose_values_are_small_already_gains_nothing() -> None:
    replica = replica_on("h100-70b-fp8-tp2")
    then = config_of(with_knobs(kv_cache_dtype="fp8"), replica)
    assert then.kv_tokens == replica.card.kv_tokens


def test_of_a_model_that_is_not_in_the_tables_no_other_type_is_predicted() -> None:
    replica = replica_on("h100-8b-fp16-tp1", model="9b")
    [found] = candidates(replica, [with_knobs(kv_cache_dtype="fp8")], LOAD, LIMITS)
    assert "a KV token of 9b" in why(found)


def of_cards(replica: Replica) -> dict[str, Candidate]:
    return {one.name: one for one in other_cards(replica, LOAD, LIMITS)}


def test_precisions_and_parallelism_are_predicted_by_their_own_cards_alone() -> None:
    found = of_cards(replica_on("h100-8b-fp16-tp1"))
    assert next(iter(found)) == "h100-8b-fp8-tp1"
    fp8 = found["h100-8b-fp8-tp1"]
    assert known(fp8) == predict(load_card("h100-8b-fp8-tp1"), SCHEDULER, LOAD)
    assert fp8.caveat == f"{QUALITY}; {KERNELS}"
    for name in ("h100-8b-int8-tp1", "h100-8b-fp16-tp2", "h100-8b-fp16-tp4"):
        assert "no perf card" in why(found[name])
    assert found["h100-8b-int8-tp1"].caveat == QUALITY
    assert found["h100-8b-fp16-tp4"].caveat == ""
    assert found["h100-8b-fp16-tp4"].gpus == 4


def test_a_precision_that_the_gpu_does_not_compute_is_unknown() -> None:
    assert why(of_cards(replica_on("a100-8b-fp16-tp1"))["a100-8b-fp8-tp1"]) == (
        "a100 has no fp8 tensor cores"
    )


def test_no_tensor_parallelism_over_pcie_beyond_two() -> None:
    found = of_cards(replica_on("a10g-8b-fp16-tp1"))
    assert "over PCIe" in why(found["a10g-8b-fp16-tp4"])
    assert known(found["a10g-8b-fp16-tp2"])


def test_other_cards_are_compared_by_the_gpu_and_with_their_own_cache() -> None:
    measured = SCHEDULER.model_copy(update={"kv_tokens": 5_000, "max_model_len": 4096})
    names = [
        one.name
        for one in other_cards(
            Replica(load_card("a10g-8b-fp16-tp1"), NOW, measured), LOAD, (1e9, 1e9)
        )
    ]
    assert names[0] == "a10g-8b-int8-tp1"
    found = other_cards(Replica(load_card("a10g-8b-fp16-tp1"), NOW, measured), LOAD, LIMITS)
    roomy = SCHEDULER.model_copy(update={"max_model_len": 4096})
    assert known(found[0]) == predict(load_card("a10g-8b-int8-tp1"), roomy, LOAD)


def test_hardware_that_is_in_no_table_has_no_card_either() -> None:
    card: PerfCard = CARD.model_copy(update={"gpu": "x9"})
    found = other_cards(Replica(card, NOW, SCHEDULER), LOAD, LIMITS)
    assert all("no perf card" in why(one) for one in found)


def test_a_measured_card_of_another_precision_needs_no_word_on_kernels() -> None:
    found = of_cards(replica_on("h100-70b-fp8-tp2", precision="int8"))
    assert found["h100-70b-fp8-tp2"].caveat == QUALITY
