"""Perf cards for hardware nobody measured: a calibrated roofline on datasheet figures."""

from __future__ import annotations

from pydantic import Field

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import NotFound, Rejected
from optiinfra.serving.cards import DecodeCost, PerfCard, PrefillCost, Provenance

DATASHEET_ERROR_BAND = 0.30
MEMORY_UTILISATION = 0.92
"""vLLM's default `gpu_memory_utilization`."""
RESERVED_GIB = 2.0
"""Activations, CUDA graphs and context that vLLM keeps out of the KV cache, a GPU."""
ALLREDUCE_MS = 0.008
"""One small all-reduce over NVLink; two a layer. From the 70B TP4 card: (15.19 − 13.9) / 160."""
PCIE_ALLREDUCE_MS = 0.03
PREFILL_MFU = 0.45
"""Share of the dense peak that prefill reaches.

Calibrated on vLLM serving 70B fp8 TP2 on H100 (`aiconfigurator-core` 0.12.0 silicon sample,
Apache-2.0): closed loops of 4 and 8 with 1,024 and 8,192 in, 1,024 out, have a measured TTFT of
121, 150, 738 and 963 ms; the simulation gives 110, 141, 794 and 952 ms."""
KAPPA = 0.25
"""What of a decode step is left when a prefill already streams the weights.

KV reads and the extra rows: (β·64 + γ·64·600) / t_d = 0.27 on the 8B H100 card."""
HOST_MS_PER_STEP = 0.3
"""Scheduling and sampling that the device waits for; with it the closed loops above have a TPOT of
17.8, 18.4, 20.4 and 24.1 ms against 17.4, 18.2, 20.6 and 25.0 measured."""
HOST_MS_PER_REQUEST = 1.0
"""Tokenising and admitting one request."""
HYBRID_ERROR_BAND = 0.15


class GpuSpec(Value):
    """Datasheet figures of one GPU, and the efficiencies of its memory technology.

    `row_efficiency` may pass 1: a decode row is partly hidden behind the read of the weights.

    `memory_gib` is what the driver reports as total; `dense_tflops` the tensor-core peak without
    sparsity, by precision; bandwidth in GB/s (1e9 bytes).
    """

    memory_gib: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    dense_tflops: dict[str, float]
    nvlink: bool
    weight_efficiency: float = Field(gt=0, le=1)
    kv_efficiency: float = Field(gt=0, le=1)
    row_efficiency: float = Field(gt=0)


class ModelSpec(Value):
    """Shape of one dense transformer: all that a roofline needs."""

    parameters: float = Field(gt=0)
    layers: int = Field(gt=0)
    attention_width: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)

    def kv_bytes_per_token(self, bytes_per_value: float) -> int:
        """Keys and values of one token over all layers, in bytes."""
        return int(2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value)


def _hbm(memory_gib: float, bandwidth: float, tflops: dict[str, float], *, nvlink: bool) -> GpuSpec:
    """HBM parts: efficiencies are means over the H100 and A100 silicon cards."""
    return GpuSpec(
        memory_gib=memory_gib, bandwidth_gb_s=bandwidth, dense_tflops=tflops, nvlink=nvlink,
        weight_efficiency=0.755, kv_efficiency=0.87, row_efficiency=1.15,
    )  # fmt: skip


def _gddr(memory_gib: float, bandwidth: float, tflops: dict[str, float]) -> GpuSpec:
    """GDDR parts: efficiencies read off the 8B L40S silicon card; no NVLink."""
    return GpuSpec(
        memory_gib=memory_gib, bandwidth_gb_s=bandwidth, dense_tflops=tflops, nvlink=False,
        weight_efficiency=0.83, kv_efficiency=0.79, row_efficiency=1.31,
    )  # fmt: skip


