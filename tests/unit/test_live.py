"""Perf cards against live traffic: the mix, the cache, the time scale."""

from __future__ import annotations

import pytest

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.cards import load_card
from optiinfra.serving.histograms import Distribution, distribution
from optiinfra.serving.live import CardModel, length_mix
from optiinfra.serving.scheduler import SchedulerConfig

CARD = load_card("h100-8b-fp16-tp1")
MIX = [(400, 80), (900, 150)]


def test_a_mix_has_the_measured_means() -> None:
    prompts = distribution({100.0: 10, 1000.0: 50}, 50 * 320.0)
    outputs = distribution({50.0: 25, 200.0: 50}, 50 * 70.0)
    mix = length_mix(prompts, outputs)
    assert len(mix) == 64
    assert sum(p for p, _ in mix) / 64 == pytest.approx(320, rel=0.01)
    assert sum(o for _, o in mix) / 64 == pytest.approx(70, rel=0.01)


def test_a_mix_needs_finished_requests() -> None:
    with pytest.raises(Rejected, match="no request has finished"):
        length_mix(Distribution(), Distribution())


def test_forecasts_are_of_the_rounded_load_and_cached() -> None:
    model = CardModel(CARD)
    first = model.forecast(MIX, 5.0)
    assert first.rate_rps == 5.0
    assert model.forecast([(401, 80), (899, 151)], 5.05).ttft_p95_s == first.ttft_p95_s
    assert len(model._forecasts) == 1
    assert model.forecast(MIX, 0.0).ttft_p95_s <= first.ttft_p95_s
    assert model.error_band == CARD.error_band


def test_an_engine_ten_times_as_fast_carries_ten_times_the_rate() -> None:
    plain, fast = CardModel(CARD), CardModel(CARD, time_scale=10.0)
    slow_slo, fast_slo = (0.5, 0.05), (0.05, 0.005)
    assert fast.capacity_rps(MIX, fast_slo) == pytest.approx(10 * plain.capacity_rps(MIX, slow_slo))
    assert fast.forecast(MIX, 50.0).ttft_p95_s == pytest.approx(
        plain.forecast(MIX, 5.0).ttft_p95_s / 10
    )
    assert plain.capacity_rps(MIX, slow_slo) == plain.capacity_rps(MIX, slow_slo)
    assert len(plain._capacities) == 1


def test_requests_beyond_the_engines_limits_are_cut_to_them() -> None:
    model = CardModel(CARD, SchedulerConfig(max_model_len=100))
    assert model.forecast([(5000, 5000), (0, 0)], 1.0).ttft_p95_s > 0


def test_the_cache_forgets_its_oldest_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optiinfra.serving.live._MOST_CACHED", 1)
    model = CardModel(CARD, requests=20)
    model.forecast(MIX, 1.0)
    model.forecast(MIX, 2.0)
    assert len(model._forecasts) == 1
