"""The load forecast: seasonal where history suffices, head-room from its own past errors."""

from __future__ import annotations

from math import pi, sin
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.agents.resource.forecast import (
    ForecastPolicy,
    LoadForecast,
    LoadPoint,
    forecast_load,
)
from optiinfra.schemas.telemetry import Known, Unknown

DAY = 86_400.0
POLICY = ForecastPolicy(bin_s=300, horizon_s=900, recent_s=1800)


def day_curve(at_s: float) -> float:
    return 10 + 8 * sin(2 * pi * at_s / DAY)


def history(days: float, noise: float = 0.0, seed: int = 1) -> list[LoadPoint]:
    random = Random(seed)
    return [
        LoadPoint(300.0 * k, max(0.0, day_curve(300.0 * k) * (1 + random.gauss(0, noise))))
        for k in range(int(days * DAY / 300))
    ]


def forecast(points: list[LoadPoint], policy: ForecastPolicy = POLICY) -> LoadForecast:
    found = forecast_load(points, points[-1].at_s, policy)
    assert isinstance(found, LoadForecast), found
    return found


def test_a_daily_profile_sees_the_rise_before_it_comes() -> None:
    points = history(3.02)
    found = forecast(points)
    ahead = max(day_curve(points[-1].at_s + s) for s in range(0, 901, 300))
    assert found.method == "seasonal"
    assert found.mid_rps == pytest.approx(ahead, rel=0.1)
    assert found.high_rps >= ahead


def test_head_room_covers_the_share_of_peaks_that_it_promises() -> None:
    found = forecast(history(4, noise=0.2))
    assert isinstance(found.coverage, Known)
    assert found.coverage.value == pytest.approx(0.95, abs=0.05)
    assert found.high_rps > found.mid_rps


def test_the_forecast_covers_peaks_that_it_has_not_seen() -> None:
    points = history(6, noise=0.2, seed=7)
    covered = []
    for end in range(1000, 1690, 10):
        found = forecast(points[:end])
        covered.append(max(p.rps for p in points[end : end + 3]) <= found.high_rps)
    assert sum(covered) / len(covered) >= 0.9


def test_a_short_history_is_a_level_with_a_wide_unproven_interval() -> None:
    points = [LoadPoint(300.0 * k, rps) for k, rps in enumerate([4, 6, 5, 5, 4, 6])]
    found = forecast(points)
    assert found.method == "level"
    assert found.mid_rps == 5
    assert found.high_rps > 6
    assert isinstance(found.coverage, Unknown)
    assert "too few" in found.coverage.detail


def test_a_history_shorter_than_the_horizon_is_spread_by_its_own_readings() -> None:
    policy = ForecastPolicy(bin_s=10, horizon_s=600, recent_s=60)
    found = forecast([LoadPoint(10.0 * k, rps) for k, rps in enumerate([2, 4, 2, 4, 3])], policy)
    assert found.high_rps == pytest.approx(4 * 1.25)


def test_enough_errors_to_bound_but_not_to_test_leave_coverage_unknown() -> None:
    found = forecast([LoadPoint(300.0 * k, 5.0 + k % 2) for k in range(30)])
    assert isinstance(found.coverage, Unknown)
    assert "to test" in found.coverage.detail


def test_too_little_history_is_unknown() -> None:
    found = forecast_load([LoadPoint(0, 1.0)], 10.0, POLICY)
    assert isinstance(found, Unknown)
    assert "1 of 5 steps" in found.detail
    assert isinstance(forecast_load([], 10.0, POLICY), Unknown)


def test_readings_after_now_are_not_looked_at() -> None:
    points = [LoadPoint(300.0 * k, 5.0) for k in range(10)]
    found = forecast_load([*points, LoadPoint(9000.0, 99.0)], points[-1].at_s, POLICY)
    assert isinstance(found, LoadForecast)
    assert found.high_rps < 10


def test_a_burst_sets_the_reactive_floor() -> None:
    points = [*history(3), *(LoadPoint(3 * DAY + 300 * k, 60.0) for k in range(2))]
    assert forecast(points).high_rps >= 60


def test_no_load_is_forecast_to_stay_none() -> None:
    found = forecast([LoadPoint(300.0 * k, 0.0) for k in range(3 * 288)])
    assert (found.mid_rps, found.high_rps) == (0, 0)


def test_hours_without_load_and_hours_never_seen_do_not_break_the_profile() -> None:
    points = [p if p.at_s % DAY > 10_000 else LoadPoint(p.at_s, 0.0) for p in history(3.5)]
    seen = [p for p in points if not 40_000 < p.at_s % DAY < 50_000]
    policy = POLICY.model_copy(update={"min_seasons": 1.5})
    assert forecast(seen, policy).high_rps > 0


@given(st.lists(st.floats(min_value=0, max_value=1e4), min_size=5, max_size=80))
def test_the_bound_is_never_below_what_was_just_seen(loads: list[float]) -> None:
    found = forecast([LoadPoint(300.0 * k, rps) for k, rps in enumerate(loads)])
    assert found.high_rps >= max(loads[-6:])
    assert found.high_rps >= found.mid_rps
