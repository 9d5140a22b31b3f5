"""How long one engine step takes, from a perf card."""

from __future__ import annotations

from collections.abc import Iterable

from optiinfra.serving.cards import PerfCard


def decode_step_ms(card: PerfCard, sequences: int, kv_tokens: int) -> float:
    """`α + β·B + γ·Σ KV tokens` in ms, B `sequences` over `kv_tokens` in all; 0 if none."""
    if sequences == 0:
        return 0.0
    cost = card.decode
    return cost.alpha_ms + cost.beta_ms_per_seq * sequences + cost.gamma_ms_per_kv_token * kv_tokens


def prefill_ms(card: PerfCard, chunks: Iterable[tuple[int, int]]) -> float:
    """`p0 + Σ (p1·n + p2·((s+n)² − s²))` in ms for chunks of `n` tokens after `s` computed ones.

    Chunks of one prompt add up to `p1·n + p2·n²` of the whole; `p0` is paid once a step. 0 if none.
    """
    cost, total, empty = card.prefill, card.prefill.p0_ms, True
    for start, count in chunks:
        empty = False
        total += cost.p1_ms_per_token * count
        total += cost.p2_ms_per_token2 * count * (2 * start + count)
    return 0.0 if empty else total


def mixed_step_ms(card: PerfCard, prefill_part_ms: float, decode_part_ms: float) -> float:
    """`max(t_p, t_d) + κ·min(t_p, t_d)` in ms: a forward pass that carries both phases."""
    longer, shorter = max(prefill_part_ms, decode_part_ms), min(prefill_part_ms, decode_part_ms)
    return longer + card.kappa * shorter


def step_ms(
    card: PerfCard,
    sequences: int,
    kv_tokens: int,
    chunks: Iterable[tuple[int, int]] = (),
    admitted: int = 0,
) -> float:
    """One engine step in ms with its host overhead: `admitted` requests are new in it."""
    device_ms = mixed_step_ms(
        card, prefill_ms(card, chunks), decode_step_ms(card, sequences, kv_tokens)
    )
    host_ms = card.host_overhead_ms_per_step + card.host_overhead_ms_per_request * admitted
    return device_ms + host_ms
