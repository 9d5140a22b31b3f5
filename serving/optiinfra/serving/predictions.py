"""What a replica would do with other knobs, precision or parallelism, before anybody tries it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.money import Interval
from optiinfra.schemas.telemetry import Unknown, UnknownReason
from optiinfra.serving.cards import (
    DecodeCost,
    PerfCard,
    PrefillCost,
    Provenance,
    card_names,
    load_card,
)
from optiinfra.serving.engines import EngineConfig, VllmConfig
from optiinfra.serving.roofline import GPUS, MEMORY_UTILISATION, MODELS
from optiinfra.serving.scheduler import Scheduler, SchedulerConfig
from optiinfra.serving.simulation import Arrival, percentile, simulate

PRECISIONS = ("fp16", "fp8", "int8")
"""No ladder: each has its own card or none, and the lower one may be the slower one."""
TENSOR_PARALLEL = (1, 2, 4, 8)
_MOST_OVER_PCIE = 2
_ONE_BYTE = ("fp8", "fp8_e4m3", "fp8_e5m2")

QUALITY = "whether the answers stay as good is not predicted: the quality gate decides"
KERNELS = (
    "its card is a datasheet's, which knows nothing of the engine's kernels for this precision"
)


class Prediction(Value):
    """One replica over one load; bounds are those of a card faster and slower by its error band.

    An error of the card is in all predictions from it: which of two configurations is faster is
    surer than either figure.
    """

    ttft_p95_s: Interval
    tpot_p95_s: Interval
    tokens_per_s: Interval
    """Output tokens, from the first arrival to the last answer."""
    kv_usage_peak: Interval

    def meets(self, limits: tuple[float, float]) -> bool:
        """Whether the central p95 (TTFT, TPOT) is inside `limits`, s."""
        return self.ttft_p95_s.mid <= limits[0] and self.tpot_p95_s.mid <= limits[1]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One alternative: on how many GPUs, what is predicted of it, and what nobody predicts."""

    name: str
    gpus: int
    predicted: Prediction | Unknown
    caveat: str = ""
    config: EngineConfig | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """What runs now: its card, the configuration, and how the scheduler's model stands for it."""

    card: PerfCard
    now: EngineConfig
    scheduler: SchedulerConfig


def predict(
    card: PerfCard,
    config: SchedulerConfig,
    arrivals: Sequence[Arrival],
    *,
    kv_read: tuple[float, float] = (1.0, 1.0),
) -> Prediction:
    """Simulated with the card as it is, and with all its times at both ends of the error band.

    `kv_read` are the most and the least that a step reads of each KV token, 1 being the card's: a
    cache of smaller values holds more for certain, and is read faster only by good kernels.
    Raises `Rejected` for no arrivals and for requests that can never fit.
    """
    if not arrivals:
        raise Rejected("nothing is predicted without arrivals", hint="replay some traffic")
    wide, most, least = 1 + card.error_band, *kv_read
    runs = [
        _run(_paced(card, factor, read), config, arrivals)
        for factor, read in ((1.0, most), (wide, most), (1 / wide, least))
    ]
    ttft, tpot, rate, kv_usage = (_interval(values) for values in zip(*runs, strict=True))
    return Prediction(
        ttft_p95_s=ttft, tpot_p95_s=tpot, tokens_per_s=rate, kv_usage_peak=kv_usage
    )  # fmt: skip


def candidates(
    replica: Replica,
    configs: Iterable[EngineConfig],
    arrivals: Sequence[Arrival],
    limits: tuple[float, float],
) -> tuple[Candidate, ...]:
    """Other batch and KV knobs on the same hardware; first what meets `limits`, then the fastest.

    What the model does not stand for is unknown and comes last.
    """
    return _sorted((_with_knobs(replica, config, arrivals) for config in configs), limits)


