"""Stored samples over a window: pooled quantiles, counts, offered load, and what is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from optiinfra.schemas.telemetry import Known, Reading, Sample, Unknown, UnknownReason
from optiinfra.serving.windows import Window
from tests.telemetry import NOW, gone_dark, steady

DARK = Unknown(reason=UnknownReason.UNREACHABLE, detail="refused")


def window(samples: Sequence[Sample], span_s: float = 100.0, until: datetime = NOW) -> Window:
    series: dict[str, list[Sample]] = {}
    for one in sorted(samples, key=lambda s: s.at):
        series.setdefault(one.metric, []).append(one)
    return Window(until - timedelta(seconds=span_s), until, 30.0, series)


def known(reading: Reading) -> float:
    assert isinstance(reading, Known), reading
    return reading.value


def reason(reading: Reading) -> UnknownReason:
    assert isinstance(reading, Unknown), reading
    return reading.reason


def test_latencies_of_all_replicas_are_pooled_by_request() -> None:
    seen = window([*steady("a", rps=9, ttft_s=0.1), *steady("b", rps=1, ttft_s=1.0)])
    pooled = seen.quantile("ttft_s", 0.95, ["a", "b"])
    assert 0.9 < known(pooled.reading) <= 1.01
    assert pooled.samples == 1000
    assert known(seen.quantile("ttft_s", 0.5, ["a", "b"]).reading) < 0.11
    assert known(seen.distribution("ttft_s", ["a"]).mean) == pytest.approx(0.1)


def test_scrapes_that_began_before_the_window_do_not_count() -> None:
    seen = window(steady("a", rps=1), span_s=35)
    assert seen.quantile("ttft_s", 0.95, ["a"]).samples == 30
    assert known(seen.count("requests_per_s", ["a"])) == 30
    assert known(seen.rate("requests_per_s", ["a"])) == 1


def test_one_unknown_replica_makes_the_whole_unknown() -> None:
    dark = [*steady("a"), *gone_dark("b", DARK)]
    seen = window(dark)
    assert reason(seen.quantile("ttft_s", 0.95, ["a", "b"]).reading) is UnknownReason.UNREACHABLE
    assert reason(seen.offered(["a", "b"])) is UnknownReason.UNREACHABLE
    assert reason(seen.level("requests_waiting", ["a", "b"]).reading) is UnknownReason.UNREACHABLE
    assert reason(seen.count("requests_per_s", ["a", "b"])) is UnknownReason.UNREACHABLE
    assert known(seen.offered(["a"])) == 2


def test_a_replica_not_scraped_lately_is_stale() -> None:
    seen = window(steady("a", until=NOW - timedelta(seconds=31)))
    found = seen.newest("requests_running", "a")
    assert reason(found) is UnknownReason.STALE
    assert reason(seen.newest("requests_running", "never seen")) is UnknownReason.STALE


def test_without_replicas_nothing_is_known() -> None:
    seen = window(steady("a"))
    assert reason(seen.quantile("ttft_s", 0.95, []).reading) is UnknownReason.UNREACHABLE
    assert reason(seen.level("requests_waiting", []).reading) is UnknownReason.UNREACHABLE
    assert reason(seen.offered([])) is UnknownReason.UNREACHABLE


def test_a_replica_without_requests_adds_nothing_and_is_not_a_gap() -> None:
    idle = Unknown(reason=UnknownReason.NO_TRAFFIC, detail="nothing observed")
    quiet = [s.model_copy(update={"reading": idle}) if s.labels.get("quantile") else s
             for s in steady("b", rps=0)]  # fmt: skip
    seen = window([*steady("a"), *quiet])
    assert seen.quantile("ttft_s", 0.95, ["a", "b"]).samples == 200
    assert reason(seen.quantile("ttft_s", 0.95, ["b"]).reading) is UnknownReason.NO_TRAFFIC
    assert known(seen.offered(["a", "b"])) == 2


def test_offered_load_counts_the_growth_of_the_queue() -> None:
    samples = steady("a", rps=1)
    for position, one in enumerate(s for s in samples if s.metric == "requests_waiting"):
        grown = one.model_copy(update={"reading": Known(value=30.0 * position)})
        samples[samples.index(one)] = grown
    assert known(window(samples).offered(["a"])) == pytest.approx(1 + 3)


def test_a_single_scrape_gives_no_load_yet() -> None:
    seen = window(steady("a", scrapes=1))
    assert reason(seen.offered(["a"])) is UnknownReason.STALE


def test_rates_need_a_scrape_that_lies_wholly_in_the_window() -> None:
    seen = window(steady("a", scrapes=1), span_s=5)
    assert reason(seen.count("requests_per_s", ["a"])) is UnknownReason.STALE


def test_unknown_bins_and_sums_are_left_out() -> None:
    samples = steady("a", scrapes=2)
    broken = [
        s.model_copy(update={"reading": DARK})
        if s.metric in {"ttft_s_bucket", "ttft_s_sum"} and s.at == NOW
        else s
        for s in samples
    ]
    assert window(broken).distribution("ttft_s", ["a"]).count == 20


def test_levels_are_means_over_scrapes() -> None:
    level = window(steady("a", waiting=3)).level("requests_waiting", ["a"])
    assert (known(level.reading), level.samples) == (3, 10 + 1)
    assert window([]).span_s == 100
