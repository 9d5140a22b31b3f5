"""The performance vote: margins measured and forecast, abstaining on anything unknown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optiinfra.agents.performance.policy import (
    Headcount,
    PerformancePolicy,
    ReplacementQuestion,
    VoteQuestion,
    calibration,
    heads,
    vote,
    vote_on_replacement,
)
from optiinfra.schemas.deployment import SLO, Market, Provider
from optiinfra.schemas.recommendation import (
    Consolidation,
    IdleShutdown,
    Placement,
    Precision,
    PredictiveScaling,
    Quantisation,
    SpotMigration,
    SpotReplacement,
)
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.schemas.vote import Verdict
from optiinfra.serving.simulation import LatencyForecast
from optiinfra.serving.windows import Pooled
from tests.telemetry import NOW

POLICY = PerformancePolicy(calibration_prior_samples=0)
DARK = Unknown(reason=UnknownReason.UNREACHABLE, detail="b: refused")
SPOT = Placement(
    provider=Provider.AWS, instance_type="g5.xlarge", region="us-east-1", market=Market.SPOT
)


def forecast(ttft_s: float, tpot_s: float = 0.02, rate: float = 1.0) -> LatencyForecast:
    return LatencyForecast(rate_rps=rate, ttft_p95_s=ttft_s, tpot_p95_s=tpot_s, error_band=0.1)


def question(**changes: Any) -> VoteQuestion:
    plain = VoteQuestion(
        slo=SLO(),
        heads=Headcount(3, 3, 2),
        window_s=60.0,
        ttft=Pooled(Known(value=0.2), 100),
        tpot=Pooled(Known(value=0.02), 100),
        offered=Known(value=6.0),
        current=forecast(0.2),
        reduced=forecast(0.3, 0.03),
    )
    return replace(plain, **changes)


def test_both_margins_left_over_is_an_approval_with_its_numbers() -> None:
    judgement = vote(question(), POLICY)
    assert judgement.verdict is Verdict.APPROVE
    assert judgement.reasons[0] == (
        "ttft_p95_s: margin 60% now, 40% forecast with 2 replica(s) left"
    )
    evidence = {e.name: e for e in judgement.evidence}
    assert evidence["ttft_p95_s"].threshold == 0.5
    assert evidence["ttft_p95_s"].samples == 100
    left = evidence["ttft_p95_s_with_replicas_left"].reading
    assert isinstance(left, Known)
    assert left.value == pytest.approx(0.3)
    assert left.error == pytest.approx(0.03)
    assert evidence["replicas_left"].reading == Known(value=2.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ttft": Pooled(Known(value=0.6), 100)}, "ttft_p95_s is 0.6 now, over 0.5"),
        ({"tpot": Pooled(Known(value=0.06), 100)}, "tpot_p95_s is 0.06 now"),
        ({"reduced": forecast(0.7)}, "ttft_p95_s is forecast at 0.7 with 2 replica(s) left"),
        ({"reduced": forecast(0.3, 0.08)}, "tpot_p95_s is forecast at 0.08"),
        ({"heads": Headcount(1, 1, 0)}, "none is left when 1 is lost"),
    ],
)
def test_an_objective_broken_now_or_in_the_forecast_is_a_rejection(
    changes: dict[str, Any], said: str
) -> None:
    judgement = vote(question(**changes), POLICY)
    assert judgement.verdict is Verdict.REJECT
    assert any(said in reason for reason in judgement.reasons)


@pytest.mark.parametrize("name", ["ttft", "tpot", "offered", "current", "reduced"])
def test_anything_unknown_that_is_needed_is_an_abstention(name: str) -> None:
    gone: Any = Pooled(DARK, 0) if name in {"ttft", "tpot"} else DARK
    judgement = vote(question(**{name: gone}), POLICY)
    assert judgement.verdict is Verdict.ABSTAIN
    assert "b: refused" in judgement.reasons[0]


def test_too_few_requests_are_an_abstention() -> None:
    judgement = vote(question(ttft=Pooled(Known(value=0.2), 12)), POLICY)
    assert judgement.verdict is Verdict.ABSTAIN
    assert "only 12 requests in 60 s, 30 are needed" in judgement.reasons[0]


def test_a_forecast_for_nobody_is_not_needed_to_reject() -> None:
    judgement = vote(question(heads=Headcount(1, 1, 0), reduced=DARK), POLICY)
    assert judgement.verdict is Verdict.REJECT


def test_the_slowest_replica_with_requests_enough_is_shown() -> None:
    each = {
        "a": Pooled(Known(value=0.3), 50),
        "b": Pooled(Known(value=0.4), 50),
        "c": Pooled(Known(value=0.9), 3),
        "d": Pooled(DARK, 0),
    }
    evidence = {e.name: e for e in vote(question(each=each), POLICY).evidence}
    worst = evidence["ttft_p95_s_of_the_slowest_replica"]
    assert worst.reading == Known(value=0.4)
    assert worst.source.endswith("of b")


def test_a_margin_can_be_asked_for() -> None:
    strict = POLICY.model_copy(update={"min_margin": 0.5})
    assert vote(question(), strict).verdict is Verdict.REJECT


def test_the_forecast_is_scaled_by_what_was_measured() -> None:
    slower = question(ttft=Pooled(Known(value=0.4), 100))
    assert vote(slower, POLICY).verdict is Verdict.REJECT
    shrunk = PerformancePolicy(calibration_prior_samples=1e6)
    assert vote(slower, shrunk).verdict is Verdict.APPROVE


def left(judged: VoteQuestion) -> float:
    evidence = {e.name: e.reading for e in vote(judged, POLICY).evidence}
    reading = evidence["ttft_p95_s_with_replicas_left"]
    assert isinstance(reading, Known)
    return reading.value


def test_fewer_replicas_are_not_forecast_to_be_faster_than_now() -> None:
    slow = question(
        ttft=Pooled(Known(value=0.4), 100), current=forecast(0.01), reduced=forecast(0.02)
    )
    assert left(slow) == 0.4
    assert left(replace(slow, heads=Headcount(3, 6, 5))) == pytest.approx(0.06)


@pytest.mark.parametrize(
    ("measured", "predicted", "factor"),
    [
        (Pooled(Known(value=0.2), 50), 0.1, 2**0.5),
        (Pooled(Known(value=9.0), 10_000), 0.1, 3.0),
        (Pooled(Known(value=0.001), 10_000), 0.1, 0.5),
        (Pooled(Known(value=0.0), 50), 0.1, 1.0),
        (Pooled(Known(value=0.2), 50), 0.0, 1.0),
        (Pooled(DARK, 0), 0.1, 1.0),
    ],
)
def test_calibration_shrinks_to_the_card_and_is_clipped(
    measured: Pooled, predicted: float, factor: float
) -> None:
    assert calibration(measured, predicted, PerformancePolicy()) == pytest.approx(factor)


def test_replicas_are_counted_around_each_kind_of_change() -> None:
    two = ("a", "b")
    assert heads(SpotMigration(replicas=two, to=SPOT), 3, POLICY) == Headcount(3, 3, 2)
    replacement = SpotReplacement(replicas=two, to=SPOT, reclaim_at=NOW)
    assert heads(replacement, 3, POLICY) == Headcount(3, 3, 2)
    scaling = PredictiveScaling(from_replicas=3, to_replicas=5)
    assert heads(scaling, 3, POLICY) == Headcount(3, 5, 4)
    assert heads(IdleShutdown(replicas=two), 3, POLICY) == Headcount(3, 1, 0)
    assert heads(Consolidation(replicas=("a",)), 3, POLICY) == Headcount(3, 2, 1)
    other = Quantisation(from_precision=Precision.FP16, to_precision=Precision.FP8)
    assert heads(other, 3, POLICY) is None


def replacement(**changes: Any) -> ReplacementQuestion:
    plain = ReplacementQuestion(
        slo=SLO(),
        leaving=1,
        survivors=2,
        offered=Known(value=6.0),
        without=forecast(0.7),
        replaced=forecast(0.2),
    )
    return replace(plain, **changes)


def test_a_replacement_is_weighed_against_doing_nothing() -> None:
    judgement = vote_on_replacement(replacement())
    assert judgement.verdict is Verdict.APPROVE
    assert "doing nothing leaves 3 requests/s to each of 2" in judgement.reasons[0]
    assert "0.7 s without and 0.2 s with it (objective 0.5 s)" in judgement.reasons[1]


def test_a_replacement_without_a_card_is_weighed_by_load_alone() -> None:
    for unknown in ({"without": DARK}, {"replaced": DARK}):
        judgement = vote_on_replacement(replacement(**unknown))
        assert judgement.verdict is Verdict.APPROVE
        assert len(judgement.reasons) == 1


def test_a_replacement_of_the_last_replicas_is_always_better_than_none() -> None:
    judgement = vote_on_replacement(replacement(survivors=0, offered=DARK))
    assert judgement.verdict is Verdict.APPROVE


def test_a_replacement_under_an_unknown_load_is_an_abstention() -> None:
    judgement = vote_on_replacement(replacement(offered=DARK))
    assert judgement.verdict is Verdict.ABSTAIN
    assert "b: refused" in judgement.reasons[0]
