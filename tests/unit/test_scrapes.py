"""Scrapes read by their contract: *unknown* wherever a promise is broken, and never a zero."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason
from optiinfra.serving.contracts import Contract, ExposedType, Promise, Source, contract_for
from optiinfra.serving.exposition import parse
from optiinfra.serving.scrapes import Scrape, read, unread
from optiinfra.serving.units import ExposedUnit
from tests.exposition import T0, TPOT, TTFT, histogram, lines, reading, reason, scrape, value

VLLM = contract_for(Engine.VLLM)


def gauge(name: str, **more: Any) -> Source:
    return Source(name=name, type=ExposedType.GAUGE, unit=ExposedUnit.COUNT, **more)


def test_a_metric_that_is_missing_is_unknown_and_leaves_a_gap() -> None:
    text = lines() + histogram(TPOT, {"0.1": 0, "+Inf": 0})
    readings = read(VLLM, "r1", scrape(text, 10), scrape(text))
    assert reason(readings, "ttft_s", quantile="p95") is UnknownReason.MISSING
    assert ("ttft_s", UnknownReason.MISSING) in [(g.metric, g.reason) for g in readings.gaps]


def test_a_metric_under_another_versions_name_is_renamed() -> None:
    text = lines().replace("kv_cache_usage_perc", "gpu_cache_usage_perc")
    readings = read(VLLM, "r1", scrape(text))
    assert reason(readings, "kv_usage_fraction") is UnknownReason.RENAMED
    gap = next(g for g in readings.gaps if g.metric == "kv_usage_fraction")
    assert "vllm:kv_cache_usage_perc" in gap.detail
    assert "vllm:gpu_cache_usage_perc" in gap.detail


def test_a_metric_that_a_version_should_not_have_at_all_is_renamed_too() -> None:
    promise = Promise(
        metric="x", unit=Unit.COUNT,
        sources=(gauge("old", until="0.2"),),
    )  # fmt: skip
    contract = Contract(engine=Engine.VLLM, since="0.1", until="0.9", promises=(promise,))
    readings = read(contract, "r1", scrape("# TYPE old gauge\nold 1\n", 0, "0.5"))
    found = reading(readings, "x")
    assert isinstance(found, Unknown)
    assert "nothing for it" in found.detail


def test_a_required_metric_without_any_name_in_this_version_is_missing() -> None:
    promise = Promise(metric="x", unit=Unit.COUNT, required=True)
    contract = Contract(engine=Engine.VLLM, since="0.1", until="0.9", promises=(promise,))
    readings = read(contract, "r1", scrape("", 0, "0.5"))
    assert readings.gaps[0].detail == "x is not exposed"


def test_a_family_that_is_declared_without_a_value_has_no_traffic_yet() -> None:
    text = lines() + f"# TYPE {TTFT} histogram\n"
    readings = read(VLLM, "r1", scrape(text))
    assert reason(readings, "ttft_s", quantile="p95") is UnknownReason.NO_TRAFFIC
    assert "ttft_s" not in {g.metric for g in readings.gaps}


def test_a_value_exposed_twice_is_implausible() -> None:
    text = lines() + 'vllm:num_requests_waiting{engine="0"} 7\n'
    readings = read(VLLM, "r1", scrape(text))
    assert reason(readings, "requests_waiting") is UnknownReason.IMPLAUSIBLE
    twice = lines() + histogram(TTFT, {"1": 1, "+Inf": 1}) + histogram(TTFT, {"1": 1, "+Inf": 1})
    readings = read(VLLM, "r1", scrape(twice))
    assert reason(readings, "ttft_s", quantile="p95") is UnknownReason.IMPLAUSIBLE


@pytest.mark.parametrize("broken", [1.5, -0.1, float("nan"), float("inf")])
def test_a_usage_outside_of_0_to_1_is_implausible(broken: float) -> None:
    readings = read(VLLM, "r1", scrape(lines(kv_cache_usage_perc=broken)))
    assert reason(readings, "kv_usage_fraction") is UnknownReason.IMPLAUSIBLE
    assert "kv_usage_fraction" in {g.metric for g in readings.gaps}


def test_data_parallel_engines_add_up_and_usage_is_their_mean() -> None:
    second = lines(num_requests_running=6, kv_cache_usage_perc=0.7).replace('"0"', '"1"')
    readings = read(VLLM, "r1", scrape(lines() + second))
    assert value(readings, "requests_running") == 8
    assert value(readings, "kv_usage_fraction") == pytest.approx(0.6)


def test_a_counter_that_fell_counts_from_the_restart() -> None:
    before, now = lines(request_success_total=100), lines(request_success_total=30)
    readings = read(VLLM, "r1", scrape(now, 10), scrape(before))
    assert value(readings, "requests_per_s") == 3


def test_a_restart_is_seen_by_the_start_time_when_counters_have_overtaken() -> None:
    start = "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {}\n"
    ttft = histogram(TTFT, {"0.5": 90, "+Inf": 90}, 9)
    before = lines(request_success_total=100) + start.format(1000) + ttft
    now = lines(request_success_total=120) + start.format(2000) + ttft
    readings = read(VLLM, "r1", scrape(now, 10), scrape(before))
    assert value(readings, "requests_per_s") == 12
    assert value(readings, "ttft_s_bucket", le="0.5") == 90
    jitter = lines(request_success_total=120) + start.format(1001) + ttft
    readings = read(VLLM, "r1", scrape(jitter, 10), scrape(before))
    assert value(readings, "requests_per_s") == 2


def test_a_series_that_comes_back_after_a_gap_gives_no_rate_over_the_gap() -> None:
    whole = lines() + histogram(TTFT, {"0.5": 90, "+Inf": 90}, 9)
    hidden = "\n".join(x for x in lines().splitlines() if "request_success" not in x)
    readings = read(VLLM, "r1", scrape(whole, 10), scrape(hidden))
    metrics = {s.metric for s in readings.samples}
    assert "requests_per_s" not in metrics
    assert "ttft_s" not in metrics


def test_scrapes_that_do_not_go_forward_in_time_give_no_rates() -> None:
    readings = read(VLLM, "r1", scrape(lines()), scrape(lines()))
    assert "requests_per_s" not in {s.metric for s in readings.samples}


def test_pooled_histograms_publish_what_each_bin_counted() -> None:
    before = lines() + histogram(TTFT, {"0.25": 5, "0.5": 5, "+Inf": 5}, 1.0)
    now = lines() + histogram(TTFT, {"0.25": 8, "0.5": 9, "+Inf": 10}, 4.5)
    readings = read(VLLM, "r1", scrape(now, 5), scrape(before))
    assert value(readings, "ttft_s_bucket", ge="0.0", le="0.25") == 3
    assert value(readings, "ttft_s_bucket", ge="0.25", le="0.5") == 1
    assert value(readings, "ttft_s_bucket", ge="0.5", le="inf") == 1
    assert value(readings, "ttft_s_sum") == 3.5
    assert value(readings, "ttft_s", quantile="mean") == pytest.approx(0.7)
    assert value(readings, "ttft_s", quantile="p50") == pytest.approx(0.25 * 2.5 / 3)


def test_errors_are_read_from_http_answers_where_the_engine_has_no_own_count() -> None:
    http = '# TYPE http_requests_total counter\nhttp_requests_total{status="2xx"} 9\n'
    failed = http + 'http_requests_total{status="5xx"} 4\n'
    old = "0.10.2"
    readings = read(VLLM, "r1", scrape(lines() + failed, 2, old), scrape(lines() + http, 0, old))
    assert value(readings, "errors_per_s") == 2
    readings = read(VLLM, "r1", scrape(lines() + http, 2, old), scrape(lines() + http, 0, old))
    assert value(readings, "errors_per_s") == 0
    readings = read(VLLM, "r1", scrape(lines(), 2, old), scrape(lines(), 0, old))
    assert reason(readings, "errors_per_s") is UnknownReason.NOT_SUPPORTED


def test_prefix_cache_hits_are_a_share_of_the_tokens_asked_for() -> None:
    def cache(hits: int, queries: int) -> str:
        rows = (("hits", hits), ("queries", queries))
        return lines() + "".join(
            f"# TYPE vllm:prefix_cache_{n}_total counter\nvllm:prefix_cache_{n}_total {v}\n"
            for n, v in rows
        )

    readings = read(VLLM, "r1", scrape(cache(30, 100), 5), scrape(cache(10, 20)))
    assert value(readings, "prefix_cache_hit_fraction") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("labels", "capacity"),
    [
        ('num_gpu_blocks="100",block_size="16"', 1600.0),
        ('num_gpu_blocks="None",block_size="16"', None),
        ('num_gpu_blocks="inf",block_size="16"', None),
        ('kv_cache_size_tokens="777",num_gpu_blocks="1",block_size="1"', 777.0),
    ],
)
def test_kv_capacity_is_read_from_the_labels_of_the_cache_configuration(
    labels: str, capacity: float | None
) -> None:
    info = f"# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{{labels}}} 1\n"
    readings = read(VLLM, "r1", scrape(lines() + info))
    found = reading(readings, "kv_capacity_tokens")
    assert (found.value if isinstance(found, Known) else None) == capacity


@pytest.mark.parametrize(
    ("version", "flagged"),
    [("0.32.0", False), ("0.33.0", False), ("0.34.0", True), ("1.2.3", True), (None, True),
     ("dev", True), ("0.32.0+emulator", False)],
)  # fmt: skip
def test_versions_beyond_the_table_are_read_by_the_newest_rules_and_flagged(
    version: str | None,
    flagged: bool,  # noqa: FBT001
) -> None:
    readings = read(VLLM, "r1", scrape(lines(), 0, version))
    assert value(readings, "kv_usage_fraction") == 0.5
    assert all((s.labels.get("contract") == "assumed") is flagged for s in readings.samples)


def test_an_emulated_server_is_marked_on_every_sample() -> None:
    now = Scrape(T0, parse(lines()), "0.32.0", emulated=True)
    assert all(s.labels["emulated"] == "true" for s in read(VLLM, "r1", now).samples)


def test_a_server_that_cannot_be_scraped_has_every_required_metric_unknown() -> None:
    why = Unknown(reason=UnknownReason.UNREACHABLE, detail="refused")
    samples = unread(VLLM, "r1", T0, why)
    assert {s.metric for s in samples} == {p.metric for p in VLLM.promises if p.required}
    assert all(s.reading == why and s.replica == "r1" for s in samples)
    assert {s.labels.get("quantile") for s in samples if s.metric == "ttft_s"} == {
        "p50", "p95", "p99", "mean",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["<html>no</html>", "a{b 1", "a b"])
def test_text_that_is_not_an_exposition_is_rejected(text: str) -> None:
    with pytest.raises(Rejected, match="not Prometheus text"):
        parse(text)


def test_samples_keep_the_time_the_replica_and_the_window() -> None:
    readings = read(VLLM, "r1", scrape(lines(), 10), scrape(lines()))
    one: Sample = next(s for s in readings.samples if s.metric == "requests_per_s")
    assert (one.at, one.replica, one.window_s) == (T0 + timedelta(seconds=10), "r1", 10)


@pytest.mark.parametrize(
    "broken",
    [
        histogram(TTFT, {"0.5": 9, "1": 4, "+Inf": 9}),
        histogram(TTFT, {"0.5": 9, "1": 9}),
        histogram(TTFT, {"0.5": 0, "+Inf": float("inf")}),  # type: ignore[dict-item]
        histogram(TTFT, {"0.5": 1, "half": 2, "+Inf": 3}),
        histogram(TTFT, {"0.5": 1, "+Inf": 3}, float("nan")),
        f'# TYPE {TTFT} histogram\n{TTFT}_bucket{{le="+Inf"}} 3\n',
    ],
    ids=["falling", "no end", "infinite", "no number", "sum is no number", "no sum"],
)
def test_a_broken_histogram_is_implausible_and_leaves_a_gap(broken: str) -> None:
    whole = lines() + histogram(TTFT, {"0.5": 1, "1": 1, "+Inf": 1})
    readings = read(VLLM, "r1", scrape(lines() + broken, 5), scrape(whole))
    assert reason(readings, "ttft_s", quantile="p95") is UnknownReason.IMPLAUSIBLE
    assert "ttft_s" in {g.metric for g in readings.gaps}
    readings = read(VLLM, "r1", scrape(whole, 5), scrape(lines() + broken))
    assert "ttft_s" not in {s.metric for s in readings.samples}


def test_other_buckets_than_those_that_ship_are_read_and_marked() -> None:
    before = lines() + histogram(TTFT, {"0.2": 0, "0.3": 0, "+Inf": 0})
    now = lines() + histogram(TTFT, {"0.2": 0, "0.3": 4, "+Inf": 4}, 1.0)
    readings = read(VLLM, "r1", scrape(now, 5), scrape(before))
    found = reading(readings, "ttft_s", quantile="p50", buckets="other")
    assert isinstance(found, Known)
    assert found.value == pytest.approx(0.25)
    assert found.error == pytest.approx(0.05)


def test_a_level_that_is_declared_without_a_value_is_missing_and_not_at_rest() -> None:
    name = "vllm:kv_cache_usage_perc"
    text = "\n".join(x for x in lines().splitlines() if not x.startswith(name)) + "\n"
    readings = read(VLLM, "r1", scrape(text))
    assert reason(readings, "kv_usage_fraction") is UnknownReason.MISSING
    assert "kv_usage_fraction" in {g.metric for g in readings.gaps}


def test_what_an_engine_may_leave_out_is_not_supported_and_no_gap() -> None:
    text = lines() + "# TYPE vllm:cache_config_info gauge\n"
    readings = read(VLLM, "r1", scrape(text))
    for metric in ("kv_capacity_tokens", "errors_per_s", "max_num_seqs"):
        assert reason(readings, metric) is UnknownReason.NOT_SUPPORTED
        assert metric not in {g.metric for g in readings.gaps}


def test_a_promise_that_came_with_a_later_version_is_not_missed_before() -> None:
    readings = read(VLLM, "r1", scrape(lines(), 0, "0.5.5"))
    assert reason(readings, "queue_time_s", quantile="p95") is UnknownReason.NOT_SUPPORTED
    assert "queue_time_s" not in {g.metric for g in readings.gaps}
    assert "e2e_s" in {g.metric for g in readings.gaps}


def test_a_value_that_stands_for_none_is_not_supported() -> None:
    text = lines() + "# TYPE vllm:gpu_prefix_cache_hit_rate gauge\n"
    text += "vllm:gpu_prefix_cache_hit_rate{} -1\n"
    readings = read(VLLM, "r1", scrape(text, 0, "0.6.6"))
    assert reason(readings, "prefix_cache_hit_fraction") is UnknownReason.NOT_SUPPORTED
    assert "prefix_cache_hit_fraction" not in {g.metric for g in readings.gaps}


def test_a_ratio_without_its_other_half_is_missing() -> None:
    text = lines() + "# TYPE vllm:prefix_cache_hits counter\nvllm:prefix_cache_hits_total 5\n"
    readings = read(VLLM, "r1", scrape(text, 5), scrape(text))
    assert "prefix_cache_hit_fraction" in {g.metric for g in readings.gaps}


@pytest.mark.parametrize("labels", ['num_gpu_blocks="100",block_size="16"', 'num_gpu_blocks="9"'])
def test_a_capacity_of_which_one_engine_tells_nothing_is_unknown(labels: str) -> None:
    name = "vllm:cache_config_info"
    text = f'# TYPE {name} gauge\n{name}{{engine="0",num_gpu_blocks="100",block_size="16"}} 1\n'
    text += f'{name}{{engine="1",{labels}}} 1\n'
    found = reading(read(VLLM, "r1", scrape(lines() + text)), "kv_capacity_tokens")
    assert isinstance(found, Known) is ("block_size" in labels)


def test_a_counter_that_is_no_number_gives_no_rate() -> None:
    before, now = lines(), lines(request_success_total=float("nan"))
    readings = read(VLLM, "r1", scrape(now, 5), scrape(before))
    assert reason(readings, "requests_per_s") is UnknownReason.IMPLAUSIBLE


ROUND = st.tuples(st.integers(0, 50), st.integers(0, 50))


@given(st.lists(ROUND, min_size=2, max_size=12), st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_counters_survive_the_restart_of_any_engine_at_any_time(
    rounds: list[tuple[int, int]], restarts: tuple[int, int]
) -> None:
    """What is counted after a restart is neither lost nor taken off what was counted before."""
    totals, seen, before = [10_000, 10_000], 0.0, None
    for number, added in enumerate(rounds):
        kept = [0 if number == at else total for total, at in zip(totals, restarts, strict=True)]
        totals = [total + more for total, more in zip(kept, added, strict=True)]
        rows = "".join(
            f'vllm:request_success_total{{engine="{engine}"}} {total}\n'
            for engine, total in enumerate(totals)
        )
        now = scrape(f"# TYPE vllm:request_success counter\n{rows}", float(number))
        if before is not None:
            seen += value(read(VLLM, "r1", now, before), "requests_per_s")
        before = now
    assert seen == sum(sum(added) for added in rounds[1:])
