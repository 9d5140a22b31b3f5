"""When spot is proposed, for how much, at which risk."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.agents.base.recent import RecentChange
from optiinfra.agents.cost.policy import (
    CostPolicy,
    Fleet,
    MachineKind,
    MigrationPlan,
    NoProposal,
    PricedReplica,
    SpotOffer,
    epoch,
    extra_replicas,
    hurry_until,
    machine_kind,
    migration_placement,
    migration_risk,
    movable_count,
    on_demand_needed,
    outdated,
    plan_migration,
    replacement_placement,
    resting,
    saving,
    spend,
    suppressed,
)
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Market, Provider, Replica, ReplicaState
from optiinfra.schemas.money import HOURS_PER_MONTH, PriceSource
from optiinfra.schemas.recommendation import Risk
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.serving.prices import InterruptionBand, PriceBand
from tests.cost_stand import DEPLOYMENT, POLICY, REGION, START, TYPE, machine

SOURCE = PriceSource(name="test", as_of=START)
RARE = InterruptionBand(label="<5%", low=0, high=0.05)
OFTEN = InterruptionBand(label=">20%", low=0.2, high=1)
KIND = MachineKind(Provider.AWS, TYPE, REGION)
MISSING = Unknown(reason=UnknownReason.MISSING, detail="not listed")


def band(low: float, mid: float | None = None, high: float | None = None) -> PriceBand:
    return PriceBand(low=low, mid=mid or low, high=high or mid or low, source=SOURCE)


def fleet(
    *replicas: Replica,
    price: PriceBand | Unknown | None = None,
    offer: SpotOffer | None = None,
    **declared: object,
) -> Fleet:
    offer = offer or SpotOffer(band(0.3, 0.35, 0.4), RARE)
    priced = tuple(PricedReplica(one, price or band(1.2)) for one in replicas)
    return Fleet(DEPLOYMENT.model_copy(update=declared), priced, {KIND: offer})


def planned(found: MigrationPlan | NoProposal) -> MigrationPlan:
    assert isinstance(found, MigrationPlan), found
    return found


def refused(found: MigrationPlan | NoProposal) -> str:
    assert isinstance(found, NoProposal), found
    return found.reason


TWO = (machine(1), machine(2))


def test_two_on_demand_replicas_move_to_spot_with_an_interval() -> None:
    plan = planned(plan_migration(fleet(*TWO), POLICY))
    forecast = plan.saving_usd_per_month
    assert [replica.id for replica in plan.replicas] == ["chat-1", "chat-2"]
    assert plan.spend_usd_per_hour == 2.4
    assert 2 * 730 * 0.79 < forecast.low < forecast.mid < forecast.high <= 2 * 730 * 0.9
    placement = migration_placement(plan)
    assert (placement.market, placement.zone, placement.fallback_market) == (
        Market.SPOT,
        None,
        None,
    )


def test_the_interruption_band_costs_fallback_hours_and_overlap() -> None:
    policy = CostPolicy(fallback_hours=24, start_up_s=3600)
    always = InterruptionBand(label="x", low=1, high=1)
    found = saving(band(1.0), (band(0.4), always), 1, policy)
    assert found.mid == pytest.approx(730 * 0.6 - (24 * 0.6 + 1.0))


@given(
    on_demand=st.floats(0.01, 100),
    ratios=st.lists(st.floats(0.001, 1.5), min_size=3, max_size=3),
    rates=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    count=st.integers(1, 8),
)
def test_a_saving_is_never_above_what_is_spent(
    on_demand: float, ratios: list[float], rates: list[float], count: int
) -> None:
    low, mid, high = sorted(ratio * on_demand for ratio in ratios)
    least, most = sorted(rates)
    offer = (band(low, mid, high), InterruptionBand(label="x", low=least, high=most))
    found = saving(band(on_demand), offer, count, POLICY)
    assert found.low <= found.mid <= found.high <= count * on_demand * HOURS_PER_MONTH


def test_the_dearer_kind_goes_first_when_two_kinds_could_move() -> None:
    other = machine(3)
    other = other.model_copy(
        update={"instance": other.instance.model_copy(update={"instance_type": "g6.xlarge"})}
    )
    two = fleet(machine(1), other)
    kind = machine_kind(other)
    offers = {KIND: SpotOffer(band(0.9), RARE), kind: SpotOffer(band(0.2), RARE)}
    plan = planned(plan_migration(Fleet(two.deployment, two.replicas, offers), POLICY))
    assert plan.kind == kind


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (fleet(*TWO, interruptible=False), "not declared interruptible"),
        (fleet(machine(1), machine(2, state=ReplicaState.UNKNOWN)), "not serving.*chat-2"),
        (fleet(*TWO, price=MISSING), "spend is unknown.*not listed"),
        (fleet(machine(1, Market.SPOT)), "no replica runs on demand"),
        (fleet(*TWO, offer=SpotOffer(MISSING, RARE)), "spot price is unknown"),
        (fleet(*TWO, offer=SpotOffer(band(0.3), None)), "interruption rate is unknown"),
        (fleet(*TWO, offer=SpotOffer(band(1.1), RARE)), "too little"),
        (fleet(*TWO, offer=SpotOffer(band(0.3, 0.4, 1.3), RARE)), "too little"),
        (fleet(machine(1)), "must be spare"),
        (fleet(*TWO, failure_tolerance=0), "must be spare"),
        (fleet(*TWO, min_replicas=2), "must be spare"),
    ],
)
def test_without_a_good_reason_nothing_is_proposed(found: Fleet, reason: str) -> None:
    import re

    assert re.search(reason, refused(plan_migration(found, POLICY)))


def test_a_kind_without_an_offer_is_refused() -> None:
    bare = fleet(*TWO)
    found = plan_migration(Fleet(bare.deployment, bare.replicas, {}), POLICY)
    assert "offers no spot price" in refused(found)


def test_one_change_moves_at_most_eight_replicas() -> None:
    plan = planned(plan_migration(fleet(*(machine(n) for n in range(1, 13))), POLICY))
    assert len(plan.replicas) == 8


def test_spend_is_the_sum_with_its_error_and_unknown_when_one_part_is() -> None:
    first = PricedReplica(machine(1), band(1.0))
    second = PricedReplica(machine(2), band(0.3, 0.4, 0.5))
    total = spend((first, second))
    assert isinstance(total, Known)
    assert total.value == pytest.approx(1.4)
    assert total.error == pytest.approx(0.1)
    found = spend((first, PricedReplica(machine(2), MISSING)))
    assert isinstance(found, Unknown)
    assert "chat-2" in found.detail


@pytest.mark.parametrize(
    ("needed", "extra", "ready", "expected"),
    [(4, 1, 0, 4), (4, 1, 3, 2), (4, 1, 5, 0), (4, 1, 9, 0)],
)
def test_on_demand_fills_what_ready_spot_leaves(
    needed: int, extra: int, ready: int, expected: int
) -> None:
    assert on_demand_needed(needed, extra, ready) == expected


def test_part_of_the_fleet_moves_when_the_spare_is_too_small_for_all() -> None:
    ten = fleet(*(machine(n) for n in range(1, 11)), failure_tolerance=1)
    assert movable_count(ten, extra=1) == 10
    assert movable_count(ten, extra=2) == 1
    assert movable_count(fleet(*TWO, failure_tolerance=0), extra=1) == 0


def test_spare_replicas_follow_the_availability_target() -> None:
    slow = CostPolicy(start_up_s=86_400 * 5, availability_target=0.999)
    assert extra_replicas(10, RARE, POLICY) == 1
    assert extra_replicas(10, OFTEN, slow) > 1
    assert extra_replicas(2, OFTEN, CostPolicy(start_up_s=86_400 * 30)) == 2
    assert extra_replicas(2, RARE, CostPolicy(min_extra=0)) == 0


def test_risk_grows_with_interruptions_with_the_share_and_with_old_prices() -> None:
    usual = InterruptionBand(label="5-10%", low=0.05, high=0.1)
    assert migration_risk(RARE, 0.5, None)[0] is Risk.LOW
    assert migration_risk(RARE, 1.0, None)[0] is Risk.MEDIUM
    assert migration_risk(usual, 0.5, None)[0] is Risk.MEDIUM
    assert migration_risk(OFTEN, 1.0, None)[0] is Risk.HIGH
    risk, reasons = migration_risk(RARE, 0.5, MISSING)
    assert risk is Risk.MEDIUM
    assert "not live" in reasons[-1]


def test_an_open_change_suppresses_and_a_bad_end_cools_down() -> None:
    later = START + timedelta(hours=1)
    opened = RecentChange("a", ChangeState.VOTING, None)
    vetoed = RecentChange("b", ChangeState.VETOED, START)
    done = RecentChange("c", ChangeState.COMPLETED, START)
    assert suppressed([opened], later, POLICY) is not None
    assert suppressed([done, vetoed], later, POLICY) is not None
    assert suppressed([vetoed], START + timedelta(days=2), POLICY) is None
    assert suppressed([done], later, POLICY) is None
    assert suppressed([], later, POLICY) is None


def test_spot_rests_while_a_replacement_is_open_and_for_a_while_after_it() -> None:
    opened = RecentChange("a", ChangeState.VOTING, None)
    ended = RecentChange("b", ChangeState.COMPLETED, START)
    failed = RecentChange("c", ChangeState.FAILED, START)
    soon, later = START + timedelta(minutes=59), START + timedelta(hours=1)
    for change in (opened, ended, failed):
        held = resting([change], soon, POLICY)
        assert held is not None
        assert change.id in held.reason
    assert resting([ended, failed], later, POLICY) is None
    assert resting([ended, opened], later, POLICY) is not None
    assert resting([ended], START, CostPolicy(rest_after_reclaim_s=0)) is None
    assert resting([], soon, POLICY) is None


def test_the_epoch_follows_the_history_and_before_any_the_time() -> None:
    older = RecentChange("a", ChangeState.VETOED, START)
    newer = RecentChange("b", ChangeState.VETOED, START + timedelta(hours=1))
    opened = RecentChange("c", ChangeState.VOTING, None)
    assert epoch([older, newer, opened], START, POLICY) == "b"
    soon = START + timedelta(minutes=1)
    assert epoch([opened], START, POLICY) == epoch([], soon, POLICY)
    assert epoch([], START, POLICY) != epoch([], START + timedelta(days=2), POLICY)


def test_a_replacement_rests_the_reclaimed_zone_and_falls_back_to_on_demand() -> None:
    spot = machine(1, Market.SPOT)
    zones = (spot.instance.zone, f"{REGION}c")
    placement = replacement_placement(spot, SpotOffer(band(0.3), RARE, zones))
    assert placement.zone == f"{REGION}c"
    assert placement.fallback_market is Market.ON_DEMAND
    assert replacement_placement(spot, None).zone is None
    assert replacement_placement(spot, SpotOffer(band(0.3), RARE, zones[:1])).zone is None


def test_a_replacement_is_urgent_until_the_reclaim_and_void_long_after() -> None:
    reclaim = START + timedelta(minutes=2)
    assert hurry_until(reclaim, START) == reclaim
    assert hurry_until(reclaim, reclaim) is None
    assert not outdated(reclaim, reclaim, POLICY)
    assert outdated(reclaim, reclaim + timedelta(hours=1), POLICY)


def test_an_unpriced_candidate_is_named() -> None:
    from optiinfra.agents.cost.policy import _terms

    found = _terms(SpotOffer(band(0.3), RARE), MISSING)
    assert isinstance(found, NoProposal)
    assert "on-demand price" in found.reason
