"""Distributions from buckets: differences, pooling, quantiles that know their error."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.schemas.telemetry import Known, Unknown
from optiinfra.serving.histograms import Distribution, difference, distribution, pooled

BOUNDS = (0.1, 0.25, 0.5, 1.0, inf)


def observed(values: list[float]) -> Distribution:
    return distribution({b: sum(v <= b for v in values) for b in BOUNDS}, sum(values))


@given(
    st.lists(st.floats(min_value=1e-3, max_value=1.0), min_size=1, max_size=60),
    st.floats(min_value=0.01, max_value=0.99),
)
def test_the_true_quantile_lies_within_the_stated_error(
    values: list[float], fraction: float
) -> None:
    reading = observed(values).quantile(fraction)
    assert isinstance(reading, Known)
    rank = next(v for i, v in enumerate(sorted(values)) if i + 1 >= fraction * len(values))
    assert abs(reading.value - rank) <= reading.error + 1e-9


@given(
    st.lists(st.floats(min_value=1e-3, max_value=2.0), max_size=40),
    st.lists(st.floats(min_value=1e-3, max_value=2.0), max_size=40),
)
def test_the_difference_is_what_came_after(before: list[float], after: list[float]) -> None:
    seen = difference(observed(before + after), observed(before))
    assert [b.count for b in seen.bins] == [b.count for b in observed(after).bins]
    assert seen.value_sum == pytest.approx(sum(after), abs=1e-6)


def test_a_fallen_count_or_other_bins_are_a_restart() -> None:
    now = observed([0.2])
    assert difference(now, observed([0.2, 0.3])) == now
    assert difference(now, distribution({0.1: 0.0, inf: 0.0}, 0.0)) == now
    assert difference(now, Distribution()) == now


def test_pooling_adds_up() -> None:
    both = pooled([observed([0.2, 0.7]), observed([0.2])])
    assert both == pooled([observed([0.2, 0.7, 0.2])])
    assert isinstance(both.mean, Known)
    assert both.mean.value == pytest.approx(1.1 / 3)


def test_beyond_the_last_bound_only_a_lower_limit_is_known() -> None:
    assert observed([5.0]).quantile(0.5) == Known(value=1.0, error=1.0)


def test_nothing_observed_is_unknown() -> None:
    empty = observed([])
    assert isinstance(empty.quantile(0.5), Unknown)
    assert isinstance(empty.mean, Unknown)
    assert isinstance(Distribution().quantile(0.5), Unknown)
