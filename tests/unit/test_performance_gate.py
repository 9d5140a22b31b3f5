"""The performance gate: canary beside baseline and objective; unknown is a hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optiinfra.agents.performance.gate_policy import ArmReadings, GateQuestion, gate
from optiinfra.agents.performance.policy import PerformancePolicy
from optiinfra.schemas.deployment import SLO
from optiinfra.schemas.rollout import GateVerdict
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.serving.windows import Pooled

POLICY = PerformancePolicy()
DARK = Pooled(Unknown(reason=UnknownReason.RENAMED, detail="c: renamed"), 0)


def of(value: float, samples: int = 100) -> Pooled:
    return Pooled(Known(value=value), samples)


GOOD = ArmReadings(ttft=of(0.2), tpot=of(0.02), waiting=of(0.0), errors=of(0.0))


def question(baseline: ArmReadings | None = GOOD, **canary: Any) -> GateQuestion:
    return GateQuestion(SLO(), 60.0, replace(GOOD, **canary), baseline)


@pytest.mark.parametrize("baseline", [GOOD, None])
def test_a_canary_within_its_objectives_passes(baseline: ArmReadings | None) -> None:
    judgement = gate(question(baseline), POLICY)
    assert judgement.verdict is GateVerdict.PASS
    assert [m.name for m in judgement.metrics] == [
        "ttft_p95_s", "tpot_p95_s", "requests_waiting", "error_rate",
    ]  # fmt: skip
    assert all(m.window_s == 60 and m.samples == 100 for m in judgement.metrics)


@pytest.mark.parametrize(
    ("metric", "value"), [("ttft", 0.9), ("tpot", 0.2), ("waiting", 20.0), ("errors", 0.5)]
)
@pytest.mark.parametrize("baseline", [GOOD, None])
def test_a_canary_beyond_doubt_worse_is_rolled_back(
    metric: str, value: float, baseline: ArmReadings | None
) -> None:
    broken: dict[str, Any] = {metric: of(value)}
    judgement = gate(question(baseline, **broken), POLICY)
    assert judgement.verdict is GateVerdict.ROLL_BACK
    assert f"{value:.3g} over" in judgement.reason


@pytest.mark.parametrize("metric", ["ttft", "tpot", "waiting", "errors"])
def test_an_unknown_canary_reading_is_a_hold(metric: str) -> None:
    unknown: dict[str, Any] = {metric: DARK}
    judgement = gate(question(**unknown), POLICY)
    assert judgement.verdict is GateVerdict.HOLD
    assert "c: renamed" in judgement.reason


def test_too_few_requests_are_a_hold_even_when_they_are_slow() -> None:
    judgement = gate(question(ttft=of(9.0, 29)), POLICY)
    assert judgement.verdict is GateVerdict.HOLD
    assert "29 of 30 requests" in judgement.reason
    judgement = gate(question(waiting=of(0.0, 2)), POLICY)
    assert "2 of 3 scrapes" in judgement.reason


@pytest.mark.parametrize("baseline_ttft", [DARK, of(0.2, 5)])
def test_a_slow_canary_beside_an_unknown_baseline_is_a_hold(baseline_ttft: Pooled) -> None:
    baseline = replace(GOOD, ttft=baseline_ttft)
    judgement = gate(question(baseline, ttft=of(0.9)), POLICY)
    assert judgement.verdict is GateVerdict.HOLD


def test_what_is_slow_in_both_arms_is_not_the_changes_fault() -> None:
    judgement = gate(question(replace(GOOD, ttft=of(0.8)), ttft=of(0.9)), POLICY)
    assert judgement.verdict is GateVerdict.HOLD
    assert "baseline is at 0.8 too" in judgement.reason


def test_an_engine_that_hides_its_failures_is_judged_on_the_rest() -> None:
    judgement = gate(question(errors=None), POLICY)
    assert judgement.verdict is GateVerdict.PASS
    assert "error_rate" not in {m.name for m in judgement.metrics}


def test_one_broken_metric_outweighs_an_unknown_one() -> None:
    judgement = gate(question(ttft=DARK, tpot=of(0.2)), POLICY)
    assert judgement.verdict is GateVerdict.ROLL_BACK