GPUS: dict[str, GpuSpec] = {
    "t4": _gddr(15.0, 320, {"fp16": 65, "int8": 130}),
    "v100-16gb": _hbm(15.8, 900, {"fp16": 125}, nvlink=True),
    "v100-32gb": _hbm(31.7, 900, {"fp16": 125}, nvlink=True),
    "a10g": _gddr(22.5, 600, {"fp16": 70, "int8": 140}),
    "l4": _gddr(22.5, 300, {"fp16": 121, "fp8": 242, "int8": 242}),
    "l40s": _gddr(45.0, 864, {"fp16": 362, "fp8": 733, "int8": 733}),
    "a100-40gb": _hbm(40.0, 1555, {"fp16": 312, "int8": 624}, nvlink=True),
    "a100": _hbm(80.0, 2039, {"fp16": 312, "int8": 624}, nvlink=True),
    "h100": _hbm(79.6, 3350, {"fp16": 989, "fp8": 1979, "int8": 1979}, nvlink=True),
    "h200": _hbm(140.4, 4800, {"fp16": 989, "fp8": 1979, "int8": 1979}, nvlink=True),
    "b200": _hbm(179.0, 7700, {"fp16": 2250, "fp8": 4500, "int8": 4500}, nvlink=True),
}
"""NVIDIA datasheets (dense peaks); T4/A10G/L4/L40S are GDDR6, the rest HBM2 to HBM3e."""

MODELS: dict[str, ModelSpec] = {
    "1b": ModelSpec(parameters=1.24e9, layers=16, attention_width=2048, kv_heads=8, head_dim=64),
    "3b": ModelSpec(parameters=3.21e9, layers=28, attention_width=3072, kv_heads=8, head_dim=128),
    "8b": ModelSpec(parameters=8.03e9, layers=32, attention_width=4096, kv_heads=8, head_dim=128),
    "32b": ModelSpec(parameters=32.8e9, layers=64, attention_width=8192, kv_heads=8, head_dim=128),
    "70b": ModelSpec(parameters=70.6e9, layers=80, attention_width=8192, kv_heads=8, head_dim=128),
}
"""Llama 3.2 1B and 3B, Llama 3.1 8B and 70B, Qwen3 32B, from their published `config.json`."""

BYTES_PER_WEIGHT: dict[str, float] = {"fp16": 2.0, "fp8": 1.0, "int8": 1.0}


def datasheet_card(
    gpu: str, model: str, precision: str, tp: int = 1, *, kv_bytes_per_value: float = 2.0
) -> PerfCard:
    """A card from datasheet figures: α and γ by bandwidth, β and prefill by FLOP/s.

    Raises `NotFound` for hardware or models outside the tables, and `Rejected` where the GPU has no
    such precision, the weights do not fit, or tensor parallelism would cross PCIe beyond 2 GPUs.
    """
    spec, shape = _look_up(gpu, model)
    tflops = _peak(gpu, spec, precision, tp)
    weights_bytes = shape.parameters * BYTES_PER_WEIGHT[precision]
    kv_bytes = shape.kv_bytes_per_token(kv_bytes_per_value)
    return PerfCard(
        gpu=gpu,
        model=model,
        precision=precision,
        tp=tp,
        weights_gb=round(weights_bytes / 1e9, 3),
        kv_bytes_per_token=kv_bytes,
        kv_tokens=kv_capacity_tokens(spec, weights_bytes, kv_bytes, tp),
        decode=_decode(spec, shape, (weights_bytes, kv_bytes, tflops), tp),
        prefill=prefill_roofline(spec, shape, weights_bytes, tflops, tp),
        kappa=KAPPA,
        host_overhead_ms_per_step=HOST_MS_PER_STEP,
        host_overhead_ms_per_request=HOST_MS_PER_REQUEST,
        provenance=Provenance.DATASHEET,
        error_band=DATASHEET_ERROR_BAND,
        source=_source(spec, tflops),
    )


def hybrid_card(datasheet: PerfCard, decode: DecodeCost) -> PerfCard:
    """The same card with a decode step fitted to silicon; prefill stays the calibrated roofline."""
    return datasheet.model_copy(
        update={
            "decode": decode,
            "provenance": Provenance.HYBRID,
            "error_band": HYBRID_ERROR_BAND,
            "source": (
                "decode: least squares on step times of aiconfigurator-core 0.12 silicon tables"
                f" (Apache-2.0), 1.4-4.2 % off; KV capacity and prefill by {datasheet.source}"
            ),
        }
    )


