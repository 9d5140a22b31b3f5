"""Flags of engines as data: which version has which, and whether the engine's own help agrees."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import NotFound
from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from optiinfra.serving.flags import (
    Flag,
    FlagTable,
    Form,
    Span,
    disagreements,
    flag_table,
    flags_of_help,
)
from optiinfra.serving.versions import parse_version

VLLM, SGLANG = flag_table(Engine.VLLM), flag_table(Engine.SGLANG)
HELP = """usage: vllm serve [model_tag] [options]

options:
  --max-num-seqs MAX_NUM_SEQS
                        Maximum number of sequences; see --max-model-len.
  -q QUANTIZATION, --quantization QUANTIZATION
  --enable-prefix-caching, --no-enable-prefix-caching
                        Whether to enable prefix caching. (default: None)
  --scheduling-policy {fcfs,priority}  The scheduling policy to use
"""


def table(*flags: Flag) -> FlagTable:
    return FlagTable(
        engine=Engine.VLLM, since="0.1", until="0.9", command=("vllm",), flags=tuple(flags)
    )


@pytest.mark.parametrize(
    ("found", "config"), [(VLLM, VllmConfig), (SGLANG, SglangConfig)], ids=["vllm", "sglang"]
)
def test_every_knob_has_a_flag_and_every_flag_a_knob(
    found: FlagTable, config: type[EngineConfig]
) -> None:
    knobs = set(config.model_fields) - {"engine", "extra_arguments"}
    assert {knob for flag in found.flags for knob in flag.knobs} == knobs
    assert set(found.live) <= knobs


@pytest.mark.parametrize(
    ("knob", "version", "name"),
    [
        ("kv_cache_bytes", "0.8.5", None),
        ("kv_cache_bytes", "0.10.2", "--kv-cache-memory-bytes"),
        ("swap_gib", "0.14.1", "--swap-space"),
        ("swap_gib", "0.20.2", None),
        ("max_queued_requests", "0.20.2", None),
        ("max_queued_requests", "0.33.0", "--max-num-queued-reqs"),
        ("speculation_tokens", "0.6.6.post1", "--num-speculative-tokens"),
        ("speculation_tokens", "0.10.2", "--speculative-config"),
        ("speculation_method", "0.6.6", None),
        ("max_num_seqs", None, "--max-num-seqs"),
        ("swap_gib", "nightly", None),
    ],
)
def test_a_knob_has_the_flag_of_its_version(
    knob: str, version: str | None, name: str | None
) -> None:
    flag = VLLM.flag_of(knob, parse_version(version))
    assert (flag.name if flag is not None else None) == name


def test_versions_that_were_checked_are_told_from_others() -> None:
    assert VLLM.checked((0, 32, 0))
    assert not VLLM.checked((0, 34, 0))
    assert not VLLM.checked((0, 4, 2))
    assert not VLLM.checked(None)


def test_values_come_and_go_with_versions() -> None:
    flag = SGLANG.flag_of("kv_cache_dtype", (0, 5, 10))
    assert flag is not None
    assert "fp4_e2m1" in flag.choices_in((0, 5, 10))
    assert "fp4_e2m1" not in flag.choices_in((0, 5, 23))
    assert "nvfp4" in flag.choices_in(None)


def test_only_what_the_engine_itself_can_change_needs_no_restart() -> None:
    assert SGLANG.live_in("micro_batch", (0, 5, 10)) is not None
    assert SGLANG.live_in("micro_batch", (0, 5, 1)) is None
    assert SGLANG.live_in("max_num_seqs", (0, 5, 10)) is None
    assert not VLLM.live


def test_engines_that_are_only_read_have_no_knobs() -> None:
    with pytest.raises(NotFound, match="tgi is only read"):
        flag_table(Engine.TGI)


def test_two_flags_for_one_knob_in_one_version_are_refused() -> None:
    early = Flag(name="--a", form=Form.VALUE, knob="x", until="0.5")
    late = Flag(name="--b", form=Form.VALUE, knob="x", since="0.5")
    assert table(early, late).flag_of("x", (0, 5, 0)) == late
    with pytest.raises(ValidationError, match="set \\['x'\\] at once"):
        table(early, Flag(name="--b", form=Form.VALUE, knob="x", since="0.4"))
    with pytest.raises(ValidationError, match="at once"):
        table(early, Flag(name="--b", form=Form.VALUE, knob="x"))


def test_flags_and_their_values_are_read_from_help() -> None:
    assert flags_of_help(HELP) == {
        "--max-num-seqs": (), "--quantization": (), "--enable-prefix-caching": (),
        "--no-enable-prefix-caching": (), "--scheduling-policy": ("fcfs", "priority"),
    }  # fmt: skip


def test_a_table_that_says_what_help_says_agrees() -> None:
    policy = {"fcfs": Span(), "priority": Span(), "old": Span(until="0.2")}
    agreeing = table(
        Flag(name="MODEL", form=Form.POSITION, knob="model"),
        Flag(name="--max-num-seqs", form=Form.VALUE, knob="a"),
        Flag(name="--enable-prefix-caching", form=Form.ON_OFF, knob="b"),
        Flag(name="--scheduling-policy", form=Form.VALUE, knob="c", choices=policy),
        Flag(name="--gone", form=Form.VALUE, knob="d", until="0.2"),
    )
    assert disagreements(agreeing, "0.5", HELP) == ()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (Flag(name="--max-seqs", form=Form.VALUE, knob="a"), "--max-seqs (a) is no flag"),
        (Flag(name="--max-num-seqs", form=Form.ON_OFF, knob="a"), "--no-max-num-seqs is no flag"),
        (
            Flag(name="--scheduling-policy", form=Form.VALUE, knob="a"),
            "--scheduling-policy: the table lacks ['fcfs', 'priority']",
        ),
        (
            Flag(
                name="--scheduling-policy", form=Form.VALUE, knob="a",
                choices={"fcfs": Span(), "lifo": Span()},
            ),
            "lacks ['priority'] and has ['lifo'] too",
        ),
    ],
)  # fmt: skip
def test_what_help_says_otherwise_is_told(flag: Flag, said: str) -> None:
    (told,) = disagreements(table(flag), "0.5", HELP)
    assert said in told
