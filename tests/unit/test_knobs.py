"""Which knobs a tuning turns for a cause: around what runs, and nothing that would not start."""

from __future__ import annotations

import pytest

from optiinfra.agents.performance.knobs import (
    SearchSpace,
    distance,
    nearest,
    predicted_best,
    space_for,
)
from optiinfra.schemas.errors import Rejected
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.cards import load_card
from optiinfra.serving.engine_rules import Severity
from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from optiinfra.serving.launch import problems
from optiinfra.serving.predictions import Prediction, Replica, candidates
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.serving.simulation import poisson_arrivals

VLLM = VllmConfig(model="m", max_num_seqs=64, max_num_batched_tokens=2048)
SGLANG = SglangConfig(model="m")


def names(space: SearchSpace) -> list[str]:
    return [knob.name for knob in space.knobs]


@pytest.mark.parametrize(
    ("cause", "vllm", "sglang"),
    [
        (Cause.SCHEDULER_CAP, ["max_num_seqs", "max_num_batched_tokens"], ["max_num_seqs"]),
        (
            Cause.KV_CAPACITY,
            ["gpu_memory_fraction", "kv_cache_dtype", "max_num_seqs"],
            ["gpu_memory_fraction", "kv_cache_dtype", "max_num_seqs"],
        ),
        (
            Cause.PREEMPTION,
            ["gpu_memory_fraction", "kv_cache_dtype", "max_num_seqs"],
            ["gpu_memory_fraction", "kv_cache_dtype", "max_num_seqs"],
        ),
        (
            Cause.PREFIX_MISSES,
            ["kv_block_tokens", "gpu_memory_fraction"],
            ["gpu_memory_fraction"],
        ),
        (Cause.COMPUTE, ["max_num_batched_tokens"], ["chunked_prefill_tokens", "mixed_chunk"]),
        (
            Cause.MEMORY_BANDWIDTH,
            ["max_num_seqs", "kv_cache_dtype"],
            ["max_num_seqs", "kv_cache_dtype"],
        ),
    ],
)
def test_each_cause_has_its_knobs(cause: Cause, vllm: list[str], sglang: list[str]) -> None:
    assert names(space_for(cause, VLLM)) == vllm
    assert names(space_for(cause, SGLANG)) == sglang


@pytest.mark.parametrize("cause", [Cause.QUEUE, Cause.NETWORK, Cause.NONE, Cause.UNKNOWN])
def test_what_no_knob_mends_says_why(cause: Cause) -> None:
    space = space_for(cause, VLLM)
    assert not space.points
    assert space.reason
    assert space.present == space.bold == {}


def test_choices_are_powers_of_two_around_the_present_value() -> None:
    odd = VllmConfig(model="m", max_num_seqs=48, max_num_batched_tokens=1000)
    seqs, tokens = space_for(Cause.SCHEDULER_CAP, odd).knobs
    assert seqs.choices == (32, 48, 64, 128, 256, 512, 1024)
    assert (seqs.present, seqs.bold) == (48, 128)
    assert tokens.choices == (512, 1000, 1024, 2048, 4096)


def test_choices_end_where_the_engine_or_the_gpu_does() -> None:
    high = VllmConfig(model="m", max_num_seqs=1024, max_num_batched_tokens=32_768)
    seqs, tokens = space_for(Cause.SCHEDULER_CAP, high).knobs
    assert seqs.choices == (512, 1024)
    assert seqs.bold == 1024
    assert tokens.choices[-1] == 32_768
    low = VllmConfig(model="m", max_num_seqs=8)
    assert space_for(Cause.MEMORY_BANDWIDTH, low).knobs[0].choices == (8, 16)
    assert space_for(Cause.MEMORY_BANDWIDTH, low).bold["max_num_seqs"] == 8


def test_the_bold_step_goes_where_the_cause_points() -> None:
    assert space_for(Cause.SCHEDULER_CAP, VLLM).bold["max_num_seqs"] == 256
    assert space_for(Cause.PREEMPTION, VLLM).bold == {
        "gpu_memory_fraction": 0.94, "kv_cache_dtype": "fp8", "max_num_seqs": 32,
    }  # fmt: skip
    assert space_for(Cause.COMPUTE, VLLM).bold == {"max_num_batched_tokens": 8192}


def test_a_bold_step_that_the_engine_refuses_is_replaced_by_the_nearest() -> None:
    now = VllmConfig(model="m", max_num_seqs=256, max_num_batched_tokens=512)
    space = space_for(Cause.SCHEDULER_CAP, now)
    assert space.bold in [space.values(point) for point in space.points]
    assert space.bold != space.present


@pytest.mark.parametrize("cause", [Cause.SCHEDULER_CAP, Cause.KV_CAPACITY, Cause.COMPUTE])
@pytest.mark.parametrize("now", [VLLM, SGLANG, VLLM.model_copy(update={"max_model_len": 4096})])
def test_nothing_that_would_not_start_is_in_a_space(cause: Cause, now: EngineConfig) -> None:
    space = space_for(cause, now)
    assert len(space.points) > 1
    for point in space.points:
        found = problems(space.config(space.values(point)), None)
        assert not [p for p in found if p.severity is Severity.REFUSED]


