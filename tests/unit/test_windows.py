"""Stored samples over a window: pooled quantiles, counts, offered load, and what is unknown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest

from optiinfra.schemas.answers import ANSWER_SCORE, GOLDEN, LIVE, SOURCE, TURNED_AWAY
from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.serving.windows import Window
from tests.telemetry import NOW, gone_dark, steady

DARK = Unknown(reason=UnknownReason.UNREACHABLE, detail="refused")


def window(samples: Sequence[Sample], span_s: float = 100.0, until: datetime = NOW) -> Window:
    series: dict[str, list[Sample]] = {ANSWER_SCORE: []}
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


def test_a_level_without_traffic_in_any_scrape_is_unknown() -> None:
    quiet = Unknown(reason=UnknownReason.NO_TRAFFIC, detail="")
    silent = [
        s.model_copy(update={"reading": quiet}) if s.metric == "requests_waiting" else s
        for s in steady("a", waiting=3)
    ]
    level = window(silent).level("requests_waiting", ["a"])
    assert (reason(level.reading), level.samples) == (UnknownReason.NO_TRAFFIC, 0)


def golden(
    replica: str, count: int, *, ago_s: float, run_s: float = 0.0, source: str = GOLDEN
) -> list[Sample]:
    """Prompts put to a replica `ago_s` before now, in a run that was over `run_s` later."""
    at = NOW - timedelta(seconds=ago_s - run_s)
    return [
        Sample(
            metric=ANSWER_SCORE, unit=Unit.SCORE, reading=DARK, at=at, window_s=run_s,
            replica=replica, labels={SOURCE: source, "unit": str(number)},
        )
        for number in range(count)
    ]  # fmt: skip


def test_golden_prompts_are_no_offered_load_of_the_replica_that_was_asked() -> None:
    busy = [*steady("a", rps=3), *steady("b", rps=2)]
    seen = window([*busy, *golden("a", 100, ago_s=40)])
    assert known(seen.offered(["a"])) == pytest.approx(2)
    assert known(seen.offered(["b"])) == pytest.approx(2)
    assert known(seen.offered(["a", "b"])) == pytest.approx(4)
    tapped = window([*busy, *golden("a", 100, ago_s=40, source=LIVE)])
    assert known(tapped.offered(["a"])) == pytest.approx(3)


def test_a_golden_prompt_that_was_turned_away_was_no_work() -> None:
    refused = [
        s.model_copy(update={"labels": {**s.labels, TURNED_AWAY: "true"}})
        for s in golden("a", 100, ago_s=40)
    ]
    assert known(window([*steady("a", rps=3), *refused]).offered(["a"])) == pytest.approx(3)


def test_golden_prompts_count_from_when_they_were_asked_not_from_when_they_were_recorded() -> None:
    before = golden("a", 50, ago_s=105, run_s=20)
    within = golden("a", 50, ago_s=15, run_s=15)
    seen = window([*steady("a", rps=2), *before, *within])
    assert known(seen.offered(["a"])) == pytest.approx(2 - 0.5)


def test_load_so_recent_that_its_golden_prompts_are_unrecorded_is_left_out() -> None:
    surge = [
        s.model_copy(update={"reading": Known(value=50)})
        if s.metric == "requests_per_s" and s.at > NOW - timedelta(seconds=20)
        else s
        for s in steady("a", rps=2)
    ]
    seen = window(surge)
    assert known(seen.offered(["a"])) > 10
    assert known(seen.offered(["a"], settle_s=20)) == pytest.approx(2)
    assert reason(seen.offered(["a"], settle_s=95)) is UnknownReason.STALE


def test_offered_load_is_never_negative() -> None:
    seen = window([*steady("a", rps=1), *golden("a", 500, ago_s=40), *steady("b", rps=1)])
    assert known(seen.offered(["a"])) == 0
    assert known(seen.offered(["a", "b"])) == pytest.approx(1), "each replica for itself"


def test_offered_load_is_unknown_where_golden_prompts_were_not_read() -> None:
    seen = window(steady("a"))
    unread = Window(
        seen.since, seen.until, seen.stale_s,
        {name: rows for name, rows in seen.series.items() if name != ANSWER_SCORE},
    )  # fmt: skip
    assert reason(unread.offered(["a"])) is UnknownReason.MISSING