def other_cards(
    replica: Replica, arrivals: Sequence[Arrival], limits: tuple[float, float]
) -> tuple[Candidate, ...]:
    """Other precisions and tensor parallelism of the same model on the same GPU type.

    Sorted as `candidates`, by tokens/s a GPU. Only shipped cards predict: there is no scaling of
    one precision or of one GPU to another.
    """
    here = replica.card
    wanted = [(one, here.tp) for one in PRECISIONS if one != here.precision]
    wanted += [(here.precision, tp) for tp in TENSOR_PARALLEL if tp != here.tp]
    return _sorted((_on_card(replica, one, tp, arrivals) for one, tp in wanted), limits)


def modelled(replica: Replica, then: EngineConfig) -> SchedulerConfig | Unknown:
    """The scheduler's model of `then`; unknown where it models something else."""
    if not isinstance(then, VllmConfig):
        return _unknown(f"the scheduler of {then.engine.value} is not modelled, vLLM's is")
    if then.chunked_prefill is False:
        return _unknown("prefill that is not chunked is not modelled")
    kv_tokens = _kv_tokens(replica, then)
    if isinstance(kv_tokens, Unknown):
        return kv_tokens
    changes = {
        "max_num_seqs": then.max_num_seqs,
        "max_num_batched_tokens": then.max_num_batched_tokens,
        "block_size": then.kv_block_tokens,
        "max_model_len": then.max_model_len,
        "enable_prefix_caching": then.prefix_caching,
        "kv_tokens": kv_tokens,
    }
    known = {name: value for name, value in changes.items() if value is not None}
    try:
        return SchedulerConfig.model_validate({**replica.scheduler.model_dump(), **known})
    except ValidationError as error:
        return _unknown(error.errors()[0]["msg"])


def _kv_tokens(replica: Replica, then: VllmConfig) -> int | Unknown:
    """KV capacity with the memory and the type of `then`, from what it is now."""
    card, now = replica.card, replica.now
    more = _fraction(then) - _fraction(now)
    if more and card.gpu not in GPUS:
        return _unknown(f"the memory of {card.gpu} is not in the tables")
    bytes_now, bytes_then = (_kv_value_bytes(card, c.kv_cache_dtype) for c in (now, then))
    if bytes_now is None or bytes_then is None:
        return _unknown(f"how much a KV token of {card.model} takes then is not in the tables")
    tokens = float(replica.scheduler.kv_tokens or card.kv_tokens)
    if more:
        room = more * GPUS[card.gpu].memory_gib * 2**30 * card.gpus
        tokens += room / (card.kv_bytes_per_token * bytes_now)
    return max(1, int(tokens * bytes_now / bytes_then))


def _fraction(config: EngineConfig) -> float:
    return config.gpu_memory_fraction or MEMORY_UTILISATION


def _kv_value_bytes(card: PerfCard, dtype: str | None) -> float | None:
    """Bytes of a KV value, the card's being 1; None for types that are not in the tables."""
    if dtype in (None, "auto"):
        return 1.0
    if dtype not in _ONE_BYTE or card.model not in MODELS:
        return None
    return MODELS[card.model].kv_bytes_per_token(1.0) / card.kv_bytes_per_token


def _with_knobs(replica: Replica, then: EngineConfig, arrivals: Sequence[Arrival]) -> Candidate:
    knobs, before = then.knobs(), replica.now.knobs()
    name = ", ".join(f"{k} {v}" for k, v in knobs.items() if before.get(k) != v) or "as it is"
    least = _kv_value_bytes(replica.card, then.kv_cache_dtype) or 1.0
    is_other = then.kv_cache_dtype != replica.now.kv_cache_dtype
    predicted = _predicted(replica.card, modelled(replica, then), arrivals, (1.0, least))
    return Candidate(name, replica.card.gpus, predicted, QUALITY if is_other else "", then)


