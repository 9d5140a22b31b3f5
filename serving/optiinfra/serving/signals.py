"""What a window of telemetry says of one replica, as the bottleneck finder reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from optiinfra.schemas.base import Value
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.serving.cards import PerfCard
from optiinfra.serving.histograms import NOTHING_OBSERVED
from optiinfra.serving.steps import decode_step_ms, prefill_ms
from optiinfra.serving.windows import Window, first_gap

NOT_READ = Unknown(reason=UnknownReason.MISSING, detail="not read")
NO_CARD = Unknown(reason=UnknownReason.NOT_CONFIGURED, detail="the deployment has no perf card")
_A_REQUEST = 1.0
"""Requests waiting from which a scrape has seen a queue."""
_STEP_TOKENS = 8192
"""Prompt tokens that share the fixed cost of a step at the card's limit: vLLM's default budget."""


class Signals(Value):
    """One replica over one window; whatever was not read is unknown.

    `running` and `kv_usage_fraction` are means over the scrapes that saw a queue, or over all where
    none did: what the engine did while requests had to wait is what held them. Rates are over the
    whole window; of `prompt_tokens_per_s` the part `prefix_hit_fraction` came from the cache.
    `prefill_seconds_per_s` adds up over requests: it bounds the time with a prefill running.
    `client_…` is the gateway's view of the same requests. `prefix_hit_reference` is what the same
    deployment reaches when its cache works: an earlier window, or the replicas beside this one.
    The last three come from a perf card: computed prompt tokens/s at the present length, the
    prefill of one such prompt, and a decode step at the present batch.
    """

    running: Reading = NOT_READ
    waiting: Reading = NOT_READ
    max_num_seqs: Reading = NOT_READ
    kv_usage_fraction: Reading = NOT_READ
    kv_capacity_tokens: Reading = NOT_READ
    prompt_length_tokens: Reading = NOT_READ
    requests_per_s: Reading = NOT_READ
    preemptions_per_s: Reading = NOT_READ
    prefill_seconds_per_s: Reading = NOT_READ
    prompt_tokens_per_s: Reading = NOT_READ
    generation_tokens_per_s: Reading = NOT_READ
    prefix_queries_per_s: Reading = NOT_READ
    prefix_hit_fraction: Reading = NOT_READ
    prefix_hit_reference: Reading = NOT_READ
    ttft_p95_s: Reading = NOT_READ
    ttft_mean_s: Reading = NOT_READ
    tpot_p95_s: Reading = NOT_READ
    client_ttft_p95_s: Reading = NOT_READ
    client_ttft_mean_s: Reading = NOT_READ
    gpu_busy_fraction: Reading = NOT_READ
    prefill_limit_tokens_per_s: Reading = NOT_READ
    prefill_alone_s: Reading = NOT_READ
    decode_step_s: Reading = NOT_READ


@dataclass(frozen=True, slots=True)
class Beside:
    """What the window of an engine's metrics does not hold: configuration, gateway, history, card.

    `time_scale` is how many times faster than the card's hardware the server runs.
    """

    max_num_seqs: Reading = NOT_READ
    client_ttft_p95_s: Reading = NOT_READ
    client_ttft_mean_s: Reading = NOT_READ
    prefix_hit_reference: Reading = NOT_READ
    card: PerfCard | None = None
    time_scale: float = 1.0


def signals(window: Window, replica: str, beside: Beside) -> Signals:
    """The signals of `replica` over `window`; a cap that the engine exposes goes before ours.

    An engine that caches prefixes asks the cache for every prompt token. Where prompts were
    computed and the cache was asked for nothing, it is off: a known hit share of 0.
    """
    cap = _level(window, "max_num_seqs", replica)
    prompts = window.rate("prompt_tokens_per_s", [replica])
    hits = _hits(window, replica)
    queries = lifted(lambda tokens, _: tokens, prompts, hits)
    if hits == NOTHING_OBSERVED and isinstance(prompts, Known) and prompts.value > 0:
        hits = queries = Known(value=0.0)
    measured = Signals(
        running=while_queued(window, "requests_running", replica),
        waiting=_level(window, "requests_waiting", replica),
        max_num_seqs=cap if isinstance(cap, Known) else beside.max_num_seqs,
        kv_usage_fraction=while_queued(window, "kv_usage_fraction", replica),
        kv_capacity_tokens=_level(window, "kv_capacity_tokens", replica),
        prompt_length_tokens=_mean(window, "prompt_length_tokens", replica),
        requests_per_s=window.rate("requests_per_s", [replica]),
        preemptions_per_s=window.rate("preemptions_per_s", [replica]),
        prefill_seconds_per_s=window.rate("prefill_seconds_per_s", [replica]),
        prompt_tokens_per_s=prompts,
        generation_tokens_per_s=window.rate("generation_tokens_per_s", [replica]),
        prefix_queries_per_s=queries,
        prefix_hit_fraction=hits,
        prefix_hit_reference=beside.prefix_hit_reference,
        ttft_p95_s=window.quantile("ttft_s", 0.95, [replica]).reading,
        ttft_mean_s=_mean(window, "ttft_s", replica),
        tpot_p95_s=window.quantile("tpot_s", 0.95, [replica]).reading,
        client_ttft_p95_s=beside.client_ttft_p95_s,
        client_ttft_mean_s=beside.client_ttft_mean_s,
        gpu_busy_fraction=_level(window, "gpu_busy_fraction", replica),
    )
    return with_limits(measured, beside)


def with_limits(seen: Signals, beside: Beside) -> Signals:
    """`seen` with what the card says of this load; errors are the card's band."""
    lengths = (seen.prompt_length_tokens, seen.prefix_hit_fraction)
    batch = (seen.running, seen.kv_usage_fraction, seen.kv_capacity_tokens)
    if beside.card is None:
        found = dict.fromkeys(
            ("prefill_limit_tokens_per_s", "prefill_alone_s", "decode_step_s"), NO_CARD
        )
        return seen.model_copy(update=found)
    paced = _Paced(beside.card, beside.time_scale)
    return seen.model_copy(
        update={
            "prefill_limit_tokens_per_s": paced.banded(paced.prefill_limit, *lengths),
            "prefill_alone_s": paced.banded(paced.prefill_s, *lengths),
            "decode_step_s": paced.banded(paced.decode_s, *batch),
        }
    )


