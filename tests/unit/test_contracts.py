"""Telemetry contracts: every name of every engine version, on real and replayed scrapes."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import NotFound
from optiinfra.schemas.telemetry import Known, Unit, Unknown, UnknownReason
from optiinfra.serving.contracts import (
    Contract,
    Exporter,
    ExposedType,
    Promise,
    Source,
    contract_for,
)
from optiinfra.serving.scrapes import Scrape, ScrapeReadings, read
from optiinfra.serving.units import ExposedUnit
from optiinfra.serving.versions import parse_version, version_of
from tests.captures import REAL_VLLM, captures, definitions, needs_data, replays
from tests.exposition import reading, reason, scrape, value

VLLM = contract_for(Engine.VLLM)

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
    promised = {p.metric for p in VLLM.promises if not p.optional}
    assert {gap.metric for gap in readings.gaps} == promised
    assert not any(isinstance(s.reading, Known) for s in readings.samples)


@needs_data
@pytest.mark.parametrize("engine", [Engine.VLLM, Engine.SGLANG])
def test_every_promise_is_kept_by_the_sources_of_every_engine_version(engine: Engine) -> None:
    rows = {(r["version"], r["exposed_name"]): r for r in definitions() if r["engine"] == engine}
    for version in {version for version, _ in rows}:
        for promise in contract_for(engine).promises:
            allowed = [s for s in promise.sources if s.covers(parse_version(version))]
            found = [rows[version, s.name] for s in allowed if (version, s.name) in rows]
            if promise.optional or not allowed:
                continue
            assert found, f"{engine} {version}: nothing gives {promise.metric}"


@needs_data
@pytest.mark.parametrize("engine", [Engine.VLLM, Engine.SGLANG])
def test_types_units_and_buckets_are_those_of_the_sources(engine: Engine) -> None:
    compared = set()
    for row in definitions():
        for source in (s for p in contract_for(engine).promises for s in p.sources):
            if row["engine"] != engine or row["exposed_name"] != source.name:
                continue
            compared.add(source.name)
            if row["type"] != "unresolved" and not source.labels:
                assert row["type"] == source.type.value
            if row["unit"] == "seconds":
                assert source.unit is ExposedUnit.SECONDS
            if source.unit is ExposedUnit.SECONDS:
                assert row["unit"] == "seconds" or "in seconds" in row["help"]
            if source.buckets and row["buckets"].startswith("["):
                bounds = tuple(float(bound) for bound in json.loads(row["buckets"]))
                assert bounds in source.buckets, f"{row['version']} {source.name}"
    assert len(compared) > 10


@needs_data
@pytest.mark.parametrize("name", REPLAYED)
def test_buckets_of_replayed_versions_are_those_that_ship(name: str) -> None:
    engine, version = name.split("-")[:2]
    (at_s, text), (later_s, later) = replays()[name][:2]
    before, now = scrape(text, at_s, version), scrape(later, later_s, version)
    readings = read(contract_for(Engine(engine)), "r1", now, before)
    assert {s.metric for s in readings.samples if "buckets" in s.labels} == set()


@pytest.mark.parametrize("engine", [*Engine, *Exporter])
def test_every_engine_and_exporter_has_a_contract(engine: Engine | Exporter) -> None:
    contract = contract_for(engine)
    assert contract.engine is engine
    required = {p.metric for p in contract.promises if p.required}
    assert required
    assert not any(p.required and p.optional for p in contract.promises)
    for promise in contract.promises:
        if promise.unit is Unit.FRACTION:
            assert (promise.low, promise.high) == (0.0, 1.0)


def test_a_promise_in_another_unit_than_its_source_is_refused() -> None:
    source = Source(name="x", type=ExposedType.GAUGE, unit=ExposedUnit.SECONDS)
    with pytest.raises(ValidationError, match="x in seconds is another quantity"):
        Promise(metric="usage", unit=Unit.FRACTION, sources=(source,))


def test_versions_are_read_from_what_engines_say() -> None:
    assert parse_version("0.6.6.post1") == (0, 6, 6)
    assert parse_version("v0.33") == (0, 33, 0)
    assert parse_version("nightly") is None
    assert parse_version(None) is None
    with pytest.raises(NotFound, match="not a version"):
        version_of("nightly")


def test_a_metric_cannot_be_promised_twice() -> None:
    promise = Promise(metric="x", unit=Unit.COUNT)
    with pytest.raises(ValidationError, match="promised twice"):
        Contract(engine=Engine.VLLM, since="0.1", until="0.2", promises=(promise, promise))
