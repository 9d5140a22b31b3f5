"""What an engine is started with, typed for each engine; a knob left out is the engine's default.

Knobs that mean the same in both engines have one name. Which flag a knob becomes in which version
stands in `flags`, what goes together in `engine_rules`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Engine

Word = Annotated[str, Field(pattern=r"^[^\s-]\S*$")]
"""One word that no command line could take for a flag."""
Count = Annotated[int, Field(ge=1)]
Gib = Annotated[float, Field(ge=0)]
_SECRET_FLAGS = ("--api-key", "--admin-api-key", "--hf-token")


class EngineSettings(Value):
    """The knobs that both engines have."""

    model: Word = Field(description="the weights: a name on a hub, or a folder")
    served_model_name: Word | None = Field(default=None, description="what requests ask for")
    host: Word = Field(default="0.0.0.0", description="where it listens")  # noqa: S104
    port: int = Field(default=8000, ge=1, le=65_535, description="where it listens")
    dtype: Word | None = Field(default=None, description="type of weights and activations")
    quantisation: Word | None = Field(default=None, description="how weights are quantised")
    max_model_len: Count | None = Field(default=None, description="longest prompt and answer")
    max_num_seqs: Count | None = Field(default=None, description="most requests in one batch")
    max_queued_requests: Count | None = Field(default=None, description="longest queue")
    scheduling_policy: Word | None = Field(default=None, description="who goes first")
    gpu_memory_fraction: float | None = Field(
        default=None, gt=0, le=1, description="part of the GPU's memory that it may take"
    )
    kv_cache_dtype: Word | None = Field(default=None, description="type of the KV cache")
    kv_block_tokens: Count | None = Field(default=None, description="tokens of a KV block")
    prefix_caching: bool | None = Field(default=None, description="keep the KV of shared prefixes")
    cpu_offload_gib: int | None = Field(
        default=None, ge=0, description="weights kept in the host's memory, GiB a GPU"
    )
    tensor_parallel: Count | None = Field(default=None, description="GPUs that share each layer")
    pipeline_parallel: Count | None = Field(default=None, description="GPUs in a row of layers")
    data_parallel: Count | None = Field(default=None, description="engines behind one address")
    enforce_eager: bool | None = Field(default=None, description="no CUDA graphs")
    speculation_method: Word | None = Field(default=None, description="who drafts tokens")
    speculation_model: Word | None = Field(default=None, description="the weights that draft")
    speculation_tokens: Count | None = Field(default=None, description="tokens drafted at once")
    extra_arguments: tuple[str, ...] = Field(
        default=(), description="flags that have no knob here, as they stand; not checked"
    )

    @field_validator("extra_arguments")
    @classmethod
    def _holds_no_secret(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        for argument in arguments:
            if argument.split("=")[0] in _SECRET_FLAGS:
                raise ValueError(
                    f"{argument.split('=')[0]} would show a secret in every list of processes;"
                    " give it by the environment"
                )
        return arguments

    def knobs(self) -> dict[str, Any]:
        """The knobs that are set, by name."""
        return {
            name: value
            for name in type(self).model_fields
            if name not in ("engine", "extra_arguments")
            and (value := getattr(self, name)) is not None
        }


class VllmConfig(EngineSettings):
    """`vllm serve`."""

    engine: Literal[Engine.VLLM] = Engine.VLLM
    max_num_batched_tokens: Count | None = Field(
        default=None, description="most tokens of one step, prompts and answers together"
    )
    chunked_prefill: bool | None = Field(
        default=None, description="cut long prompts to what a step has room for"
    )
    long_prefill_tokens: Count | None = Field(
        default=None, description="prompts that count as long when they are cut"
    )
    kv_cache_bytes: Count | None = Field(default=None, description="size of the KV cache, a GPU")
    kv_blocks: Count | None = Field(default=None, description="size of the KV cache in blocks")
    kv_offload_gib: Gib | None = Field(
        default=None, description="KV cache in the host's memory, GiB of all GPUs together"
    )
    swap_gib: Gib | None = Field(default=None, description="swapped KV in the host's memory, GiB")
    expert_parallel: bool | None = Field(
        default=None, description="spread experts over GPUs instead of cutting them"
    )
    async_scheduling: bool | None = Field(
        default=None, description="plan the next step while this one runs"
    )

    @property
    def gpus(self) -> int:
        """How many GPUs one server takes."""
        return _times(self.tensor_parallel, self.pipeline_parallel, self.data_parallel)


class SglangConfig(EngineSettings):
    """`sglang.launch_server`. Its metrics are on unless switched off: without them it is blind."""

    engine: Literal[Engine.SGLANG] = Engine.SGLANG
    metrics: bool = Field(default=True, description="expose metrics")
    max_prefill_tokens: Count | None = Field(
        default=None, description="most prompt tokens of one batch"
    )
    chunked_prefill_tokens: int | None = Field(
        default=None, ge=-1, description="longest piece of a prompt; -1 cuts none"
    )
    mixed_chunk: bool | None = Field(
        default=None, description="put pieces of prompts into batches that decode"
    )
    kv_tokens: Count | None = Field(default=None, description="size of the KV cache in tokens")
    prefix_eviction: Word | None = Field(default=None, description="which prefixes go first")
    hierarchical_cache: bool | None = Field(
        default=None, description="keep evicted prefixes in the host's memory"
    )
    conservativeness: float | None = Field(
        default=None, gt=0, description="how careful requests are taken in; 1 is plain"
    )
    overlap_schedule: bool | None = Field(
        default=None, description="plan the next step while this one runs"
    )
    dp_attention: bool | None = Field(
        default=None, description="data-parallel attention over the tensor-parallel GPUs"
    )
    expert_parallel: Count | None = Field(default=None, description="GPUs that share the experts")
    micro_batch: Count | None = Field(
        default=None, description="most requests of one pipeline stage at once"
    )
    speculation_steps: Count | None = Field(default=None, description="steps of the draft")
    speculation_topk: Count | None = Field(default=None, description="branches of a draft step")

    @property
    def gpus(self) -> int:
        """How many GPUs one server takes; with `dp_attention` the ranks share them."""
        data_parallel = 1 if self.dp_attention else self.data_parallel
        return _times(self.tensor_parallel, self.pipeline_parallel, data_parallel)


EngineConfig = VllmConfig | SglangConfig


def _times(*sizes: int | None) -> int:
    product = 1
    for size in sizes:
        product *= size or 1
    return product
