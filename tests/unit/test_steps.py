"""Step times from a card."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.serving.cards import load_card
from optiinfra.serving.steps import decode_step_ms, mixed_step_ms, prefill_ms, step_ms

CARD = load_card("h100-8b-fp16-tp1")


def test_a_decode_step_is_the_linear_law_of_the_card() -> None:
    expected = 6.35 + 0.0113 * 64 + 4.11e-5 * 64 * 600
    assert decode_step_ms(CARD, 64, 64 * 600) == pytest.approx(expected)


def test_nothing_to_do_takes_no_time() -> None:
    assert decode_step_ms(CARD, 0, 0) == 0.0
    assert prefill_ms(CARD, []) == 0.0


@given(st.lists(st.integers(1, 2_000), min_size=1, max_size=8))
def test_chunks_of_a_prompt_cost_the_whole_and_one_start_each(chunks: list[int]) -> None:
    total = sum(chunks)
    whole = prefill_ms(CARD, [(0, total)])
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    parts = sum(prefill_ms(CARD, [(s, n)]) for s, n in zip(starts, chunks, strict=True))
    assert parts == pytest.approx(whole + CARD.prefill.p0_ms * (len(chunks) - 1))


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_mixed_step_lies_between_the_longer_phase_and_the_sum(a: float, b: float) -> None:
    mixed = mixed_step_ms(CARD, a, b)
    assert max(a, b) <= mixed <= a + b + 1e-9
    assert mixed == mixed_step_ms(CARD, b, a)


def test_host_overhead_is_paid_a_step_and_an_admission() -> None:
    bare = mixed_step_ms(CARD, prefill_ms(CARD, [(0, 100)]), decode_step_ms(CARD, 2, 50))
    full = step_ms(CARD, 2, 50, [(0, 100)], admitted=3)
    host = CARD.host_overhead_ms_per_step + 3 * CARD.host_overhead_ms_per_request
    assert full == pytest.approx(bare + host)
