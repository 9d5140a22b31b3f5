"""What a proposal to tune an engine turns, and what was measured of it in staging; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optiinfra.schemas.recommendation import (
    BatchTuning,
    ChangeSpec,
    KvCacheTuning,
    Quantisation,
    Recommendation,
)
from optiinfra.schemas.tuning import KnobValue, TrialOutcome, TuningTrial

Tuning = BatchTuning | KvCacheTuning | Quantisation
"""The kinds of change that start an engine with other knobs."""

NOISE = 0.05
"""How far two measurements of one configuration may lie apart, relative."""

BATCH_KNOBS = frozenset({"max_num_seqs", "max_num_batched_tokens", "chunked_prefill"})
KV_KNOBS = {
    "gpu_memory_fraction": "gpu_memory_fraction",
    "kv_cache_dtype": "dtype",
    "kv_block_tokens": "block_tokens",
    "prefix_caching": "prefix_caching",
    "max_num_seqs": "max_num_seqs",
}
"""Knobs of an engine, and their names in a `KvCacheTuning`."""


def turned(tuning: Tuning) -> dict[str, KnobValue]:
    """The knobs that `tuning` turns, by the engine's names."""
    named: dict[str, KnobValue | None]
    match tuning:
        case BatchTuning():
            named = {name: getattr(tuning, name) for name in BATCH_KNOBS}
        case KvCacheTuning():
            named = {knob: getattr(tuning, name) for knob, name in KV_KNOBS.items()}
        case Quantisation(weights=None):
            named = {"quantisation": tuning.to_precision.value}
        case _:
            named = {"model": tuning.weights}
    return {name: value for name, value in named.items() if value is not None}


def spec_of(knobs: Mapping[str, KnobValue]) -> BatchTuning | KvCacheTuning | None:
    """The change that turns `knobs`; None where no single kind of change does."""
    if knobs and knobs.keys() <= BATCH_KNOBS:
        return BatchTuning.model_validate(knobs)
    if knobs and knobs.keys() <= KV_KNOBS.keys():
        return KvCacheTuning.model_validate({KV_KNOBS[name]: v for name, v in knobs.items()})
    return None


def measured(proposal: Recommendation) -> tuple[TuningTrial, TuningTrial] | str:
    """The trials of the present and of the proposed configuration, or why they do not count.

    They stand first and second in the curve.
    """
    spec: ChangeSpec = proposal.spec
    if not isinstance(spec, Tuning):
        return f"a {spec.kind} turns no knob of an engine"
    if len(proposal.curve) < 2:
        return "it was not measured on a staging replica"
    now, then = proposal.curve[:2]
    for name, value in turned(spec).items():
        if then.knobs.get(name) != value:
            return f"the curve measured {name} at {then.knobs.get(name)}, proposed is {value}"
    for what, trial in (("present", now), ("proposed", then)):
        if trial.outcome is not TrialOutcome.COMPLETE or trial.failed:
            lost = f", {trial.failed} request(s) failed" if trial.failed else ""
            return f"the trial of the {what} configuration is {trial.outcome.value}{lost}"
    return now, then


def faster(now: TuningTrial, then: TuningTrial) -> float | None:
    """How many times as many tokens/s `then` served; None where one was not measured."""
    before, after = now.throughput, then.throughput
    if before is None or after is None or before <= 0:
        return None
    return after / before


def arranged(trials: Sequence[TuningTrial], best: TuningTrial) -> tuple[TuningTrial, ...]:
    """The curve of a proposal: the present configuration (the first trial), the best, the rest."""
    rest = [one for one in trials[1:] if one is not best]
    return (trials[0], best, *rest)


def words(knobs: Mapping[str, KnobValue]) -> str:
    """Knobs for people, such as "max_num_seqs 32"."""
    return ", ".join(f"{name} {value}" for name, value in knobs.items())


def is_slower(gain: float) -> bool:
    """Whether a throughput has fallen by more than noise."""
    return gain < 1 - NOISE


def is_no_worse(then: float, now: float, objective: float) -> bool:
    """Whether a latency stays under its objective, or is no longer than it was but for noise."""
    return then <= max(now * (1 + NOISE), objective)
