"""Which knobs of an engine do not go together, and in which versions.

Each rule is what the engine's own sources check at the start, so that nobody has to find out by
starting it. What depends on the weights (heads that tensor parallelism must divide, experts) is
not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from optiinfra.serving.flags import Span
from optiinfra.serving.versions import Version

C = TypeVar("C", VllmConfig, SglangConfig)
_ALWAYS = Span()


class Severity(StrEnum):
    """What comes of a problem."""

    REFUSED = "refused"
    """The engine does not start."""
    IGNORED = "ignored"
    """It starts, and a knob has no effect."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Knobs that do not go together, or not with this version."""

    knobs: tuple[str, ...]
    severity: Severity
    reason: str


@dataclass(frozen=True, slots=True)
class _Rule(Generic[C]):
    knobs: tuple[str, ...]
    broken: Callable[[C], bool]
    reason: str
    span: Span = _ALWAYS
    severity: Severity = Severity.REFUSED


def conflicts(config: EngineConfig, version: Version | None) -> tuple[Problem, ...]:
    """The rules that `config` breaks in `version`; an unknown version is taken for the newest."""
    if isinstance(config, VllmConfig):
        return _broken(_VLLM, config, version)
    return _broken(_SGLANG, config, version)


def _broken(rules: Sequence[_Rule[C]], config: C, version: Version | None) -> tuple[Problem, ...]:
    return tuple(
        Problem(rule.knobs, rule.severity, rule.reason)
        for rule in rules
        if rule.span.covers(version) and rule.broken(config)
    )


def _is_below(small: int | None, large: int | None) -> bool:
    return small is not None and large is not None and small < large


def _is_many(size: int | None) -> bool:
    return size is not None and size > 1


_VLLM: tuple[_Rule[VllmConfig], ...] = (
    _Rule(
        ("max_num_batched_tokens", "max_num_seqs"),
        lambda c: _is_below(c.max_num_batched_tokens, c.max_num_seqs),
        "a step needs room for a token of each request: max_num_batched_tokens must be at least"
        " max_num_seqs",
    ),
    _Rule(
        ("max_num_batched_tokens", "max_model_len", "chunked_prefill"),
        lambda c: (
            c.chunked_prefill is False and _is_below(c.max_num_batched_tokens, c.max_model_len)
        ),
        "without chunked prefill the longest prompt must fit a step: max_num_batched_tokens must"
        " be at least max_model_len",
    ),
    _Rule(
        ("speculation_tokens",),
        lambda c: (
            c.speculation_tokens is not None
            and c.speculation_model is None
            and c.speculation_method is None
        ),
        "tokens are drafted by a model or a method: give speculation_model or speculation_method",
    ),
    _Rule(
        ("speculation_model", "chunked_prefill"),
        lambda c: c.speculation_model is not None and c.chunked_prefill is True,
        "speculative decoding and chunked prefill exclude each other in this version",
        Span(until="0.5.6"),
    ),
    _Rule(
        ("speculation_method",),
        lambda c: c.speculation_method == "draft_model",
        "this version does not draft with a model of its own: take ngram, eagle or mtp",
        Span(since="0.10.2", until="0.14.2"),
    ),
    _Rule(
        ("async_scheduling", "pipeline_parallel"),
        lambda c: c.async_scheduling is True and _is_many(c.pipeline_parallel),
        "this version does not schedule asynchronously over pipeline stages",
        Span(since="0.10.2", until="0.14.2"),
    ),
    _Rule(
        ("async_scheduling", "speculation_method", "speculation_model"),
        lambda c: (
            c.async_scheduling is True
            and (c.speculation_method is not None or c.speculation_model is not None)
        ),
        "this version does not schedule asynchronously with speculative decoding",
        Span(since="0.10.2", until="0.10.3"),
    ),
    _Rule(
        ("async_scheduling", "speculation_method"),
        lambda c: (
            c.async_scheduling is True
            and c.speculation_method in ("ngram", "suffix", "medusa", "mlp_speculator")
        ),
        "this version schedules asynchronously only with eagle or mtp drafts",
        Span(since="0.14.1", until="0.20.3"),
    ),
    _Rule(
        ("kv_cache_bytes", "gpu_memory_fraction"),
        lambda c: c.kv_cache_bytes is not None and c.gpu_memory_fraction is not None,
        "kv_cache_bytes sets the size of the KV cache; gpu_memory_fraction then has no effect",
        severity=Severity.IGNORED,
    ),
)

_SGLANG: tuple[_Rule[SglangConfig], ...] = (
    _Rule(
        ("chunked_prefill_tokens", "kv_block_tokens"),
        lambda c: (
            (c.chunked_prefill_tokens or 0) > 0
            and (c.chunked_prefill_tokens or 0) % (c.kv_block_tokens or 1) != 0
        ),
        "pieces of prompts are whole KV blocks: chunked_prefill_tokens must be a multiple of"
        " kv_block_tokens",
    ),
    _Rule(
        ("hierarchical_cache", "prefix_caching"),
        lambda c: c.hierarchical_cache is True and c.prefix_caching is False,
        "there is nothing to keep in the host's memory without prefix caching",
        Span(since="0.5.1"),
    ),
    _Rule(
        ("pipeline_parallel", "speculation_method"),
        lambda c: _is_many(c.pipeline_parallel) and c.speculation_method is not None,
        "this version does not draft over pipeline stages",
        Span(since="0.4.6", until="0.5.11"),
    ),
    _Rule(
        ("pipeline_parallel", "mixed_chunk"),
        lambda c: _is_many(c.pipeline_parallel) and c.mixed_chunk is True,
        "this version does not mix chunks over pipeline stages",
        Span(since="0.4.6", until="0.5.11"),
    ),
    _Rule(
        ("pipeline_parallel", "overlap_schedule"),
        lambda c: _is_many(c.pipeline_parallel) and c.overlap_schedule is True,
        "pipeline stages switch the overlapped schedule off",
        Span(since="0.4.6"),
        Severity.IGNORED,
    ),
    _Rule(
        ("speculation_method", "mixed_chunk"),
        lambda c: c.speculation_method is not None and c.mixed_chunk is True,
        "mixed chunks and speculative decoding exclude each other in this version",
        Span(since="0.5.1", until="0.5.2"),
    ),
    _Rule(
        ("speculation_method", "mixed_chunk"),
        lambda c: c.speculation_method is not None and c.mixed_chunk is True,
        "speculative decoding switches mixed chunks off",
        Span(since="0.5.10"),
        Severity.IGNORED,
    ),
    _Rule(
        ("dp_attention", "tensor_parallel", "data_parallel"),
        lambda c: c.dp_attention is True and (c.tensor_parallel or 1) % (c.data_parallel or 1) != 0,
        "ranks share the GPUs: tensor_parallel must be a multiple of data_parallel",
    ),
    _Rule(
        ("prefix_eviction", "prefix_caching"),
        lambda c: c.prefix_eviction is not None and c.prefix_caching is False,
        "there are no prefixes to let go without prefix caching",
        severity=Severity.IGNORED,
    ),
)
