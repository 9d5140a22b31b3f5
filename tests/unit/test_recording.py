"""Recordings of the emulated engine in virtual time."""

from __future__ import annotations

import pytest

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.cards import load_card
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.serving.simulation import Arrival, poisson_arrivals, simulate
from optiinfra.twin.defects import Defect
from optiinfra.twin.endpoints import Emulation
from optiinfra.twin.recording import Recording, record

CARD = load_card("h100-8b-fp16-tp1")
ARRIVALS = poisson_arrivals([(400, 60), (900, 30)], 8.0, requests=120, seed=3)


def recorded(arrivals: list[Arrival], *hidden: str) -> Recording:
    emulation = Emulation(
        card=CARD, model="m", seed=0, time_scale=1.0, scheduler=SchedulerConfig(),
        defect=Defect(hide_metrics=hidden),
    )  # fmt: skip
    return record(emulation, arrivals, scrape_every_s=5.0, scrapes=6)


def test_a_recording_repeats_exactly() -> None:
    assert recorded(ARRIVALS) == recorded(ARRIVALS)


def test_virtual_time_gives_the_latencies_of_the_simulator() -> None:
    made, expected = recorded(ARRIVALS), simulate(CARD, ARRIVALS)
    by_arrival = {round(one.arrived_s, 9): one for one in made.served}
    assert len(by_arrival) == len(ARRIVALS)
    for one in expected:
        seen = by_arrival[round(one.arrived_s, 9)]
        assert seen.ttft_s == pytest.approx(one.ttft_s, abs=1e-3)
        assert seen.tpot_s == pytest.approx(one.tpot_s, rel=0.05)


def test_scrapes_stand_at_their_times_and_show_the_device_at_work() -> None:
    made = recorded(ARRIVALS)
    assert [shot.at_s for shot in made.shots] == [0, 5, 10, 15, 20, 25, 30]
    assert made.shots[1].gpu_busy_fraction > 0.5
    assert made.shots[-1].gpu_busy_fraction == 0
    assert 'vllm:request_success_total{engine="0",finished_reason="stop"' in made.shots[-1].text


def test_hidden_families_are_left_out() -> None:
    made = recorded([], "kv_cache_usage_perc", "vllm:kv_cache_usage_perc")
    assert "kv_cache_usage_perc{" not in made.shots[-1].text
    assert made.served == []


def test_what_has_not_ended_has_no_time_per_token() -> None:
    made = recorded([Arrival(29.9, 400, 500)])
    assert [(one.ended_s, one.tpot_s) for one in made.served] == [(None, None)]


def test_a_request_that_can_never_fit_is_refused() -> None:
    with pytest.raises(ExceptionGroup) as refused:
        recorded([Arrival(1.0, 100_000, 10)])
    assert refused.group_contains(Rejected)
