"""Contracts of exporters and of the other engines, on the scrapes that were captured of them."""

from __future__ import annotations

import re

import pytest

from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.serving.contracts import Exporter, contract_for
from optiinfra.serving.exposition import exposition_of
from optiinfra.serving.scrapes import ScrapeReadings, levels, read
from optiinfra.serving.units import ExposedUnit
from tests.captures import captures, dcgm_counters, needs_data
from tests.exposition import histogram, reading, reason, scrape, value

DCGM, NODE = contract_for(Exporter.DCGM), contract_for(Exporter.NODE)
TRITON, TGI = contract_for(Engine.TENSORRT_LLM), contract_for(Engine.TGI)
LLAMA_CPP, NVML = contract_for(Engine.LLAMA_CPP), contract_for(Exporter.NVML)
GPU = 'gpu="0",UUID="GPU-1",Hostname="h1"'


def gaps(readings: ScrapeReadings) -> dict[str, UnknownReason]:
    return {gap.metric: gap.reason for gap in readings.gaps}


# DCGM


@needs_data
def test_a_gpu_and_its_slice_are_told_apart_and_never_added() -> None:
    readings = read(DCGM, None, scrape(captures()["dcgm_exporter_a100_mig_captured"]))
    uuid = "GPU-34319582-d595-d1c7-d1d2-179bcfa61660"
    busy = {
        s.labels.get("mig_instance"): s for s in readings.samples if s.metric == "gpu_busy_fraction"
    }
    assert {name: s.reading for name, s in busy.items()} == {
        None: Known(value=0.995630), "13": Known(value=0.995687),
    }  # fmt: skip
    assert busy["13"].labels == {
        "gpu": "0", "uuid": uuid, "host": "ub20-a100-k8s", "mig_instance": "13",
        "mig_profile": "1g.5gb", "contract": "assumed",
    }  # fmt: skip
    assert value(readings, "gpu_memory_used_fraction") == pytest.approx(4845 / (4845 + 35690))
    assert value(readings, "gpu_temperature_celsius") == 61
    assert value(readings, "gpu_power_watts") == pytest.approx(409.692)
    assert gaps(readings) == {}


@needs_data
def test_energy_that_was_counted_is_the_mean_power() -> None:
    text = captures()["dcgm_exporter_a100_mig_captured"]
    later = text.replace("} 319159391", "} 323159391")
    readings = read(DCGM, None, scrape(later, 10), scrape(text))
    assert value(readings, "gpu_power_mean_watts") == pytest.approx(400.0)


@pytest.mark.parametrize(("percent", "fraction"), [(0, 0.0), (1, 0.01), (87, 0.87), (100, 1.0)])
def test_a_percentage_becomes_a_fraction(percent: int, fraction: float) -> None:
    text = f"# TYPE DCGM_FI_DEV_GPU_UTIL gauge\nDCGM_FI_DEV_GPU_UTIL{{{GPU}}} {percent}\n"
    readings = read(DCGM, None, scrape(text))
    assert value(readings, "gpu_busy_fraction") == pytest.approx(fraction)


def test_a_percentage_where_a_fraction_is_promised_is_implausible() -> None:
    readings = read(DCGM, None, scrape(f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{GPU}}} 87\n"))
    assert reason(readings, "gpu_busy_fraction") is UnknownReason.IMPLAUSIBLE
    assert gaps(readings)["gpu_busy_fraction"] is UnknownReason.IMPLAUSIBLE


def test_reserved_memory_counts_where_it_is_exposed() -> None:
    names = {"FB_USED": 10, "FB_FREE": 80, "FB_RESERVED": 10}
    text = "".join(f"DCGM_FI_DEV_{name}{{{GPU}}} {mib}\n" for name, mib in names.items())
    assert value(read(DCGM, None, scrape(text)), "gpu_memory_used_fraction") == pytest.approx(0.1)
    none = text.replace(" 10\n", " 0\n").replace(" 80\n", " 0\n")
    assert reason(read(DCGM, None, scrape(none)), "gpu_memory_used_fraction") is (
        UnknownReason.IMPLAUSIBLE
    )


@needs_data
def test_every_field_of_the_dcgm_contract_is_one_that_the_exporter_knows() -> None:
    known = dcgm_counters()
    words = {
        ExposedUnit.PERCENT: "%", ExposedUnit.CELSIUS: "in C", ExposedUnit.WATTS: "in W",
        ExposedUnit.MILLIJOULES: "in mJ", ExposedUnit.FRACTION: "Ratio",
    }  # fmt: skip
    for source in (s for p in DCGM.promises for s in p.sources):
        for selection in source.selections():
            assert selection.name in known
        kind, about = known[source.name]
        assert kind == source.type.value
        if not source.per:
            assert words[source.unit] in about


