"""Telemetry contracts: every name of every engine version, on real and replayed scrapes."""

from __future__ import annotations

import csv
import gzip
import json
from functools import lru_cache
from pathlib import Path

import pytest
from pydantic import ValidationError

from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import NotFound
from optiinfra.schemas.telemetry import Known, Unit, Unknown, UnknownReason
from optiinfra.serving.contracts import (
    Contract,
    Promise,
    contract_for,
    parse_version,
    version_of,
)
from optiinfra.serving.scrapes import Scrape, ScrapeReadings, read
from tests.exposition import reading, reason, scrape, value

SHARED = Path(__file__).parents[2].parent / "shared"
METRICS = SHARED / "data" / "metrics"
REAL_VLLM = SHARED / "tools" / "real-vllm" / "metrics-0.32.0.txt"
needs_data = pytest.mark.skipif(not METRICS.is_dir(), reason="the shared test data are not here")
VLLM = contract_for(Engine.VLLM)


@lru_cache(maxsize=1)
def replays() -> dict[str, list[tuple[float, str]]]:
    found: dict[str, list[tuple[float, str]]] = {}
    with gzip.open(METRICS / "replay_scrapes.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found.setdefault(row["engine_version"], []).append((row["t_s"], row["text"]))
    return found


@lru_cache(maxsize=1)
def captures() -> dict[str, str]:
    with gzip.open(METRICS / "captured_scrapes.jsonl.gz", "rt", encoding="utf-8") as file:
        return {row["name"]: row["text"] for row in map(json.loads, file)}


REPLAYED = {
    "vllm-0.5.5-v0": True, "vllm-0.6.6-v0": True, "vllm-0.8.5-v1": True, "vllm-0.10.2-v1": True,
    "vllm-0.20.2-v1": False, "sglang-0.4.6": True, "sglang-0.5.1": True,
}  # fmt: skip
"""Replayed versions, and whether their replay fills the histogram that TPOT is read from."""


@needs_data
@pytest.mark.parametrize("name", REPLAYED)
def test_every_replayed_version_keeps_all_its_required_promises(name: str) -> None:
    engine, version = name.split("-")[:2]
    before: Scrape | None = None
    for at_s, text in replays()[name]:
        now = scrape(text, at_s, version)
        readings = read(contract_for(Engine(engine)), "r1", now, before)
        assert readings.gaps == ()
        assert not any("contract" in s.labels for s in readings.samples)
        before = now


@needs_data
@pytest.mark.parametrize(("name", "has_tpot"), REPLAYED.items())
def test_replayed_windows_have_the_rates_and_latencies_of_the_run(
    name: str,
    has_tpot: bool,  # noqa: FBT001
) -> None:
    engine, version = name.split("-")[:2]
    texts = dict(replays()[name])
    now, before = scrape(texts[75], 75, version), scrape(texts[60], 60, version)
    readings = read(contract_for(Engine(engine)), "r1", now, before)
    assert value(readings, "scrape_window_s") == 15
    assert value(readings, "requests_running") == 198
    assert value(readings, "requests_waiting") == 62
    assert value(readings, "kv_usage_fraction") == pytest.approx(0.181467)
    assert value(readings, "requests_per_s") == pytest.approx(49 / 15)
    assert value(readings, "generation_tokens_per_s") == pytest.approx(2929.8)
    ttft = reading(readings, "ttft_s", quantile="p95")
    assert isinstance(ttft, Known)
    assert ttft.error > 0
    assert 0.7 < ttft.value <= 2.5
    assert value(readings, "ttft_s", quantile="mean") == pytest.approx(27.7955 / 49, rel=1e-3)
    if has_tpot:
        assert 0.07 < value(readings, "tpot_s", quantile="p95") < 0.1
        assert readings_basis(readings, "tpot_s") == {"token"}
    else:
        assert reason(readings, "tpot_s", quantile="p95") is UnknownReason.NO_TRAFFIC


def readings_basis(readings: ScrapeReadings, metric: str) -> set[str | None]:
    found = [s for s in readings.samples if s.metric == metric]
    return {s.labels.get("basis") for s in found}


@needs_data
def test_the_first_scrape_gives_levels_and_no_rates() -> None:
    readings = read(VLLM, "r1", scrape(replays()["vllm-0.10.2-v1"][5][1], 75, "0.10.2"))
    metrics = {s.metric for s in readings.samples}
    assert {"requests_running", "requests_waiting", "kv_usage_fraction"} <= metrics
    assert not metrics & {"requests_per_s", "ttft_s", "ttft_s_bucket", "scrape_window_s"}


@needs_data
def test_a_real_vllm_0_32_scrape_is_read_wholly() -> None:
    text = REAL_VLLM.read_text(encoding="utf-8")
    readings = read(VLLM, "r1", scrape(text, 10), scrape(text, 0))
    assert readings.gaps == ()
    assert value(readings, "kv_capacity_tokens") == 524288
    assert value(readings, "errors_per_s") == 0
    assert reason(readings, "ttft_s", quantile="p95") is UnknownReason.NO_TRAFFIC
    assert reason(readings, "prefix_cache_hit_fraction") is UnknownReason.NO_TRAFFIC
    assert reason(readings, "max_num_seqs") is UnknownReason.NOT_SUPPORTED
    unsupported = {
        s.metric
        for s in readings.samples
        if isinstance(s.reading, Unknown) and s.reading.reason is UnknownReason.NOT_SUPPORTED
    }
    assert unsupported == {"max_num_seqs"}


@needs_data
def test_a_captured_v0_scrape_is_read_by_the_oldest_names_and_flagged() -> None:
    readings = read(VLLM, "r1", scrape(captures()["vllm_v0engine_2024-05_captured"], 0, "0.4.2"))
    assert readings.gaps == ()
    assert value(readings, "kv_usage_fraction") == 0
    assert value(readings, "kv_capacity_tokens") == 7281 * 16
    assert all(s.labels["contract"] == "assumed" for s in readings.samples)


@needs_data
@pytest.mark.parametrize(
    "name",
    ["dcgm_exporter_a100_mig_captured", "llamacpp_2025-06_captured_partial",
     "triton_tensorrtllm_captured", "node_exporter_e2e_fixture"],
)  # fmt: skip
def test_what_is_no_engine_of_ours_is_missing_and_never_zero(name: str) -> None:
    readings = read(VLLM, "r1", scrape(captures()[name]))
    required = {p.metric for p in VLLM.promises if p.required}
    assert {gap.metric for gap in readings.gaps} == required
    assert not any(isinstance(s.reading, Known) for s in readings.samples)


@needs_data
def test_every_source_is_defined_in_the_engine_versions_that_it_covers() -> None:
    with gzip.open(METRICS / "engine_metric_definitions.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    defined = {(r["engine"], r["version"], r["exposed_name"]) for r in rows}
    kinds = {(r["engine"], r["version"], r["exposed_name"]): r["type"] for r in rows}
    for engine in (Engine.VLLM, Engine.SGLANG):
        contract = contract_for(engine)
        versions = {r["version"] for r in rows if r["engine"] == engine.value}
        for version in versions:
            for promise in contract.promises:
                if not promise.required:
                    continue
                allowed = [s for s in promise.sources if s.covers(parse_version(version))]
                names = [s for s in allowed if (engine.value, version, s.name) in defined]
                assert names, f"{engine} {version}: nothing gives {promise.metric}"
                assert kinds[engine.value, version, names[0].name] == names[0].type.value


def test_versions_are_read_from_what_engines_say() -> None:
    assert parse_version("0.6.6.post1") == (0, 6, 6)
    assert parse_version("v0.33") == (0, 33, 0)
    assert parse_version("nightly") is None
    assert parse_version(None) is None
    with pytest.raises(NotFound, match="not a version"):
        version_of("nightly")


def test_an_engine_without_a_table_is_named() -> None:
    with pytest.raises(NotFound, match="tgi"):
        contract_for(Engine.TGI)


def test_a_metric_cannot_be_promised_twice() -> None:
    promise = Promise(metric="x", unit=Unit.COUNT)
    with pytest.raises(ValidationError, match="promised twice"):
        Contract(engine=Engine.VLLM, since="0.1", until="0.2", promises=(promise, promise))
