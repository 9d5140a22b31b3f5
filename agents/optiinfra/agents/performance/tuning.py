"""Which knobs of an engine a tuning turns, from what it runs with; pure."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import BatchTuning, KvCacheTuning
from optiinfra.serving.engines import EngineConfig

Tuning = BatchTuning | KvCacheTuning


def tuned(now: EngineConfig, tuning: Tuning) -> EngineConfig:
    """`now` with the knobs of `tuning`; what the tuning leaves out stays.

    Raises `Rejected` when the engine has no such knob, for a bad value, and when nothing changes.
    """
    turned = {name: value for name, value in _turned(tuning).items() if value is not None}
    for name in turned:
        if name not in type(now).model_fields:
            raise Rejected(
                f"{now.engine.value} has no knob {name}", hint="propose a knob that it has"
            )
    try:
        then = type(now).model_validate({**now.model_dump(), **turned})
    except ValidationError as error:
        first = error.errors()[0]
        raise Rejected(f"{first['loc'][0]}: {first['msg']}", hint="propose another value") from None
    if then == now:
        raise Rejected("the engine runs with that already", hint="propose another value")
    return then


def _turned(tuning: Tuning) -> dict[str, Any]:
    """The engine's names of the knobs."""
    if isinstance(tuning, BatchTuning):
        return {
            "max_num_seqs": tuning.max_num_seqs,
            "max_num_batched_tokens": tuning.max_num_batched_tokens,
            "chunked_prefill": tuning.chunked_prefill,
        }
    return {
        "gpu_memory_fraction": tuning.gpu_memory_fraction,
        "kv_cache_dtype": tuning.dtype,
        "kv_block_tokens": tuning.block_tokens,
        "prefix_caching": tuning.prefix_caching,
    }