def test_steps_shorter_than_the_batch_are_left_out() -> None:
    space = space_for(Cause.SCHEDULER_CAP, VLLM)
    tried = [space.values(point) for point in space.points]
    assert {"max_num_seqs": 1024, "max_num_batched_tokens": 1024} in tried
    assert {"max_num_seqs": 1024, "max_num_batched_tokens": 512} not in tried


def test_what_a_version_does_not_take_is_left_out() -> None:
    now = VllmConfig(model="m", prefix_caching=False, kv_block_tokens=8)
    new = space_for(Cause.PREFIX_MISSES, now, version="0.30.0")
    old = space_for(Cause.PREFIX_MISSES, now, version="0.10.0")
    blocks = names(new).index("kv_block_tokens")
    assert {new.values(p)["kv_block_tokens"] for p in new.points} == {2, 4, 8}
    assert {old.values(p)["kv_block_tokens"] for p in old.points} == {8}
    assert new.knobs[blocks].bold == 4
    assert new.bold["prefix_caching"] is True


def test_a_knob_that_the_engine_ignores_is_no_knob() -> None:
    now = VLLM.model_copy(update={"kv_cache_bytes": 10**9})
    assert names(space_for(Cause.KV_CAPACITY, now)) == ["kv_cache_dtype", "max_num_seqs"]


def test_an_engine_that_is_configured_as_far_as_it_goes_says_so() -> None:
    now = VllmConfig(model="m", gpu_memory_fraction=0.97, kv_block_tokens=1)
    space = space_for(Cause.PREFIX_MISSES, now)
    assert not space.points
    assert space.reason == "vllm has no knob to turn for this cause"


def test_a_configuration_that_would_not_start_is_not_tuned() -> None:
    space = space_for(Cause.COMPUTE, VllmConfig(model="m", speculation_tokens=3))
    assert not space.points
    assert "would not start" in space.reason


def test_prompts_that_the_engine_does_not_cut_have_no_piece_to_size() -> None:
    uncut = SglangConfig(model="m", chunked_prefill_tokens=-1)
    assert names(space_for(Cause.COMPUTE, uncut)) == ["mixed_chunk"]


def test_a_cache_of_small_values_stays_as_it_is() -> None:
    small = VllmConfig(model="m", kv_cache_dtype="fp8")
    assert names(space_for(Cause.MEMORY_BANDWIDTH, small)) == ["max_num_seqs"]


def test_the_engines_own_choice_is_the_present_where_it_is_known() -> None:
    unset = VllmConfig(model="m")
    space = space_for(Cause.SCHEDULER_CAP, unset, effective={"max_num_seqs": 512})
    assert space.present == {"max_num_seqs": 512, "max_num_batched_tokens": 2048}
    assert space.config(space.present) == unset
    more = space.config({"max_num_seqs": 1024, "max_num_batched_tokens": 2048})
    assert more == VllmConfig(model="m", max_num_seqs=1024)


def test_values_and_points_are_two_names_of_one_thing() -> None:
    space = space_for(Cause.KV_CAPACITY, VLLM)
    assert [space.point(space.values(p)) for p in space.points] == list(space.points)
    corner, last = space.points[0], space.points[-1]
    assert len(space.neighbours(corner)) == len(space.knobs)
    assert all(distance(corner, p) == 1 for p in space.neighbours(corner))
    assert nearest(last, space.points) == last


@pytest.mark.parametrize(
    "values",
    [
        {"max_num_seqs": 64},
        {"max_num_seqs": 64, "max_num_batched_tokens": 2048, "port": 1},
        {"max_num_seqs": 65, "max_num_batched_tokens": 2048},
        {"max_num_seqs": 1024, "max_num_batched_tokens": 512},
    ],
)
def test_values_outside_a_space_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(Rejected, match="not in the search space"):
        space_for(Cause.SCHEDULER_CAP, VLLM).point(values)


# The start that the performance model names

LOAD = poisson_arrivals([(200, 60), (500, 30)], 500.0, requests=80, seed=3)


def replica(now: EngineConfig) -> Replica:
    scheduler = SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=2048)
    return Replica(load_card("h100-8b-fp16-tp1"), now, scheduler)


def test_the_models_best_is_inside_the_limits_and_faster_than_what_runs() -> None:
    space, limits = space_for(Cause.SCHEDULER_CAP, VLLM), (float("inf"), 0.03)
    best = predicted_best(space, replica(VLLM), LOAD, limits)
    assert best is not None
    every = {
        one.name: one.predicted
        for one in candidates(
            replica(VLLM), [space.config(space.values(p)) for p in space.points], LOAD, limits
        )
    }
    inside = [p for p in every.values() if isinstance(p, Prediction) and p.meets(limits)]
    [chosen] = candidates(replica(VLLM), [space.config(best)], LOAD, limits)
    assert isinstance(chosen.predicted, Prediction)
    assert chosen.predicted.tokens_per_s.mid == max(p.tokens_per_s.mid for p in inside)
    assert 0 < len(inside) < len(every)


def test_where_no_prediction_keeps_the_limits_the_model_names_nothing() -> None:
    space = space_for(Cause.SCHEDULER_CAP, VLLM)
    assert predicted_best(space, replica(VLLM), LOAD, (1.0, 0.001)) is None


def test_of_an_engine_that_is_not_modelled_the_model_names_nothing() -> None:
    space = space_for(Cause.SCHEDULER_CAP, SGLANG)
    assert predicted_best(space, replica(SGLANG), LOAD, (1e9, 1e9)) is None
