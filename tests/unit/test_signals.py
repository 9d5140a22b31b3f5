"""What a window of stored samples says to the bottleneck finder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from optiinfra.schemas.telemetry import Known, Reading, Sample, Unit, Unknown, UnknownReason
from optiinfra.serving.cards import load_card
from optiinfra.serving.signals import NOT_READ, Beside, Signals, lifted, signals, with_limits
from optiinfra.serving.steps import decode_step_ms
from optiinfra.serving.windows import Window
from tests.telemetry import NOW, steady

CARD = load_card("h100-8b-fp16-tp1")
OFF = Unknown(reason=UnknownReason.NO_TRAFFIC, detail="nothing observed")


def gauges(metric: str, values: Sequence[float | Unknown], every_s: float = 10.0) -> list[Sample]:
    """The newest values of a metric, oldest first, at the times of `steady`."""
    return [
        Sample(
            metric=metric, unit=Unit.COUNT, replica="r1", window_s=every_s,
            reading=value if isinstance(value, Unknown) else Known(value=value),
            at=NOW - timedelta(seconds=every_s * (len(values) - 1 - number)),
        )
        for number, value in enumerate(values)
    ]  # fmt: skip


def window(*samples: Sample, replaced: Sequence[str] = ()) -> Window:
    series: dict[str, list[Sample]] = {}
    for sample in [s for s in steady("r1") if s.metric not in replaced] + list(samples):
        series.setdefault(sample.metric, []).append(sample)
    until = NOW + timedelta(milliseconds=1)
    return Window(NOW - timedelta(seconds=110), until, 30.0, series)


def value(reading: Reading) -> float:
    assert isinstance(reading, Known), reading
    return reading.value


def test_a_steady_replica_is_read_as_it_is() -> None:
    seen = signals(window(), "r1", Beside(max_num_seqs=Known(value=64)))
    assert value(seen.running) == 4
    assert value(seen.waiting) == 0
    assert value(seen.requests_per_s) == 2
    assert value(seen.max_num_seqs) == 64
    assert value(seen.ttft_mean_s) == pytest.approx(0.2)
    assert value(seen.prompt_length_tokens) == pytest.approx(500)


def test_what_was_not_scraped_is_unknown() -> None:
    seen = signals(window(), "r1", Beside())
    for name in ("kv_usage_fraction", "preemptions_per_s", "gpu_busy_fraction", "max_num_seqs"):
        assert isinstance(getattr(seen, name), Unknown)
    assert isinstance(signals(window(), "r2", Beside()).running, Unknown)


def test_levels_are_those_of_the_scrapes_that_saw_a_queue() -> None:
    samples = [
        *gauges("requests_running", [10, 64, 64]),
        *gauges("requests_waiting", [0, 5, 7]),
        *gauges("kv_usage_fraction", [0.1, 0.4, 0.5]),
    ]
    replaced = ("requests_running", "requests_waiting")
    seen = signals(window(*samples, replaced=replaced), "r1", Beside())
    assert value(seen.running) == 64
    assert value(seen.kv_usage_fraction) == pytest.approx(0.45)
    assert value(seen.waiting) == 4


def test_a_cap_that_the_engine_exposes_goes_before_the_configured_one() -> None:
    seen = signals(window(*gauges("max_num_seqs", [32])), "r1", Beside(Known(value=64)))
    assert value(seen.max_num_seqs) == 32


def test_hits_weigh_by_the_prompt_tokens_of_their_scrape() -> None:
    samples = [
        *gauges("prompt_tokens_per_s", [100, 300, 0]),
        *gauges("prefix_cache_hit_fraction", [0.0, 0.8, OFF]),
    ]
    seen = signals(window(*samples), "r1", Beside())
    assert value(seen.prefix_hit_fraction) == pytest.approx(0.6)
    assert value(seen.prefix_queries_per_s) == value(seen.prompt_tokens_per_s)


def test_prompts_without_any_query_mean_that_the_cache_is_off() -> None:
    samples = [
        *gauges("prompt_tokens_per_s", [100, 300, 200]),
        *gauges("prefix_cache_hit_fraction", [OFF, OFF, OFF]),
    ]
    seen = signals(window(*samples), "r1", Beside())
    assert value(seen.prefix_hit_fraction) == 0
    assert value(seen.prefix_queries_per_s) == 0


def test_hits_that_are_not_exposed_stay_unknown() -> None:
    seen = signals(window(*gauges("prompt_tokens_per_s", [100, 300])), "r1", Beside())
    assert isinstance(seen.prefix_hit_fraction, Unknown)
    assert isinstance(seen.prefix_queries_per_s, Unknown)


def test_a_card_gives_its_limits_with_its_error() -> None:
    load = Signals(
        running=Known(value=32), kv_usage_fraction=Known(value=0.25),
        kv_capacity_tokens=Known(value=400_000), prompt_length_tokens=Known(value=1000),
        prefix_hit_fraction=Known(value=0.5),
    )  # fmt: skip
    seen = with_limits(load, Beside(card=CARD))
    step_s = (decode_step_ms(CARD, 32, 100_000) + CARD.host_overhead_ms_per_step) / 1e3
    assert value(seen.decode_step_s) == pytest.approx(step_s)
    assert isinstance(seen.decode_step_s, Known)
    assert seen.decode_step_s.error == pytest.approx(step_s * CARD.error_band)
    assert value(seen.prefill_limit_tokens_per_s) > 500 / value(seen.prefill_alone_s)
    twice = with_limits(load, Beside(card=CARD, time_scale=2.0))
    assert value(twice.prefill_alone_s) == pytest.approx(value(seen.prefill_alone_s) / 2)


def test_without_a_card_or_a_load_the_limits_are_unknown() -> None:
    assert isinstance(with_limits(Signals(), Beside()).decode_step_s, Unknown)
    assert with_limits(Signals(), Beside(card=CARD)).prefill_alone_s == NOT_READ


def test_a_formula_is_unknown_as_soon_as_one_reading_is() -> None:
    assert lifted(lambda a, b: a / b, Known(value=1), Known(value=2)) == Known(value=0.5)
    assert lifted(lambda a, b: a / b, Known(value=1), NOT_READ) == NOT_READ