@dataclass(frozen=True, slots=True)
class _Paced:
    """A card at the pace of a server, `scale` times as fast."""

    card: PerfCard
    scale: float

    def banded(self, formula: Callable[..., float], *readings: Reading) -> Reading:
        found = lifted(formula, *readings)
        if isinstance(found, Unknown):
            return found
        return Known(value=found.value, error=found.value * self.card.error_band)

    def prefill_s(self, prompt_tokens: float, hit_fraction: float) -> float:
        """One prompt alone, with `hit_fraction` of it in the cache."""
        cached = round(prompt_tokens * hit_fraction)
        computed = max(1, round(prompt_tokens) - cached)
        return prefill_ms(self.card, [(cached, computed)]) / 1e3 / self.scale

    def prefill_limit(self, prompt_tokens: float, hit_fraction: float) -> float:
        """Computed tokens/s of such prompts in full steps, which share `p0`."""
        computed = max(1.0, prompt_tokens * (1 - hit_fraction))
        p0_s = self.card.prefill.p0_ms / 1e3 / self.scale
        shared_s = p0_s * (1 - min(1.0, computed / _STEP_TOKENS))
        return computed / (self.prefill_s(prompt_tokens, hit_fraction) - shared_s)

    def decode_s(self, running: float, kv_usage: float, kv_tokens: float) -> float:
        """A decode step of the batch, the host's part included."""
        device_ms = decode_step_ms(self.card, max(1, round(running)), round(kv_usage * kv_tokens))
        return (device_ms + self.card.host_overhead_ms_per_step) / 1e3 / self.scale


def lifted(formula: Callable[..., float], *readings: Reading) -> Reading:
    """`formula` over the values of readings; the first unknown one when there is any."""
    for reading in readings:
        if isinstance(reading, Unknown):
            return reading
    return Known(value=formula(*(r.value for r in readings if isinstance(r, Known))))


def _values(window: Window, metric: str, replica: str) -> dict[datetime, float]:
    """Known values of one replica by time."""
    return {
        s.at: s.reading.value
        for s in window.series.get(metric, ())
        if s.replica == replica and isinstance(s.reading, Known)
    }


def _level(window: Window, metric: str, replica: str) -> Reading:
    """Mean of a gauge over the window; its newest reading where that is unknown."""
    newest = window.newest(metric, replica)
    if isinstance(newest, Unknown):
        return newest
    values = _values(window, metric, replica).values()
    return Known(value=sum(values) / len(values))


def while_queued(window: Window, metric: str, replica: str) -> Reading:
    """Mean of a gauge over the scrapes that saw a queue, over all where none did."""
    overall = _level(window, metric, replica)
    if isinstance(overall, Unknown):
        return overall
    waiting = _values(window, "requests_waiting", replica)
    queued = [
        value
        for at, value in _values(window, metric, replica).items()
        if waiting.get(at, 0.0) >= _A_REQUEST
    ]
    return Known(value=sum(queued) / len(queued)) if queued else overall


def _hits(window: Window, replica: str) -> Reading:
    """Prefix-cache hits ÷ queries over the window: each scrape weighs by its prompt tokens."""
    newest = window.newest("prefix_cache_hit_fraction", replica)
    gap = first_gap([newest])
    if gap is not None:
        return gap
    tokens = _values(window, "prompt_tokens_per_s", replica)
    hits = _values(window, "prefix_cache_hit_fraction", replica)
    weight = sum(tokens.get(at, 0.0) for at in hits)
    if not weight:
        return NOTHING_OBSERVED
    return Known(value=sum(hit * tokens.get(at, 0.0) for at, hit in hits.items()) / weight)


def _mean(window: Window, metric: str, replica: str) -> Reading:
    """Mean of a pooled histogram over the window."""
    seen = window.quantile(metric, 0.5, [replica]).reading
    if isinstance(seen, Unknown):
        return seen
    return window.distribution(metric, [replica]).mean
