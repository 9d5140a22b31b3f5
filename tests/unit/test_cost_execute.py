"""Carrying a change out, and twice if asked twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optiinfra.agents.actuators.port import replica_name
from optiinfra.events.facts import (
    ExecutionStarted,
)
from optiinfra.schemas.deployment import Market, Replica
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.schemas.routing import BackendState
from optiinfra.schemas.vote import AgentName
from tests.cost_stand import (
    DEPLOYMENT,
    REGION,
    machine,
)
from tests.execute_stand import BUDGET_S, Stand, failed, migration, reclaim, staged, undone
from tests.factories import recommendation


async def test_three_stages_and_the_finish_move_the_fleet_to_spot() -> None:
    stand = Stand()
    shares = []
    for share in (0.1, 0.5, 1.0):
        result = staged(await stand.step(share)).result
        weights = stand.traffic.weights()
        shares.append(sum(weights[name] for name in result.arms.canary) / sum(weights.values()))
        assert result.applied
        assert result.arms.baseline == ("chat-1", "chat-2")
    assert shares == pytest.approx([0.1, 0.5, 1.0])
    assert len(stand.actuator.launches) == 2
    done = staged(await stand.step(1.0, StepKind.FINISH)).result
    assert stand.actuator.terminated == ["chat-1", "chat-2"]
    assert set(stand.traffic.weights()) == set(done.arms.canary)
    assert done.usd_per_hour == pytest.approx(2 * 0.3515)
    assert {one.instance.market for one in stand.actuator.machines.values()} == {Market.SPOT}
    assert [type(fact) for fact in stand.said] == [ExecutionStarted] * 4


async def test_old_replicas_take_all_traffic_until_the_new_one_serves() -> None:
    stand = Stand()
    stand.actuator.looks = 5
    await stand.step(0.1)
    assert len(stand.traffic.history) == 1


async def test_a_redelivered_step_repeats_its_result_and_applies_nothing() -> None:
    stand = Stand()
    first = staged(await stand.step(0.5)).result
    routes, launches = stand.traffic.table, len(stand.actuator.launches)
    again = staged(await stand.step(0.5)).result
    assert (again.applied, again.arms) == (False, first.arms)
    assert (stand.traffic.table, len(stand.actuator.launches)) == (routes, launches)


async def test_a_step_that_died_before_its_result_converges_on_what_is_there() -> None:
    stand = Stand()
    await stand.step(0.5)
    key, intent = next(iter(stand.intents.rows.items()))
    stand.intents.rows[key] = replace(intent, result=None)
    result = staged(await stand.step(0.5)).result
    assert not result.applied
    assert len(stand.actuator.launches) == 1


async def test_a_stale_command_is_ignored() -> None:
    stand = Stand()
    stand.intents.outdate(migration().id)
    assert await stand.step(0.5) == []
    assert stand.actuator.launches == []


async def test_a_machine_that_comes_up_after_a_later_command_is_taken_away() -> None:
    stand = Stand()
    stand.actuator.on_launch = lambda: stand.intents.outdate(migration().id)
    assert await stand.step(0.5) == []
    assert len(stand.actuator.terminated) == 1
    assert stand.traffic.history == []


async def test_a_route_write_that_lost_the_race_to_a_rollback_is_not_repeated() -> None:
    stand = Stand()

    def rollback_wins() -> None:
        stand.intents.outdate(migration().id)
        version = stand.traffic.table.version + 1
        stand.traffic.table = stand.traffic.table.model_copy(update={"version": version})

    stand.traffic.before_put = rollback_wins
    assert await stand.step(0.5) == []
    assert stand.traffic.history == []


async def test_routes_that_never_stand_still_fail_the_step() -> None:
    stand = Stand()

    def somebody_writes() -> None:
        version = stand.traffic.table.version + 1
        stand.traffic.table = stand.traffic.table.model_copy(update={"version": version})

    stand.traffic.before_put = somebody_writes
    assert "keeps writing" in failed(await stand.step(0.5))


async def test_observing_only_changes_nothing() -> None:
    stand = Stand(deployment=DEPLOYMENT.model_copy(update={"acting": False}))
    assert "observe-only" in failed(await stand.step(0.5))
    assert stand.intents.rows == {}


async def test_what_is_not_ours_is_left_alone_or_refused_with_the_reason() -> None:
    stand = Stand()
    assert await stand.step(0.5, executor=AgentName.RESOURCE) == []
    assert await stand.rollback(executor=AgentName.RESOURCE) == []
    other = recommendation(deployment="nobody")
    assert "not configured" in failed(await stand.step(0.5, proposal=other))
    from optiinfra.schemas.recommendation import IdleShutdown

    idle = recommendation(spec=IdleShutdown(replicas=("chat-1",)))
    assert "cannot execute" in failed(await stand.step(0.5, proposal=idle))


async def test_a_new_replica_that_never_serves_fails_the_step_with_what_it_waits_for() -> None:
    stand = Stand()
    stand.actuator.looks = 10_000
    reason = failed(await stand.step(0.5))
    assert "0 of 1 new replicas serve" in reason
    assert "starting" in reason
    assert stand.time.seconds <= BUDGET_S + 10


async def test_no_spot_capacity_fails_a_migration_without_touching_the_routes() -> None:
    stand = Stand()
    stand.actuator.full = {Market.SPOT}
    assert "no capacity" in failed(await stand.step(0.5))
    assert stand.traffic.history == []


async def test_a_fallback_market_is_used_when_spot_is_full() -> None:
    stand = Stand()
    stand.actuator.full = {Market.SPOT}
    await stand.step(0.5, proposal=migration(fallback_market=Market.ON_DEMAND))
    assert stand.actuator.launches[0].placement.market is Market.ON_DEMAND


async def test_a_machine_that_dies_on_the_way_up_is_tried_again_but_not_for_ever() -> None:
    stand = Stand()
    stand.actuator.stillborn = 1
    assert staged(await stand.step(0.5)).result.applied
    assert len(stand.actuator.launches) == 2
    dead = replica_name("chat", stand.actuator.launches[0].token)
    assert stand.actuator.terminated == [dead], "it may still hold its machine"
    hopeless = Stand()
    hopeless.actuator.stillborn = 99
    assert "ended 3 times" in failed(await hopeless.step(0.5))


async def test_a_cloud_that_is_away_for_a_moment_is_waited_for() -> None:
    stand = Stand()
    real, left = stand.actuator.replica, [2]

    async def flaky(tenant: str, deployment: str, replica_id: str) -> Replica | None:
        left[0] -= 1
        if left[0] >= 0:
            raise Unavailable("throttled")
        return await real(tenant, deployment, replica_id)

    stand.actuator.replica = flaky  # type: ignore[method-assign]
    assert staged(await stand.step(0.5)).result.applied


async def test_a_replica_with_requests_in_flight_is_never_terminated() -> None:
    stand = Stand()
    await stand.step(1.0)
    stand.traffic.busy = {"chat-1"}
    assert "still busy" in failed(await stand.step(1.0, StepKind.FINISH))
    assert stand.actuator.terminated == []
    assert "chat-1" in stand.traffic.weights()


async def test_a_finish_alone_carries_its_stage_and_releases_what_was_replaced() -> None:
    stand = Stand()
    done = staged(await stand.step(1.0, StepKind.FINISH)).result
    assert done.step.kind is StepKind.FINISH
    assert stand.actuator.terminated == ["chat-1", "chat-2"]
    assert set(stand.traffic.weights()) == set(done.arms.canary)


async def test_a_finish_that_finds_the_change_paused_releases_nothing_until_it_is_asked_again() -> (
    None
):
    stand, change = Stand(), migration().id
    stand.intents.paused.add(change)
    held = staged(await stand.step(1.0, StepKind.FINISH)).result
    assert held.step == Step(kind=StepKind.APPLY, stage=2, share=1.0)
    assert (held.fence, held.detail) == (1, "paused before anything was released")
    assert stand.actuator.terminated == []
    assert {one.state for one in stand.traffic.table.backends} == {BackendState.ACTIVE}
    assert held.arms.baseline == ("chat-1", "chat-2")
    stand.intents.paused.clear()
    repeated = staged(await stand.step(1.0, StepKind.FINISH, fence=1)).result
    assert repeated == held.model_copy(update={"applied": False})
    again = Step(kind=StepKind.FINISH, stage=2, attempt=2, share=1.0)
    done = staged(await stand.step(1.0, StepKind.FINISH, step=again)).result
    assert done.step == again
    assert stand.actuator.terminated == ["chat-1", "chat-2"]
    assert len(stand.actuator.launches) == 2


async def test_a_reclaimed_replica_is_replaced_before_it_goes() -> None:
    stand = Stand(replicas=(machine(1, Market.SPOT), machine(2)))
    proposal = reclaim()
    assert staged(await stand.step(1.0, proposal=proposal)).result.applied
    done = staged(await stand.step(1.0, StepKind.FINISH, proposal=proposal)).result
    assert stand.actuator.terminated == ["chat-1"]
    assert stand.traffic.weights() == {"chat-2": 1.0, done.arms.canary[0]: 1.0}
    assert stand.actuator.launches[0].placement.zone == f"{REGION}c"


async def test_a_replacement_falls_back_to_on_demand() -> None:
    stand = Stand(replicas=(machine(1, Market.SPOT), machine(2)))
    stand.actuator.full = {Market.SPOT}
    staged(await stand.step(1.0, proposal=reclaim()))
    assert stand.actuator.launches[0].placement.market is Market.ON_DEMAND


async def test_near_the_reclaim_the_old_replica_rests_although_no_replacement_serves_yet() -> None:
    stand = Stand(replicas=(machine(1, Market.SPOT), machine(2)))
    stand.actuator.looks = 10_000
    seen: list[BackendState] = []
    stand.time.at(70, lambda: seen.append(stand.traffic.table.backends[0].state))
    stand.time.at(100, lambda: seen.append(stand.traffic.table.backends[0].state))
    await stand.step(1.0, proposal=reclaim(120))
    assert seen == [BackendState.ACTIVE, BackendState.DRAINING]


async def test_the_last_replica_serves_until_it_is_taken() -> None:
    stand = Stand(replicas=(machine(1, Market.SPOT),))
    stand.actuator.looks = 10_000
    await stand.step(1.0, proposal=reclaim(10))
    assert stand.traffic.history == []


async def test_a_replica_that_went_early_is_replaced_all_the_same() -> None:
    stand = Stand(replicas=(machine(1, Market.SPOT), machine(2)))
    proposal = reclaim()
    stand.time.at(0.1, lambda: stand.actuator.machines.pop("chat-1"))
    result = staged(await stand.step(1.0, proposal=proposal)).result
    assert stand.traffic.weights() == {"chat-2": 1.0, result.arms.canary[0]: 1.0}
    assert staged(await stand.step(1.0, StepKind.FINISH, proposal=proposal)).result.arms
    found = undone(await stand.rollback(proposal))
    assert not found.proved
    assert "its replacement keeps the traffic" in found.detail


async def test_requests_lost_to_a_reclaim_are_named() -> None:
    stand = Stand(replicas=(machine(1, Market.SPOT), machine(2)))
    stand.traffic.busy = {"chat-1"}
    await stand.step(1.0, proposal=reclaim(1))
    done = staged(await stand.step(1.0, StepKind.FINISH, proposal=reclaim(1))).result
    assert "in flight: chat-1" in done.detail


async def test_replacing_one_machine_twice_launches_once() -> None:
    stand = Stand(replicas=(machine(1, Market.SPOT), machine(2)))
    await stand.step(1.0, proposal=reclaim())
    twin = reclaim().model_copy(update={"id": "0" * 32})
    await stand.step(1.0, proposal=twin)
    assert len(stand.actuator.launches) == 1
