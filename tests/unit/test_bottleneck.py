"""The bottleneck finder: its decision table, what is missing, and what would change its mind."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Known, Unknown
from optiinfra.serving.bottleneck import Finding, find
from optiinfra.serving.bottleneck_table import Cause, Thresholds, table
from optiinfra.serving.signals import NOT_READ, Signals

SLOW = SLO(ttft_p95_s=0.5, tpot_p95_s=0.05)
HEALTHY: dict[str, float] = {
    "running": 20, "waiting": 0, "max_num_seqs": 256, "kv_usage_fraction": 0.3,
    "kv_capacity_tokens": 100_000, "prompt_length_tokens": 500, "requests_per_s": 4,
    "preemptions_per_s": 0, "prompt_tokens_per_s": 2000, "generation_tokens_per_s": 800,
    "prefix_queries_per_s": 2000, "prefix_hit_fraction": 0.2, "prefix_hit_reference": 0.2,
    "ttft_p95_s": 0.2, "ttft_mean_s": 0.1, "tpot_p95_s": 0.02, "client_ttft_p95_s": 0.22,
    "client_ttft_mean_s": 0.12, "gpu_busy_fraction": 1.0, "prefill_limit_tokens_per_s": 10_000,
    "prefill_alone_s": 0.04, "decode_step_s": 0.015,
}  # fmt: skip
QUEUED: dict[str, float] = {
    "waiting": 40,
    "ttft_p95_s": 9,
    "ttft_mean_s": 5,
    "client_ttft_p95_s": 9,
}
CASES: list[tuple[Cause, int, dict[str, float]]] = [
    (Cause.PREEMPTION, 1, QUEUED | {"preemptions_per_s": 8, "kv_usage_fraction": 0.99}),
    (Cause.PREFIX_MISSES, 2, QUEUED | {
        "prompt_tokens_per_s": 9500, "prefix_hit_fraction": 0.05, "prefix_hit_reference": 0.8,
    }),
    (Cause.COMPUTE, 3, QUEUED | {"prompt_tokens_per_s": 11_500}),
    (Cause.SCHEDULER_CAP, 4, QUEUED | {"running": 256}),
    (Cause.KV_CAPACITY, 5, QUEUED | {"kv_usage_fraction": 0.93}),
    (Cause.KV_CAPACITY, 5, QUEUED | {"kv_usage_fraction": 0.8, "prompt_length_tokens": 30_000}),
    (Cause.QUEUE, 6, QUEUED | {"running": 256, "kv_usage_fraction": 0.7}),
    (Cause.MEMORY_BANDWIDTH, 7, {"tpot_p95_s": 0.06}),
    (Cause.PREFIX_MISSES, 8, {
        "ttft_p95_s": 0.9, "ttft_mean_s": 0.6, "prefill_alone_s": 0.5, "prefix_hit_fraction": 0.1,
        "prefix_hit_reference": 0.7, "prompt_tokens_per_s": 900,
    }),
    (Cause.COMPUTE, 9, {"ttft_p95_s": 0.9, "ttft_mean_s": 0.6, "prefill_alone_s": 0.5}),
    (Cause.NETWORK, 10, {"client_ttft_p95_s": 1.2, "client_ttft_mean_s": 0.9}),
    (Cause.NONE, 11, {}),
]  # fmt: skip


def seen(**values: float) -> Signals:
    return Signals(**{name: Known(value=value) for name, value in (HEALTHY | values).items()})


def without(signals: Signals, *names: str) -> Signals:
    return signals.model_copy(update=dict.fromkeys(names, NOT_READ))


@pytest.mark.parametrize(("cause", "row", "values"), CASES)
def test_each_row_names_its_cause(cause: Cause, row: int, values: dict[str, float]) -> None:
    found = find(seen(**values), SLOW)
    assert (found.cause, found.row) == (cause, row)
    assert found.missing == ()
    held = [one for one in found.evidence if one.source.startswith(f"row {row} holds")]
    assert held
    assert all(isinstance(one.reading, Known) and one.threshold for one in held)


def test_the_table_covers_every_cause_and_each_row_is_tried() -> None:
    rows = table(Thresholds())
    assert {row.cause for row in rows} == set(Cause) - {Cause.UNKNOWN}
    assert {row for _, row, _ in CASES} == set(range(1, len(rows) + 1))


def test_without_telemetry_the_cause_is_unknown_and_says_what_is_missing() -> None:
    found = find(Signals(), SLOW)
    assert (found.cause, found.row, found.turns, found.margin) == (Cause.UNKNOWN, 1, (), None)
    assert {"waiting", "requests_per_s", "preemptions_per_s"} <= {m.signal for m in found.missing}
    assert {m.why for m in found.missing} == {"not read"}


NEEDED = [
    (Cause.PREEMPTION, "preemptions_per_s"), (Cause.PREFIX_MISSES, "prefix_hit_reference"),
    (Cause.COMPUTE, "prompt_tokens_per_s"), (Cause.SCHEDULER_CAP, "max_num_seqs"),
    (Cause.KV_CAPACITY, "kv_usage_fraction"), (Cause.QUEUE, "kv_usage_fraction"),
    (Cause.MEMORY_BANDWIDTH, "decode_step_s"), (Cause.NETWORK, "client_ttft_mean_s"),
    (Cause.NONE, "tpot_p95_s"),
]  # fmt: skip


@pytest.mark.parametrize(("cause", "signal"), NEEDED)
def test_a_cause_is_unknown_without_the_signal_it_stands_on(cause: Cause, signal: str) -> None:
    values = next(values for one, _, values in CASES if one is cause)
    found = find(without(seen(**values), signal), SLOW)
    assert found.cause is Cause.UNKNOWN
    assert signal in {one.signal for one in found.missing}


def test_a_signal_that_only_later_rows_need_is_not_missed() -> None:
    capped = seen(**QUEUED, running=256)
    lacking = without(capped, "decode_step_s", "client_ttft_p95_s", "prefill_alone_s")
    assert find(lacking, SLOW).cause is Cause.SCHEDULER_CAP


def test_unknown_usual_hits_leave_open_only_what_prefill_could_be() -> None:
    light = without(seen(**QUEUED, running=256), "prefix_hit_reference")
    assert find(light, SLOW).cause is Cause.SCHEDULER_CAP
    heavy = without(seen(**QUEUED, prompt_tokens_per_s=11_500), "prefix_hit_reference")
    assert find(heavy, SLOW).cause is Cause.UNKNOWN


def test_a_cache_that_is_off_misses_nothing() -> None:
    off = seen(
        **QUEUED, prompt_tokens_per_s=9500, prefix_hit_fraction=0, prefix_queries_per_s=0,
        prefix_hit_reference=0.8,
    )  # fmt: skip
    assert find(off, SLOW).cause is Cause.COMPUTE
    assert find(seen(prefix_hit_fraction=1.0), SLOW).cause is Cause.NONE


def test_an_idle_gpu_refutes_compute_and_bandwidth_where_no_card_is_known() -> None:
    no_card = ("prefill_limit_tokens_per_s", "prefill_alone_s", "decode_step_s")
    capped = without(seen(**QUEUED, running=256, gpu_busy_fraction=0.28), *no_card)
    found = find(capped, SLOW)
    assert found.cause is Cause.SCHEDULER_CAP
    refuted = next(one for one in found.evidence if one.name == "prefill_share")
    assert refuted.reading == Known(value=0.28)
    assert refuted.source.endswith("at most gpu_busy_fraction")
    busy = capped.model_copy(update={"gpu_busy_fraction": Known(value=0.9)})
    assert find(busy, SLOW).cause is Cause.UNKNOWN


def test_short_prefills_refute_compute_where_neither_card_nor_gpu_is_known() -> None:
    blind = ("prefill_limit_tokens_per_s", "prefill_alone_s", "decode_step_s", "gpu_busy_fraction")
    capped = without(seen(**QUEUED, running=256, prefill_seconds_per_s=0.05), *blind)
    found = find(capped, SLOW)
    assert found.cause is Cause.SCHEDULER_CAP
    refuted = next(one for one in found.evidence if one.name == "prefill_share")
    assert refuted.source.endswith("at most prefill_seconds_per_s")
    overlapping = capped.model_copy(update={"prefill_seconds_per_s": Known(value=2.5)})
    assert find(overlapping, SLOW).cause is Cause.UNKNOWN
    assert find(without(capped, "prefill_seconds_per_s"), SLOW).cause is Cause.UNKNOWN


def test_a_card_that_an_idle_gpu_contradicts_is_not_believed() -> None:
    found = find(seen(**QUEUED, prompt_tokens_per_s=11_500, gpu_busy_fraction=0.1), SLOW)
    assert found.cause is Cause.UNKNOWN
    assert [m.signal for m in found.missing] == ["prefill_share"]
    assert "gpu_busy_fraction" in found.missing[0].why


def test_slow_for_no_reason_of_the_table_is_unknown_with_nothing_missing() -> None:
    found = find(seen(tpot_p95_s=0.06, decode_step_s=0.001), SLOW)
    assert (found.cause, found.row, found.missing) == (Cause.UNKNOWN, None, ())
    assert found.turns
    assert all("fails" in one.source for one in found.evidence)


def test_the_nearest_turn_says_what_would_change_the_verdict() -> None:
    found = find(seen(**QUEUED, running=256, kv_usage_fraction=0.48), SLOW)
    nearest = found.turns[0]
    assert (nearest.measure, nearest.threshold, nearest.then) == (
        "kv_usage_fraction", 0.5, Cause.QUEUE
    )  # fmt: skip
    assert found.margin == pytest.approx(0.04)
    moved = find(seen(**QUEUED, running=256, kv_usage_fraction=0.5), SLOW)
    assert moved.cause is Cause.QUEUE


def test_a_stalled_engine_has_a_queue_although_nothing_finishes() -> None:
    stalled = seen(**QUEUED, requests_per_s=0, running=256, prompt_tokens_per_s=0)
    assert find(stalled, SLOW).cause is Cause.SCHEDULER_CAP


def test_thresholds_are_data() -> None:
    capped = seen(**QUEUED, running=256, kv_usage_fraction=0.6)
    assert find(capped, SLOW).cause is Cause.QUEUE
    assert find(capped, SLOW, Thresholds(kv_half=0.65)).cause is Cause.SCHEDULER_CAP


NAMES = tuple(HEALTHY)


def around(usual: float) -> st.SearchStrategy[float | None]:
    """Unknown, or a value near or far from the usual one."""
    return st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0, 40.0]).map(lambda f: f * (usual or 1))


anything = st.fixed_dictionaries({name: around(usual) for name, usual in HEALTHY.items()})


@settings(max_examples=400, deadline=None)
@given(values=anything, gone=st.sets(st.sampled_from(NAMES), min_size=1, max_size=4))
def test_what_goes_missing_never_turns_one_cause_into_another(
    values: dict[str, float | None], gone: set[str]
) -> None:
    known: dict[str, Any] = {k: Known(value=v) for k, v in values.items() if v is not None}
    whole = find(Signals(**known), SLOW)
    less: Finding = find(without(Signals(**known), *gone), SLOW)
    if whole.cause is not Cause.UNKNOWN:
        assert less.cause in {whole.cause, Cause.UNKNOWN}
    if less.missing:
        assert less.cause is Cause.UNKNOWN


def test_a_missing_signal_says_its_own_reason() -> None:
    gone = Unknown.model_validate({"reason": "unreachable"})
    found = find(seen().model_copy(update={"tpot_p95_s": gone}), SLOW)
    assert [(one.signal, one.why) for one in found.missing] == [("tpot_p95_s", "unreachable")]


def test_the_document_has_the_rows_of_the_table_in_their_order() -> None:
    text = (Path(__file__).parents[2] / "docs" / "bottleneck.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\d+) \| (\w+) \|", text, re.MULTILINE)
    rows = table(Thresholds())
    assert told == [(str(n), row.cause.value) for n, row in enumerate(rows, 1)]
