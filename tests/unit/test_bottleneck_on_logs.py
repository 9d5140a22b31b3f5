"""The bottleneck finder on logs of a real vLLM: the queue grows at 256 sequences, KV half empty.

The card of that GPU is not known, and neither its prefix cache nor its gateway was logged. So
prefill is taken at its most: no hits, against the fastest tick of the run, which the GPU can do at
least. Token time is running ÷ generated tokens/s of a tick; its p95 is over the ticks of a window.
"""

from __future__ import annotations

import csv
import gzip
from functools import lru_cache
from pathlib import Path

import pytest

from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.telemetry import Known
from optiinfra.serving.bottleneck import Finding, find
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.signals import NOT_READ, Signals
from optiinfra.serving.simulation import percentile

LOGS = Path(__file__).parents[2].parent / "shared" / "data" / "telemetry"
pytestmark = pytest.mark.skipif(not LOGS.is_dir(), reason="the shared test data are not here")
SCALES = ("100", "300", "500", "700", "900", "2000")
CAP, WINDOW_S = 256, 15.0
Row = dict[str, float]


@lru_cache(maxsize=3)
def log(name: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    with gzip.open(LOGS / f"burstgpt_vllm_{name}_log.csv.gz", "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row.pop("scale"), []).append({k: float(v) for k, v in row.items()})
    return found


def within(rows: list[Row], clock: str, since_s: float) -> list[Row]:
    return [row for row in rows if since_s <= row[clock] < since_s + WINDOW_S]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def signals_of(scale: str, since_s: float) -> Signals | None:
    """One window of a run; None where a log has nothing in it."""
    ticks = within(log("vllm_engine")[scale], "timestamp", since_s)
    answers = within(log("request")[scale], "record_time", since_s)
    gpu = within(log("gpu")[scale], "record_time", since_s)
    if not (ticks and answers and gpu):
        return None
    fastest = max(tick["prompt_throughput"] for tick in log("vllm_engine")[scale])
    queued = [tick for tick in ticks if tick["num_pending"] >= 1] or ticks
    ttft = [one["first_chunk_time"] for one in answers]
    tpot = [t["num_running"] / t["generation_throughput"] for t in ticks]
    return Signals(
        running=Known(value=mean([t["num_running"] for t in queued])),
        waiting=Known(value=mean([t["num_pending"] for t in ticks])),
        max_num_seqs=Known(value=CAP),
        kv_usage_fraction=Known(value=mean([t["gpu_kvcache_usage"] for t in queued]) / 100),
        requests_per_s=Known(value=len(answers) / WINDOW_S),
        preemptions_per_s=Known(value=mean([t["num_swapped"] for t in ticks]) / WINDOW_S),
        prompt_tokens_per_s=Known(value=mean([t["prompt_throughput"] for t in ticks])),
        prefix_hit_fraction=Known(value=0),
        prefill_limit_tokens_per_s=Known(value=fastest),
        ttft_p95_s=Known(value=percentile(ttft, 0.95)),
        ttft_mean_s=Known(value=mean(ttft)),
        tpot_p95_s=Known(value=percentile(tpot, 0.95)),
        gpu_busy_fraction=Known(value=mean([g["GPU_utilization"] for g in gpu]) / 100),
    )


def findings() -> list[tuple[list[Row], Finding]]:
    """Every window of the six runs, with its ticks."""
    found = []
    for scale in SCALES:
        rows = log("vllm_engine")[scale]
        since_s = rows[0]["timestamp"]
        while since_s < rows[-1]["timestamp"]:
            seen = signals_of(scale, since_s)
            if seen is not None:
                found.append((within(rows, "timestamp", since_s), find(seen, SLO())))
            since_s += WINDOW_S
    return found


def test_a_queue_at_the_cap_is_the_scheduler_cap_in_every_window() -> None:
    capped = [
        found
        for ticks, found in findings()
        if min(t["num_running"] for t in ticks) >= 0.97 * CAP
        and mean([t["num_pending"] for t in ticks]) >= 5
    ]
    assert len(capped) >= 15
    assert {found.cause for found in capped} == {Cause.SCHEDULER_CAP}
    for found in capped:
        told = {one.name: one for one in found.evidence if "row 4 holds" in one.source}
        usage = told["kv_usage_fraction"].reading
        assert isinstance(usage, Known)
        assert usage.value < 0.5


def test_no_other_cause_is_ever_named() -> None:
    assert {found.cause for _, found in findings()} == {Cause.SCHEDULER_CAP, Cause.UNKNOWN}


def test_a_window_without_a_queue_never_blames_the_cap() -> None:
    quiet = [found for ticks, found in findings() if max(t["num_pending"] for t in ticks) == 0]
    assert len(quiet) >= 30
    assert {found.cause for found in quiet} == {Cause.UNKNOWN}


@pytest.mark.parametrize("signal", ["max_num_seqs", "kv_usage_fraction", "waiting"])
def test_without_what_the_verdict_stands_on_the_log_explains_nothing(signal: str) -> None:
    whole = signals_of("2000", log("vllm_engine")["2000"][0]["timestamp"] + 75)
    assert whole is not None
    assert find(whole, SLO()).cause is Cause.SCHEDULER_CAP
    lacking = find(whole.model_copy(update={signal: NOT_READ}), SLO())
    assert lacking.cause is Cause.UNKNOWN
    assert signal in {one.signal for one in lacking.missing}