def _look_up(gpu: str, model: str) -> tuple[GpuSpec, ModelSpec]:
    if gpu not in GPUS:
        raise NotFound(f"no datasheet for GPU {gpu!r}", hint=f"choose one of {', '.join(GPUS)}")
    if model not in MODELS:
        raise NotFound(f"no shape for model {model!r}", hint=f"choose one of {', '.join(MODELS)}")
    return GPUS[gpu], MODELS[model]


def _peak(gpu: str, spec: GpuSpec, precision: str, tp: int) -> float:
    if precision not in spec.dense_tflops:
        raise Rejected(
            f"{gpu} has no {precision} tensor cores",
            hint=f"choose one of {', '.join(spec.dense_tflops)}",
        )
    if tp > 2 and not spec.nvlink:
        raise Rejected(f"tensor parallelism {tp} over PCIe on {gpu}", hint="use at most 2")
    return spec.dense_tflops[precision]


def kv_capacity_tokens(spec: GpuSpec, weights_bytes: float, kv_bytes: int, tp: int) -> int:
    """KV tokens that fit beside the weights on `tp` GPUs; raises `Rejected` when none do."""
    usable = (spec.memory_gib * MEMORY_UTILISATION - RESERVED_GIB) * 2**30 * tp
    tokens = int((usable - weights_bytes) / kv_bytes)
    if tokens < 1:
        raise Rejected(
            f"{weights_bytes / 1e9:.1f} GB of weights do not fit on {tp} × {spec.memory_gib} GiB",
            hint="use more GPUs or a lower precision",
        )
    return tokens


def _decode(
    spec: GpuSpec, shape: ModelSpec, sizes: tuple[float, int, float], tp: int
) -> DecodeCost:
    weights_bytes, kv_bytes, tflops = sizes
    bytes_per_ms = spec.bandwidth_gb_s * 1e6 * tp
    flops_per_ms = tflops * 1e9 * tp
    allreduce_ms = (ALLREDUCE_MS if spec.nvlink else PCIE_ALLREDUCE_MS) * 2 * shape.layers
    alpha = weights_bytes / (bytes_per_ms * spec.weight_efficiency)
    return DecodeCost(
        alpha_ms=round(alpha + (allreduce_ms if tp > 1 else 0.0), 3),
        beta_ms_per_seq=round(2 * shape.parameters / (flops_per_ms * spec.row_efficiency), 6),
        gamma_ms_per_kv_token=round(kv_bytes / (bytes_per_ms * spec.kv_efficiency), 9),
    )


def prefill_roofline(
    spec: GpuSpec, shape: ModelSpec, weights_bytes: float, tflops: float, tp: int
) -> PrefillCost:
    """`p1 = 2·P / F`, `p2 = 2·L·d / F_fp16` (causal attention), `p0` half the time to read weights.

    F is the dense peak × MFU × TP. A short prompt is bound by the weights and a long one by FLOP/s;
    half of the weight time splits the error of a sum where the truth is a maximum.
    """
    flops_per_ms = tflops * 1e9 * PREFILL_MFU * tp
    attention_per_ms = spec.dense_tflops["fp16"] * 1e9 * PREFILL_MFU * tp
    weight_ms = weights_bytes / (spec.bandwidth_gb_s * 1e6 * spec.weight_efficiency * tp)
    return PrefillCost(
        p0_ms=round(weight_ms / 2, 3),
        p1_ms_per_token=round(2 * shape.parameters / flops_per_ms, 6),
        p2_ms_per_token2=round(2 * shape.layers * shape.attention_width / attention_per_ms, 10),
    )


def _source(spec: GpuSpec, tflops: float) -> str:
    return (
        f"roofline: alpha = weights/(BW*{spec.weight_efficiency}) + all-reduce,"
        f" gamma = kv_bytes/(BW*{spec.kv_efficiency}),"
        f" beta = 2P/(F*{spec.row_efficiency}), p1 = 2P/(F*{PREFILL_MFU}),"
        f" p2 = 2Ld/(F_fp16*{PREFILL_MFU}), p0 = weight time/2;"
        f" BW {spec.bandwidth_gb_s:g} GB/s, F {tflops:g} dense TFLOP/s, {spec.memory_gib:g} GiB;"
        " efficiencies read off the silicon card of the same memory technology"
    )
