"""Perf cards: what ships, and how the roofline agrees with silicon."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from optiinfra.schemas.errors import NotFound, Rejected
from optiinfra.serving.cards import Provenance, card_names, load_card
from optiinfra.serving.roofline import GPUS, MODELS, datasheet_card, hybrid_card

EXAMPLES = {
    "h100-8b-fp16-tp1": (6.35, 0.0113, 4.11e-5),
    "l40s-8b-fp16-tp1": (22.35, 0.0338, 1.92e-4),
    "h100-70b-fp16-tp4": (15.19, 0.0322, 2.69e-5),
    "h100-70b-fp8-tp2": (16.99, 0.0433, 2.88e-5),
    "a100-32b-fp16-tp2": (24.32, 0.0914, 8.46e-5),
}


@pytest.mark.parametrize("name", card_names())
def test_every_shipped_card_is_what_its_source_says(name: str) -> None:
    card = load_card(name)
    per_value = 1.0 if name == "h100-70b-fp8-tp2" else 2.0
    fresh = datasheet_card(
        card.gpu, card.model, card.precision, card.tp, kv_bytes_per_value=per_value
    )
    if card.provenance is Provenance.HYBRID:
        fresh = hybrid_card(fresh, card.decode)
    assert card == fresh
    assert card.name == name
    assert card.gpus == card.tp


@pytest.mark.parametrize("name", EXAMPLES)
def test_fitted_decode_coefficients_ship_as_measured(name: str) -> None:
    decode = load_card(name).decode
    assert (decode.alpha_ms, decode.beta_ms_per_seq, decode.gamma_ms_per_kv_token) == EXAMPLES[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_datasheet_roofline_lies_within_its_band_of_silicon(name: str) -> None:
    card = load_card(name)
    per_value = 1.0 if name == "h100-70b-fp8-tp2" else 2.0
    sheet = datasheet_card(
        card.gpu, card.model, card.precision, card.tp, kv_bytes_per_value=per_value
    )
    for kv_tokens, sequences in ((1_000, 1), (30_000, 32), (150_000, 128)):
        truth = _decode_ms(EXAMPLES[name], sequences, kv_tokens)
        d = sheet.decode
        guess = _decode_ms(
            (d.alpha_ms, d.beta_ms_per_seq, d.gamma_ms_per_kv_token), sequences, kv_tokens
        )
        assert abs(guess / truth - 1) <= sheet.error_band


def _decode_ms(cost: tuple[float, float, float], sequences: int, kv_tokens: int) -> float:
    return cost[0] + cost[1] * sequences + cost[2] * kv_tokens


def test_a_card_that_does_not_ship_is_not_found_and_the_choice_is_named() -> None:
    with pytest.raises(NotFound, match="h100-8b-fp16-tp1"):
        load_card("../../../etc/passwd")


def test_cards_are_frozen_and_refuse_unknown_fields() -> None:
    card = load_card("h100-8b-fp16-tp1")
    with pytest.raises(ValidationError):
        card.tp = 2  # type: ignore[misc]
    with pytest.raises(ValidationError):
        type(card).model_validate(card.model_dump() | {"speed": 1})


@pytest.mark.parametrize(
    ("gpu", "model", "precision", "tp", "error"),
    [
        ("tpu", "8b", "fp16", 1, NotFound),
        ("h100", "9000b", "fp16", 1, NotFound),
        ("a100", "8b", "fp8", 1, Rejected),
        ("l40s", "70b", "fp16", 4, Rejected),
        ("t4", "8b", "fp16", 1, Rejected),
    ],
)
def test_impossible_hardware_gets_no_card(
    gpu: str, model: str, precision: str, tp: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        datasheet_card(gpu, model, precision, tp)


def test_the_tables_hold_what_aws_rents() -> None:
    assert {"t4", "a10g", "l4", "l40s", "a100", "a100-40gb", "h100", "h200", "b200"} <= set(GPUS)
    assert {"8b", "32b", "70b"} <= set(MODELS)


def test_more_bandwidth_makes_a_faster_step() -> None:
    alphas = [datasheet_card(g, "8b", "fp16").decode.alpha_ms for g in ("l4", "a10g", "h100")]
    assert alphas == sorted(alphas, reverse=True)
