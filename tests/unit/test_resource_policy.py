"""The resource vote: capacity left at the forecast peak after losing replicas or a spot zone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optiinfra.agents.resource.forecast import LoadForecast
from optiinfra.agents.resource.policy import (
    CapacityQuestion,
    FleetAfter,
    ResourcePolicy,
    Served,
    capacity,
    desired_replicas,
    fleet_after,
    vote,
    vote_on_replacement,
)
from optiinfra.schemas.deployment import Market, Provider
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
from tests.telemetry import NOW, replica

POLICY = ResourcePolicy()
DARK = Unknown(reason=UnknownReason.STALE, detail="no fresh scrape")
FORECAST = LoadForecast(
    method="seasonal", horizon_s=420, mid_rps=15, high_rps=20, coverage=Known(value=0.95), bins=900
)
FLEET = [replica("a", zone="z1"), replica("b", zone="z2"), replica("c", zone="z2")]


def to(market: Market = Market.SPOT, zone: str | None = None) -> Placement:
    return Placement(
        provider=Provider.AWS, instance_type="g5.xlarge", region="r", market=market, zone=zone
    )


def question(**changes: Any) -> CapacityQuestion:
    plain = CapacityQuestion(FleetAfter(4, 1), Known(value=14.0), FORECAST, Known(value=8.0))
    return replace(plain, **changes)


def test_enough_left_after_a_loss_is_an_approval_with_its_numbers() -> None:
    judgement = vote(question(), POLICY)
    assert judgement.verdict is Verdict.APPROVE
    (reason,) = judgement.reasons
    assert reason == (
        "3 of 4 replica(s) left after losing 1 serve 24 requests/s within the objective; the peak"
        " of the next 420 s is forecast at 20 (3 replica(s) wanted for it)"
    )
    evidence = {e.name: e.reading for e in judgement.evidence}
    assert evidence["forecast_peak_rps"] == Known(value=20, error=5)
    assert evidence["forecast_coverage"] == Known(value=0.95)
    assert evidence["capacity_rps_per_replica"] == Known(value=8.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": Known(value=6.0)},
        {"capacity": Known(value=0.0)},
        {"after": FleetAfter(3, 1)},
        {"after": FleetAfter(1, 1)},
        {"after": FleetAfter(1, 3)},
    ],
)
def test_too_little_left_is_a_rejection(changes: dict[str, Any]) -> None:
    judgement = vote(question(**changes), POLICY)
    assert judgement.verdict is Verdict.REJECT
    assert judgement.reasons[0].startswith("too little capacity: ")


def test_nobody_left_is_a_rejection_even_without_load() -> None:
    quiet = FORECAST.model_copy(update={"mid_rps": 0.0, "high_rps": 0.0})
    judgement = vote(question(after=FleetAfter(1, 1), forecast=quiet), POLICY)
    assert judgement.verdict is Verdict.REJECT


def test_more_head_room_can_be_asked_for() -> None:
    strict = POLICY.model_copy(update={"min_headroom": 1.5})
    assert vote(question(), strict).verdict is Verdict.REJECT


@pytest.mark.parametrize("name", ["offered", "forecast", "capacity"])
def test_anything_unknown_is_an_abstention(name: str) -> None:
    judgement = vote(question(**{name: DARK}), POLICY)
    assert judgement.verdict is Verdict.ABSTAIN
    assert "no fresh scrape" in judgement.reasons[0]


def test_a_migration_to_spot_may_lose_its_fullest_zone() -> None:
    spec = SpotMigration(replicas=("a", "b", "c"), to=to())
    assert fleet_after(spec, FLEET, 1, POLICY) == FleetAfter(3, 2)
    assert fleet_after(spec, FLEET, 3, POLICY) == FleetAfter(3, 3)
    one_zone = SpotMigration(replicas=("a", "b", "c"), to=to(zone="z9"))
    assert fleet_after(one_zone, FLEET, 1, POLICY) == FleetAfter(3, 3)
    half = POLICY.model_copy(update={"zone_reclaim_share": 0.5})
    assert fleet_after(one_zone, FLEET, 1, half) == FleetAfter(3, 2)


def test_what_stays_on_demand_is_lost_to_failures_only() -> None:
    spec = SpotMigration(replicas=("a",), to=to())
    assert fleet_after(spec, FLEET, 1, POLICY) == FleetAfter(3, 1)
    stale = SpotMigration(replicas=("a", "gone"), to=to())
    assert fleet_after(stale, FLEET, 1, POLICY) == FleetAfter(3, 1)
    back = SpotReplacement(replicas=("gone",), to=to(Market.ON_DEMAND), reclaim_at=NOW)
    assert fleet_after(back, FLEET, 0, POLICY) == FleetAfter(4, 0)


def test_fewer_or_more_replicas_are_counted() -> None:
    assert fleet_after(IdleShutdown(replicas=("a", "b")), FLEET, 1, POLICY) == FleetAfter(1, 1)
    assert fleet_after(Consolidation(replicas=("a",)), FLEET, 0, POLICY) == FleetAfter(2, 0)
    spot = [replica(n, market=Market.SPOT) for n in "abc"]
    scaling = PredictiveScaling(from_replicas=3, to_replicas=2)
    assert fleet_after(scaling, spot, 1, POLICY) == FleetAfter(2, 2)


def test_kinds_that_change_the_engine_are_not_modelled() -> None:
    other = Quantisation(from_precision=Precision.FP16, to_precision=Precision.FP8)
    assert fleet_after(other, FLEET, 1, POLICY) is None


def test_a_replacement_is_weighed_against_doing_nothing() -> None:
    judgement = vote_on_replacement(FleetAfter(3, 1), 1)
    assert judgement.verdict is Verdict.APPROVE
    assert judgement.reasons == ("doing nothing leaves 2 replica(s), replacing 3",)


WELL = Served(Known(value=9.0), 100, within_slo=True, waiting=Known(value=0.0))


@pytest.mark.parametrize(
    ("served", "rps"),
    [
        (WELL, 9.0),
        (replace(WELL, rps=Known(value=3.0)), 8.0),
        (replace(WELL, samples=29), 8.0),
        (replace(WELL, rps=DARK), 8.0),
        (replace(WELL, within_slo=None), 8.0),
        (replace(WELL, within_slo=False), 8.0),
        (replace(WELL, within_slo=False, waiting=DARK), 8.0),
        (replace(WELL, within_slo=False, rps=Known(value=5.0), waiting=Known(value=9.0)), 5.0),
        (replace(WELL, within_slo=False, waiting=Known(value=9.0)), 8.0),
    ],
)
def test_the_cards_capacity_is_corrected_by_what_was_served(served: Served, rps: float) -> None:
    assert capacity(10.0, 0.2, served, POLICY) == Known(value=rps, error=2.0)


def test_desired_replicas_round_up() -> None:
    assert desired_replicas(20.0, 8.0) == 3
    assert desired_replicas(0.0, 8.0) == 1
    assert desired_replicas(20.0, 0.0) is None