# node exporter


def node_scrape(idle_s: float, busy_s: float, boot: int = 1_418_183_276) -> str:
    cpu = "".join(
        f'node_cpu_seconds_total{{cpu="0",mode="{mode}"}} {seconds}\n'
        for mode, seconds in (("idle", idle_s), ("iowait", 0), ("user", busy_s))
    )
    return (
        f"# TYPE node_boot_time_seconds gauge\nnode_boot_time_seconds {boot}\n"
        f"# TYPE node_cpu_seconds_total counter\n{cpu}"
        "# TYPE node_memory_MemTotal_bytes gauge\nnode_memory_MemTotal_bytes 100\n"
        "# TYPE node_memory_MemAvailable_bytes gauge\nnode_memory_MemAvailable_bytes 25\n"
        "# TYPE node_filesystem_size_bytes gauge\n"
        'node_filesystem_size_bytes{mountpoint="/",fstype="ext4"} 80\n'
        'node_filesystem_size_bytes{mountpoint="/",fstype="rootfs"} 80\n'
        'node_filesystem_size_bytes{mountpoint="/boot",fstype="ext4"} 1\n'
        "# TYPE node_filesystem_free_bytes gauge\n"
        'node_filesystem_free_bytes{mountpoint="/",fstype="ext4"} 20\n'
        "# TYPE node_network_receive_bytes_total counter\n"
        f'node_network_receive_bytes_total{{device="eth0"}} {busy_s * 100}\n'
        'node_network_receive_bytes_total{device="lo"} 999\n'
        "# TYPE node_network_transmit_bytes_total counter\n"
        f'node_network_transmit_bytes_total{{device="eth0"}} {busy_s * 10}\n'
        "# TYPE node_exporter_build_info gauge\n"
        'node_exporter_build_info{version="1.9.1"} 1\n'
    )


def test_a_machine_is_read_in_fractions_and_bytes_a_second() -> None:
    now, before = scrape(node_scrape(108, 12), 10, None), scrape(node_scrape(100, 10), 0, None)
    readings = read(NODE, None, now, before)
    assert gaps(readings) == {}
    assert value(readings, "host_cpu_busy_fraction") == pytest.approx(0.2)
    assert value(readings, "host_memory_used_fraction") == pytest.approx(0.75)
    assert value(readings, "host_disk_used_fraction") == pytest.approx(0.75)
    assert value(readings, "host_received_bytes_per_s") == pytest.approx(20)
    assert value(readings, "host_sent_bytes_per_s") == pytest.approx(2)


def test_a_machine_that_was_booted_again_counts_from_its_boot() -> None:
    now = scrape(node_scrape(200, 50, boot=1_500_000_000), 10)
    readings = read(NODE, None, now, scrape(node_scrape(100, 10)))
    assert value(readings, "host_cpu_busy_fraction") == pytest.approx(0.2)
    assert value(readings, "host_received_bytes_per_s") == pytest.approx(500)


@needs_data
def test_the_captured_machine_tells_its_cpu_and_what_it_lacks_is_unknown() -> None:
    text = captures()["node_exporter_e2e_fixture"]
    later = text.replace('{cpu="0",mode="user"} 444.9', '{cpu="0",mode="user"} 448.9').replace(
        '{cpu="0",mode="idle"} 10870.69', '{cpu="0",mode="idle"} 10876.69'
    )
    readings = read(NODE, None, scrape(later, 10), scrape(text))
    assert value(readings, "host_cpu_busy_fraction") == pytest.approx(0.4)
    assert gaps(readings) == {
        "host_memory_used_fraction": UnknownReason.MISSING,
        "host_disk_used_fraction": UnknownReason.MISSING,
    }
    assert reason(readings, "host_received_bytes_per_s") is UnknownReason.NO_TRAFFIC


# NVML


def test_what_the_driver_answers_is_read_by_its_contract() -> None:
    answers = {
        "nvmlDeviceGetUtilizationRates.gpu": 75.0, "nvmlDeviceGetTemperature": 999.0,
        "nvmlDeviceGetMemoryInfo.used": 20.0, "nvmlDeviceGetMemoryInfo.total": 80.0,
    }  # fmt: skip
    found = levels(NVML, exposition_of(answers))
    assert found["gpu_busy_fraction"] == Known(value=0.75)
    assert found["gpu_memory_used_fraction"] == Known(value=0.25)
    reasons = {m: r.reason for m, r in found.items() if isinstance(r, Unknown)}
    assert reasons == {
        "gpu_temperature_celsius": UnknownReason.IMPLAUSIBLE,
        "gpu_power_watts": UnknownReason.MISSING,
    }


