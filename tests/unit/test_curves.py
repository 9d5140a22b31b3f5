"""What a tuning turns, and which trials of its curve count."""

from __future__ import annotations

from typing import Any

import pytest

from optiinfra.schemas.recommendation import (
    BatchTuning,
    ChangeSpec,
    KvCacheTuning,
    Precision,
    Quantisation,
    SpotMigration,
)
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.tuning import KnobValue, TrialOutcome, TuningTrial
from optiinfra.serving.curves import (
    Tuning,
    arranged,
    faster,
    is_no_worse,
    is_slower,
    measured,
    spec_of,
    turned,
    words,
)
from tests.factories import recommendation


def trial(rate: float | None = 100.0, **changes: Any) -> TuningTrial:
    given: dict[str, Any] = {"knobs": {"max_num_seqs": 8}, "outcome": TrialOutcome.COMPLETE}
    if rate is not None:
        given["tokens_per_s"] = Known(value=rate)
    return TuningTrial(**{**given, **changes})


@pytest.mark.parametrize(
    ("tuning", "knobs"),
    [
        (BatchTuning(max_num_seqs=8, chunked_prefill=False),
         {"max_num_seqs": 8, "chunked_prefill": False}),
        (KvCacheTuning(dtype="fp8", prefix_caching=True, max_num_seqs=4),
         {"kv_cache_dtype": "fp8", "prefix_caching": True, "max_num_seqs": 4}),
        (Quantisation(from_precision=Precision.FP16, to_precision=Precision.FP8),
         {"quantisation": "fp8"}),
        (Quantisation(from_precision=Precision.FP16, to_precision=Precision.INT8, weights="m-int8"),
         {"model": "m-int8"}),
    ],
)  # fmt: skip
def test_a_tuning_turns_the_knobs_that_it_names(tuning: Tuning, knobs: dict[str, Any]) -> None:
    assert turned(tuning) == knobs


def test_knobs_become_the_change_that_turns_them() -> None:
    batch: dict[str, KnobValue] = {"max_num_seqs": 8, "max_num_batched_tokens": 512}
    kv: dict[str, KnobValue] = {"kv_cache_dtype": "fp8", "max_num_seqs": 8}
    assert spec_of(batch) == BatchTuning(max_num_seqs=8, max_num_batched_tokens=512)
    assert spec_of(kv) == KvCacheTuning(dtype="fp8", max_num_seqs=8)
    assert spec_of({**batch, **kv}) is None
    assert spec_of({}) is None


def proposed(*curve: TuningTrial, spec: ChangeSpec | None = None) -> Any:
    return measured(recommendation(spec=spec or BatchTuning(max_num_seqs=32), curve=curve))


def test_the_first_two_trials_are_the_present_and_the_proposed_configuration() -> None:
    now, then = trial(), trial(200.0, knobs={"max_num_seqs": 32})
    assert proposed(now, then, trial(1.0)) == (now, then)


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        ((), "was not measured"),
        ((trial(),), "was not measured"),
        ((trial(), trial()), "measured max_num_seqs at 8, proposed is 32"),
        ((trial(outcome=TrialOutcome.FAILED), trial(knobs={"max_num_seqs": 32})),
         "the present configuration is failed"),
        ((trial(), trial(knobs={"max_num_seqs": 32}, outcome=TrialOutcome.PRUNED)),
         "the proposed configuration is pruned"),
        ((trial(), trial(knobs={"max_num_seqs": 32}, failed=2)), "2 request(s) failed"),
    ],
)  # fmt: skip
def test_a_curve_that_does_not_hold_the_proposal_counts_for_nothing(
    curve: tuple[TuningTrial, ...], reason: str
) -> None:
    assert reason in proposed(*curve)


def test_what_turns_no_knob_has_no_curve() -> None:
    migration = recommendation()
    assert isinstance(migration.spec, SpotMigration)
    assert "turns no knob" in str(measured(migration))


def test_a_gain_needs_two_throughputs() -> None:
    assert faster(trial(100.0), trial(250.0)) == 2.5
    assert faster(trial(None), trial()) is None
    assert faster(trial(), trial(None)) is None
    assert faster(trial(0.0), trial()) is None


def test_a_curve_begins_with_the_present_and_the_best() -> None:
    first, second, third = trial(1.0), trial(2.0), trial(3.0)
    assert arranged([first, second, third], third) == (first, third, second)


def test_words_and_objectives() -> None:
    assert words({"max_num_seqs": 8, "prefix_caching": True}) == (
        "max_num_seqs 8, prefix_caching True"
    )
    assert is_no_worse(0.9, 0.1, 1.0)
    assert is_no_worse(1.55, 1.5, 1.0)
    assert not is_no_worse(1.6, 1.5, 1.0)
    assert not is_slower(0.96)
    assert is_slower(0.94)