def _on_card(replica: Replica, precision: str, tp: int, arrivals: Sequence[Arrival]) -> Candidate:
    here = replica.card
    name = here.model_copy(update={"precision": precision, "tp": tp}).name
    caveats, gpus = [QUALITY] if precision != here.precision else [], tp * here.pp
    if why := _why_not(here, precision, tp):
        return Candidate(name, gpus, _unknown(why), "; ".join(caveats))
    there = load_card(name)
    if caveats and there.provenance is Provenance.DATASHEET:
        caveats.append(KERNELS)
    scheduler = replica.scheduler.model_copy(update={"kv_tokens": None})
    predicted = _predicted(there, scheduler, arrivals)
    return Candidate(name, gpus, predicted, "; ".join(caveats))


def _why_not(here: PerfCard, precision: str, tp: int) -> str:
    """Why nothing is predicted of it; empty where a card is shipped."""
    spec = GPUS.get(here.gpu)
    if spec is not None and precision not in spec.dense_tflops:
        return f"{here.gpu} has no {precision} tensor cores"
    if spec is not None and not spec.nvlink and tp > _MOST_OVER_PCIE:
        return f"tensor parallelism {tp} over PCIe is slower, not faster"
    if f"{here.gpu}-{here.model}-{precision}-tp{tp}" not in card_names():
        return "no perf card is shipped for it, and none is made up from another one"
    return ""


def _predicted(
    card: PerfCard,
    config: SchedulerConfig | Unknown,
    arrivals: Sequence[Arrival],
    kv_read: tuple[float, float] = (1.0, 1.0),
) -> Prediction | Unknown:
    if isinstance(config, Unknown):
        return config
    try:
        return predict(card, config, arrivals, kv_read=kv_read)
    except Rejected as error:
        return _unknown(str(error))


def _sorted(found: Iterable[Candidate], limits: tuple[float, float]) -> tuple[Candidate, ...]:
    def order(one: Candidate) -> tuple[bool, bool, float]:
        if isinstance(one.predicted, Unknown):
            return True, True, 0.0
        rate = one.predicted.tokens_per_s.mid / one.gpus
        return False, not one.predicted.meets(limits), -rate

    return tuple(sorted(found, key=order))


def _run(
    card: PerfCard, config: SchedulerConfig, arrivals: Sequence[Arrival]
) -> tuple[float, float, float, float]:
    """TTFT p95, TPOT p95, output tokens/s and the largest part of the KV cache in use."""
    used = [0.0]

    def watch(scheduler: Scheduler) -> None:
        used[0] = max(used[0], scheduler.pool.usage_fraction)

    done = simulate(card, arrivals, config, watch)
    span_s = max(one.finished_s for one in done) - arrivals[0].at_s
    return (
        percentile([one.ttft_s for one in done], 0.95),
        percentile([one.tpot_s for one in done if one.tpot_s is not None] or [0.0], 0.95),
        sum(one.output_tokens for one in arrivals) / span_s,
        used[0],
    )


def _paced(card: PerfCard, slower: float, kv_read: float) -> PerfCard:
    """The card with all its times `slower`, reading `kv_read` of each KV token."""
    decode, prefill = card.decode, card.prefill
    return card.model_copy(
        update={
            "decode": DecodeCost(
                alpha_ms=decode.alpha_ms * slower,
                beta_ms_per_seq=decode.beta_ms_per_seq * slower,
                gamma_ms_per_kv_token=decode.gamma_ms_per_kv_token * slower * kv_read,
            ),
            "prefill": PrefillCost(
                p0_ms=prefill.p0_ms * slower,
                p1_ms_per_token=prefill.p1_ms_per_token * slower,
                p2_ms_per_token2=prefill.p2_ms_per_token2 * slower,
            ),
            "host_overhead_ms_per_step": card.host_overhead_ms_per_step * slower,
            "host_overhead_ms_per_request": card.host_overhead_ms_per_request * slower,
        }
    )


def _interval(values: tuple[float, ...]) -> Interval:
    return Interval(low=min(values), mid=values[0], high=max(values))


def _unknown(detail: str) -> Unknown:
    return Unknown(reason=UnknownReason.NOT_SUPPORTED, detail=detail)
