"""Command lines, conflicts and differences of engine configurations."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.config_diff import differences, needs_restart
from optiinfra.serving.engine_rules import Severity
from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from optiinfra.serving.launch import arguments, command, problems


def vllm(**knobs: Any) -> VllmConfig:
    return VllmConfig(model="org/model", **knobs)


def sglang(**knobs: Any) -> SglangConfig:
    return SglangConfig(model="org/model", **knobs)


def words(config: EngineConfig, version: str | None) -> list[str]:
    """The command without program, model and address."""
    bare = type(config)(model="org/model")
    usual = command(bare, version)
    return [word for word in command(config, version) if word not in usual]


# Command lines


def test_a_vllm_command_names_the_model_and_each_knob() -> None:
    config = vllm(
        served_model_name="chat", max_num_seqs=256, max_num_batched_tokens=8192,
        gpu_memory_fraction=0.9, tensor_parallel=2, extra_arguments=("--seed", "7"),
    )  # fmt: skip
    assert command(config, "0.10.2") == (
        "vllm", "serve", "org/model", "--served-model-name", "chat", "--host", "0.0.0.0",
        "--port", "8000", "--max-num-seqs", "256", "--max-num-batched-tokens", "8192",
        "--gpu-memory-utilization", "0.9", "--tensor-parallel-size", "2", "--seed", "7",
    )  # fmt: skip


def test_the_arguments_leave_program_weights_name_and_address_to_whoever_has_them() -> None:
    named = {"served_model_name": "chat", "port": 9, "extra_arguments": ("--seed", "7")}
    assert arguments(vllm(max_num_seqs=256, **named), "0.10.2") == (
        "--max-num-seqs", "256", "--seed", "7",
    )  # fmt: skip
    assert arguments(sglang(**named), "0.5.10") == ("--enable-metrics", "--seed", "7")
    with pytest.raises(Rejected, match="would not start"):
        arguments(vllm(swap_gib=4), "0.20.2")


def test_an_sglang_command_exposes_metrics_unless_told_not_to() -> None:
    assert command(sglang(), "0.5.10") == (
        "python3", "-m", "sglang.launch_server", "--model-path", "org/model",
        "--host", "0.0.0.0", "--port", "8000", "--enable-metrics",
    )  # fmt: skip
    assert "--enable-metrics" not in command(sglang(metrics=False), "0.5.10")


@pytest.mark.parametrize(
    ("knob", "value", "version", "written"),
    [
        ("prefix_caching", True, "0.5.5", ["--enable-prefix-caching"]),
        ("prefix_caching", False, "0.5.5", []),
        ("prefix_caching", True, "0.10.2", ["--enable-prefix-caching"]),
        ("prefix_caching", False, "0.10.2", ["--no-enable-prefix-caching"]),
        ("chunked_prefill", False, "0.6.6", ["--enable-chunked-prefill=false"]),
        ("chunked_prefill", False, "0.8.5", ["--no-enable-chunked-prefill"]),
        ("enforce_eager", True, "0.33.0", ["--enforce-eager"]),
        ("enforce_eager", False, "0.33.0", []),
        ("kv_cache_dtype", "fp8", None, ["--kv-cache-dtype", "fp8"]),
    ],
)
def test_a_vllm_knob_is_written_as_its_version_takes_it(
    knob: str, value: object, version: str | None, written: list[str]
) -> None:
    assert words(vllm(**{knob: value}), version) == written


@pytest.mark.parametrize(
    ("knob", "value", "version", "written"),
    [
        ("prefix_caching", False, "0.5.10", ["--disable-radix-cache"]),
        ("prefix_caching", True, "0.5.10", []),
        ("overlap_schedule", False, "0.5.23", ["--disable-overlap-schedule"]),
        ("micro_batch", 4, "0.5.1", ["--max-micro-batch-size", "4"]),
        ("micro_batch", 4, "0.5.10", ["--pp-max-micro-batch-size", "4"]),
        ("chunked_prefill_tokens", -1, "0.4.2", ["--chunked-prefill-size", "-1"]),
    ],
)
def test_an_sglang_knob_is_written_as_its_version_takes_it(
    knob: str, value: object, version: str, written: list[str]
) -> None:
    assert words(sglang(**{knob: value}), version) == written


def test_speculation_is_flags_of_its_own_or_one_json_by_version() -> None:
    config = vllm(speculation_model="org/draft", speculation_tokens=4)
    assert words(config, "0.6.6") == [
        "--speculative-model", "org/draft", "--num-speculative-tokens", "4",
    ]  # fmt: skip
    assert words(config, "0.33.0") == [
        "--speculative-config", '{"model": "org/draft", "num_speculative_tokens": 4}',
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["--trust-remote-code", "two words", ""])
def test_a_value_that_could_pass_for_a_flag_is_refused(word: str) -> None:
    with pytest.raises(ValidationError):
        VllmConfig(model=word)


@pytest.mark.parametrize("secret", [("--api-key", "s"), ("--api-key=s",)])
def test_a_secret_on_the_command_line_is_refused(secret: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError, match="give it by the environment"):
        vllm(extra_arguments=secret)


def test_a_knob_of_the_other_engine_is_refused() -> None:
    with pytest.raises(ValidationError):
        vllm(kv_tokens=9)
    assert sglang(kv_tokens=9).knobs()["kv_tokens"] == 9


def test_gpus_are_those_of_all_ranks() -> None:
    assert vllm(tensor_parallel=2, pipeline_parallel=2, data_parallel=2).gpus == 8
    assert vllm().gpus == 1
    assert sglang(tensor_parallel=8, data_parallel=8, dp_attention=True).gpus == 8
    assert sglang(tensor_parallel=4, data_parallel=2).gpus == 8


# Problems


def test_a_flag_that_a_version_lacks_is_refused_by_name() -> None:
    with pytest.raises(Rejected, match=r"vllm 0\.20\.2 has no flag for swap_gib") as refused:
        command(vllm(swap_gib=4), "0.20.2")
    assert refused.value.hint == "change swap_gib"
    (problem,) = problems(vllm(swap_gib=4), None)
    assert "vllm today has no flag" in problem.reason


def test_a_value_that_a_version_does_not_take_is_refused() -> None:
    assert problems(vllm(kv_cache_dtype="nvfp4"), "0.20.2") == ()
    (problem,) = problems(vllm(kv_cache_dtype="nvfp4"), "0.10.2")
    assert problem.reason.startswith("kv_cache_dtype nvfp4 is none of auto, fp8")
    assert problems(vllm(kv_block_tokens=64), "0.5.5")[0].knobs == ("kv_block_tokens",)


@pytest.mark.parametrize("extra", [("--max-num-seqs=4",), ("--no-enable-prefix-caching",)])
def test_an_extra_argument_that_has_a_knob_is_refused(extra: tuple[str, ...]) -> None:
    found = problems(vllm(extra_arguments=extra), "0.10.2")
    assert found
    assert "set that instead" in found[0].reason


REFUSED: list[tuple[EngineConfig, str, str | None]] = [
    (vllm(max_num_batched_tokens=10, max_num_seqs=20), "0.33.0", None),
    (vllm(max_num_batched_tokens=10, max_model_len=20, chunked_prefill=False), "0.10.2", None),
    (vllm(speculation_tokens=3), "0.10.2", None),
    (vllm(speculation_model="d", chunked_prefill=True), "0.5.5", "0.8.5"),
    (vllm(speculation_method="draft_model", speculation_model="d"), "0.14.1", "0.20.2"),
    (vllm(async_scheduling=True, pipeline_parallel=2), "0.14.1", "0.20.2"),
    (vllm(async_scheduling=True, speculation_method="eagle"), "0.10.2", "0.14.1"),
    (vllm(async_scheduling=True, speculation_method="ngram"), "0.20.2", "0.33.0"),
    (sglang(chunked_prefill_tokens=100, kv_block_tokens=64), "0.5.10", None),
    (sglang(hierarchical_cache=True, prefix_caching=False), "0.5.10", "0.4.6"),
    (sglang(pipeline_parallel=2, speculation_method="EAGLE"), "0.5.10", "0.5.23"),
    (sglang(pipeline_parallel=2, mixed_chunk=True), "0.5.1", "0.5.23"),
    (sglang(speculation_method="EAGLE", mixed_chunk=True), "0.5.1", "0.4.6"),
    (sglang(dp_attention=True, tensor_parallel=4, data_parallel=3), "0.5.10", None),
]


@pytest.mark.parametrize(("config", "version", "fine"), REFUSED)
def test_knobs_that_an_engine_refuses_together_are_found_before_it_starts(
    config: EngineConfig, version: str, fine: str | None
) -> None:
    (problem,) = problems(config, version)
    assert problem.severity is Severity.REFUSED
    with pytest.raises(Rejected, match="would not start"):
        command(config, version)
    if fine is not None:
        assert problems(config, fine) == ()


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (vllm(kv_cache_bytes=1, gpu_memory_fraction=0.9), "0.33.0"),
        (sglang(pipeline_parallel=2, overlap_schedule=True), "0.5.23"),
        (sglang(speculation_method="EAGLE", mixed_chunk=True), "0.5.23"),
        (sglang(prefix_eviction="lru", prefix_caching=False), "0.5.23"),
    ],
)
def test_knobs_without_effect_are_told_and_do_not_keep_it_from_starting(
    config: EngineConfig, version: str
) -> None:
    (problem,) = problems(config, version)
    assert problem.severity is Severity.IGNORED
    assert command(config, version)


def test_knobs_that_go_together_have_no_problem() -> None:
    whole = vllm(
        max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=32_768, chunked_prefill=True,
        kv_block_tokens=16, pipeline_parallel=1, speculation_method="eagle",
        speculation_model="d", speculation_tokens=3,
    )  # fmt: skip
    assert problems(whole, "0.33.0") == ()
    assert problems(sglang(chunked_prefill_tokens=128, kv_block_tokens=64), "0.5.10") == ()


# Differences


def test_differences_are_told_in_words_with_flag_and_restart() -> None:
    before = vllm(max_num_seqs=128, prefix_caching=True)
    after = vllm(max_num_seqs=256, prefix_caching=False, kv_cache_dtype="fp8")
    found = differences(before, after, "0.10.2")
    assert [one.in_words for one in found] == [
        "max_num_seqs: 128 → 256 (--max-num-seqs), needs a restart",
        "kv_cache_dtype: the engine's default → fp8 (--kv-cache-dtype), needs a restart",
        "prefix_caching: on → off (--enable-prefix-caching), needs a restart",
    ]
    assert needs_restart(found)


def test_a_knob_that_the_engine_changes_itself_needs_no_restart() -> None:
    found = differences(sglang(micro_batch=2), sglang(micro_batch=4), "0.5.10")
    assert found[0].in_words.startswith("micro_batch: 2 → 4 (--pp-max-micro-batch-size), while it")
    assert not needs_restart(found)
    assert needs_restart(differences(sglang(micro_batch=2), sglang(micro_batch=4), "0.5.1"))


def test_extra_arguments_and_flags_of_other_versions_are_told_too() -> None:
    after = vllm(extra_arguments=("--seed", "7"), swap_gib=2.0)
    found = differences(vllm(), after, "0.33.0")
    assert [one.in_words for one in found] == [
        "extra_arguments: the engine's default → --seed 7, needs a restart",
        "swap_gib: the engine's default → 2.0, needs a restart",
    ]


def test_the_same_configuration_has_no_difference() -> None:
    assert differences(vllm(max_num_seqs=3), vllm(max_num_seqs=3), None) == ()
    assert not needs_restart(())


def test_another_engine_is_no_difference_of_knobs() -> None:
    with pytest.raises(Rejected, match="different engines"):
        differences(vllm(), sglang(), None)