def test_the_driver_gives_percent_and_milliwatts() -> None:
    units = {s.name: s.unit for p in NVML.promises for s in p.sources}
    assert units["nvmlDeviceGetUtilizationRates.gpu"] is ExposedUnit.PERCENT
    assert units["nvmlDeviceGetPowerUsage"] is ExposedUnit.MILLIWATTS


# Other engines


@needs_data
def test_triton_is_read_and_a_queue_that_it_does_not_tell_is_unknown() -> None:
    readings = read(TRITON, "r1", scrape(captures()["triton_tensorrtllm_captured"]))
    assert value(readings, "requests_running") == 1
    assert value(readings, "max_num_seqs") == 512
    assert value(readings, "kv_capacity_tokens") == 6239 * 64
    assert value(readings, "kv_usage_fraction") == pytest.approx(1 / 6239)
    assert gaps(readings) == {
        "requests_waiting": UnknownReason.MISSING, "requests_per_s": UnknownReason.MISSING,
    }  # fmt: skip


def test_triton_counts_first_responses_in_milliseconds() -> None:
    name = "nv_inference_first_response_histogram_ms"
    before = histogram(name, {"100": 0, "500": 0, "+Inf": 0})
    now = histogram(name, {"100": 3, "500": 4, "+Inf": 4}, 400)
    readings = read(TRITON, "r1", scrape(now, 5), scrape(before))
    assert value(readings, "ttft_s", quantile="mean") == pytest.approx(0.1)
    assert value(readings, "ttft_s_bucket", ge="0.1", le="0.5") == 1
    quantile = reading(readings, "ttft_s", quantile="p99")
    assert isinstance(quantile, Known)
    assert 0.1 < quantile.value <= 0.5


@needs_data
def test_llama_cpp_tells_tokens_and_nothing_of_its_cache() -> None:
    text = captures()["llamacpp_2025-06_captured_partial"]
    later = text.replace("tokens_total 143", "tokens_total 243").replace("total 673", "total 703")
    readings = read(LLAMA_CPP, "r1", scrape(later, 10), scrape(text))
    assert value(readings, "prompt_tokens_per_s") == 10
    assert value(readings, "generation_tokens_per_s") == 3
    assert reason(readings, "kv_usage_fraction") is UnknownReason.NOT_SUPPORTED
    assert gaps(readings) == {
        "requests_running": UnknownReason.MISSING, "requests_waiting": UnknownReason.MISSING,
    }  # fmt: skip


def tgi_scrape(requests: int) -> str:
    """Names as TGI writes them: counters without `_total`."""
    return (
        f"# TYPE tgi_request_success counter\ntgi_request_success {requests}\n"
        "# TYPE tgi_batch_current_size gauge\ntgi_batch_current_size 4\n"
        "# TYPE tgi_queue_size gauge\ntgi_queue_size 2\n"
        + histogram(
            "tgi_request_mean_time_per_token_duration",
            {"0.05": requests, "0.1": requests, "+Inf": requests},
            0.04 * requests,
        )
        + histogram("tgi_request_generated_tokens", {"10": 0, "+Inf": requests}, 100.0 * requests)
    )


def test_tgi_is_read_and_what_it_never_tells_is_unknown_for_good() -> None:
    readings = read(TGI, "r1", scrape(tgi_scrape(30), 10, "3.3.5"), scrape(tgi_scrape(10)))
    assert value(readings, "requests_running") == 4
    assert value(readings, "requests_waiting") == 2
    assert value(readings, "requests_per_s") == 2
    assert value(readings, "generation_tokens_per_s") == 200
    assert value(readings, "tpot_s", quantile="mean") == pytest.approx(0.04)
    for metric in ("ttft_s", "kv_usage_fraction", "errors_per_s"):
        assert reason(readings, metric) is UnknownReason.NOT_SUPPORTED
    assert all(s.labels["contract"] == "assumed" for s in readings.samples)


@needs_data
def test_every_capture_is_read_by_a_contract_of_its_own_without_an_invented_zero() -> None:
    own = {
        "dcgm": DCGM, "llamacpp": LLAMA_CPP, "node": NODE, "triton": TRITON,
        "vllm": contract_for(Engine.VLLM),
    }  # fmt: skip
    for name, text in captures().items():
        contract = own[re.split("[^a-z]", name)[0]]
        readings = read(contract, "r1", scrape(text, 10), scrape(text))
        assert any(isinstance(s.reading, Known) for s in readings.samples), name
        named = {s.name for p in contract.promises for s in p.sources}
        absent = {one for one in named if one not in text}
        for promise in contract.promises:
            if promise.sources and {s.name for s in promise.sources} <= absent:
                found = [s.reading for s in readings.samples if s.metric == promise.metric]
                assert found, f"{name}: {promise.metric}"
                assert all(isinstance(one, Unknown) for one in found)
