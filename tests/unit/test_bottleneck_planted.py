"""The bottleneck finder on emulated runs with a planted cause, read by the telemetry contract."""

from __future__ import annotations

from functools import lru_cache

import pytest

from optiinfra.schemas.deployment import SLO
from optiinfra.serving.bottleneck import find
from optiinfra.serving.bottleneck_table import Cause
from optiinfra.serving.signals import Signals
from tests.observed import before_and_after, observe
from tests.planted import CAUSES, Planted, plant, run

SEED = 1


@lru_cache(maxsize=len(CAUSES))
def planted(cause: Cause) -> tuple[Planted, Signals, Signals]:
    found = plant(cause, SEED)
    return (found, *before_and_after(found))


def slo(found: Planted) -> SLO:
    return found.bound.setting.slo


@pytest.mark.parametrize("cause", CAUSES)
def test_a_planted_cause_is_named_and_its_healthy_twin_is_left_alone(cause: Cause) -> None:
    found, healthy, bound = planted(cause)
    assert find(bound, slo(found)).cause is cause
    assert find(healthy, slo(found)).cause is Cause.NONE


@pytest.mark.parametrize("cause", CAUSES)
def test_a_signal_taken_from_a_run_never_makes_another_cause(cause: Cause) -> None:
    found, _, bound = planted(cause)
    verdict = find(bound, slo(found))
    bare = Signals()
    assert find(bare, slo(found)).cause is Cause.UNKNOWN
    for name in Signals.model_fields:
        lacking = bound.model_copy(update={name: getattr(bare, name)})
        assert find(lacking, slo(found)).cause in {verdict.cause, Cause.UNKNOWN}


def test_an_engine_that_hides_its_kv_usage_leaves_the_cap_unknown() -> None:
    found, _, _ = planted(Cause.SCHEDULER_CAP)
    hidden = run(found.bound.setting, found.bound.traffic, ("vllm:kv_cache_usage_perc",))
    verdict = find(observe(hidden), slo(found))
    assert verdict.cause is Cause.UNKNOWN
    assert "kv_usage_fraction" in {one.signal for one in verdict.missing}


def test_a_plant_repeats_exactly() -> None:
    found, _, bound = planted(Cause.NETWORK)
    again = run(found.bound.setting, found.bound.traffic)
    assert again.made == found.bound.made
    assert observe(again, bound.prefix_hit_reference) == bound
