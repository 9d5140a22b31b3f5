"""Perf cards: what one GPU × model × precision × parallelism × engine can do, in a few numbers."""

from __future__ import annotations

import json
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import NotFound

_CARDS = files("optiinfra.serving") / "data" / "perf_cards"


class Provenance(StrEnum):
    """Where the numbers of a card come from, best first."""

    SILICON = "silicon"
    ONLINE = "online"
    HYBRID = "hybrid"
    DATASHEET = "datasheet"


class DecodeCost(Value):
    """`t_d = alpha + beta · sequences + gamma · Σ KV tokens`, in ms a step."""

    alpha_ms: float = Field(gt=0)
    beta_ms_per_seq: float = Field(ge=0)
    gamma_ms_per_kv_token: float = Field(ge=0)


class PrefillCost(Value):
    """`t_p = p0 + p1 · n + p2 · n²`, in ms for a prompt of n tokens."""

    p0_ms: float = Field(ge=0)
    p1_ms_per_token: float = Field(gt=0)
    p2_ms_per_token2: float = Field(ge=0)


class PerfCard(Value):
    """The performance model of one engine configuration on one kind of hardware.

    `kappa` is the part of the shorter phase that a mixed step adds to the longer one.
    `host_overhead_ms_per_step` is the engine's own work in each step, and
    `host_overhead_ms_per_request` is paid once, in the step that admits the request.
    `error_band` is relative: 0.1 says that a time is right within ±10 %.
    """

    gpu: str
    model: str
    precision: str
    tp: int = Field(ge=1)
    pp: int = Field(default=1, ge=1)
    engine: str = "vllm"
    weights_gb: float = Field(gt=0)
    kv_bytes_per_token: int = Field(gt=0)
    kv_tokens: int = Field(gt=0)
    decode: DecodeCost
    prefill: PrefillCost
    kappa: float = Field(ge=0, le=1)
    host_overhead_ms_per_step: float = Field(ge=0)
    host_overhead_ms_per_request: float = Field(ge=0)
    provenance: Provenance
    error_band: float = Field(gt=0, lt=1)
    source: str = Field(min_length=1)

    @property
    def name(self) -> str:
        """`gpu-model-precision-tpN`, the name that the shipped file carries."""
        return f"{self.gpu}-{self.model}-{self.precision}-tp{self.tp}"

    @property
    def gpus(self) -> int:
        """GPUs that one replica occupies."""
        return self.tp * self.pp


@lru_cache(maxsize=1)
def card_names() -> tuple[str, ...]:
    """Names of the shipped cards, sorted."""
    return tuple(
        sorted(f.name.removesuffix(".json") for f in _CARDS.iterdir() if f.name.endswith(".json"))
    )


@lru_cache(maxsize=64)
def load_card(name: str) -> PerfCard:
    """The shipped card called `name`, such as `h100-8b-fp16-tp1`.

    Raises `NotFound`, naming the cards that there are.
    """
    if name not in card_names():
        raise NotFound(
            f"no perf card is called {name!r}", hint=f"choose one of {', '.join(card_names())}"
        )
    return PerfCard.model_validate(json.loads((_CARDS / f"{name}.json").read_text("utf-8")))
