"""Carrying a change out, twice if asked twice, and taking it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from optiinfra.agents.actuators.port import replica_name
from optiinfra.agents.cost.execute import SpotMoves
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Hands
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.facts import (
    ExecutionFailed,
    ExecutionStaged,
    ExecutionStarted,
    Fact,
    RollbackCompleted,
)
from optiinfra.schemas.deployment import Deployment, Market, Provider, Replica, ReplicaState
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.recommendation import Recommendation, SpotMigration, SpotReplacement
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.schemas.routing import BackendState
from optiinfra.schemas.vote import AgentName
from tests.cost_stand import (
    DEPLOYMENT,
    POLICY,
    REGION,
    START,
    FakeActuator,
    FakeIntents,
    FakeTraffic,
    Time,
    machine,
    placement,
    pricing,
)
from tests.factories import recommendation

OLD = (machine(1), machine(2))
BUDGET_S = 600.0


@dataclass
class Stand:
    """An executor over fakes; `said` is what it published on the way."""

    replicas: Sequence[Replica] = OLD
    deployment: Deployment = DEPLOYMENT
    said: list[Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.time = Time()
        self.actuator = FakeActuator(self.replicas)
        self.traffic = FakeTraffic(self.replicas)
        self.intents = FakeIntents()
        self.fence = 0
        self.hands = Hands(
            actuators={Provider.AWS: self.actuator},
            traffic=self.traffic,
            intents=self.intents,
            pricing=pricing(self.time),
            drain_timeout_s=POLICY.drain_timeout_s,
            clock=self.time.now,
            monotonic=self.time.monotonic,
            sleep=self.time.sleep,
        )
        self.executor = Executor({("acme", "chat"): self.deployment}, self.hands, SpotMoves(POLICY))

    async def say(self, fact: Fact) -> None:
        self.said.append(fact)

    async def step(
        self,
        share: float,
        kind: StepKind = StepKind.APPLY,
        proposal: Recommendation | None = None,
        **changes: Any,
    ) -> Sequence[Fact]:
        self.fence += 1
        proposal = proposal or migration()
        values: dict[str, Any] = {
            "change": proposal.id,
            "step": Step(kind=kind, stage={0.1: 0, 0.5: 1}.get(share, 2), share=share),
            "fence": self.fence,
            "executor": AgentName.COST,
            "recommendation": proposal,
            "deadline": START,
        }
        command = ExecutionRequested(**{**values, **changes})
        return await self.executor.execute(command, BUDGET_S, self.say)

    async def rollback(
        self, proposal: Recommendation | None = None, **changes: Any
    ) -> Sequence[Fact]:
        self.fence += 1
        proposal = proposal or migration()
        values: dict[str, Any] = {
            "change": proposal.id,
            "fence": self.fence,
            "executor": AgentName.COST,
            "recommendation": proposal,
            "reason": "worse answers",
            "deadline": START,
        }
        return await self.executor.roll_back(RollbackRequested(**{**values, **changes}), BUDGET_S)


def migration(**changes: Any) -> Recommendation:
    spec = SpotMigration(replicas=("chat-1", "chat-2"), to=placement(**changes))
    return recommendation(spec=spec)


def reclaim(seconds: float = 120.0) -> Recommendation:
    to = placement(zone=f"{REGION}c", fallback_market=Market.ON_DEMAND)
    reclaim_at = START + timedelta(seconds=seconds)
    return recommendation(spec=SpotReplacement(replicas=("chat-1",), to=to, reclaim_at=reclaim_at))


def staged(facts: Sequence[Fact]) -> ExecutionStaged:
    assert len(facts) == 1
    assert isinstance(facts[0], ExecutionStaged), facts
    return facts[0]


def failed(facts: Sequence[Fact]) -> str:
    assert len(facts) == 1
    assert isinstance(facts[0], ExecutionFailed), facts
    return facts[0].reason


def undone(facts: Sequence[Fact]) -> RollbackCompleted:
    assert len(facts) == 1
    assert isinstance(facts[0], RollbackCompleted), facts
    return facts[0]


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


async def test_a_rollback_restores_the_routes_and_takes_the_new_machines_away() -> None:
    stand = Stand()
    before = stand.traffic.table.backends
    await stand.step(0.1)
    await stand.step(0.5)
    found = undone(await stand.rollback())
    assert found.proved, found.detail
    assert stand.traffic.table.backends == before
    assert set(stand.actuator.machines) == {"chat-1", "chat-2"}


async def test_a_repeated_rollback_is_proved_again_without_acting() -> None:
    stand = Stand()
    await stand.step(0.5)
    await stand.rollback()
    writes = len(stand.traffic.history)
    assert undone(await stand.rollback()).proved
    assert len(stand.traffic.history) == writes


async def test_a_rollback_before_any_step_is_proved_and_blocks_late_steps() -> None:
    stand = Stand()
    stand.fence = 5
    assert undone(await stand.rollback()).proved
    assert await stand.step(0.5, fence=1) == []
    assert "rolled back before" in failed(await stand.step(0.5))
    assert stand.actuator.launches == []
    stand.intents.outdate(migration().id)
    assert await stand.rollback() == []


async def test_a_canary_that_cannot_drain_is_left_draining_and_the_undo_not_proved() -> None:
    stand = Stand()
    result = staged(await stand.step(0.5)).result
    stand.traffic.busy = set(result.arms.canary)
    found = undone(await stand.rollback())
    assert not found.proved
    assert "still draining" in found.detail
    states = {one.replica: one.state for one in stand.traffic.table.backends}
    assert states[result.arms.canary[0]] is BackendState.DRAINING
    assert result.arms.canary[0] in stand.actuator.machines


async def test_a_rollback_never_sends_traffic_to_nobody() -> None:
    stand = Stand()
    await stand.step(0.5)
    for name in ("chat-1", "chat-2"):
        gone = stand.actuator.machines[name].model_copy(update={"state": ReplicaState.STOPPED})
        stand.actuator.machines[name] = gone
    routes = stand.traffic.table
    found = undone(await stand.rollback())
    assert not found.proved
    assert "none of the replicas" in found.detail
    assert stand.traffic.table == routes


async def test_a_rollback_after_one_old_replica_went_is_not_proved() -> None:
    stand = Stand()
    await stand.step(0.5)
    del stand.actuator.machines["chat-2"]
    found = undone(await stand.rollback())
    assert (found.proved, stand.traffic.weights()) == (False, {"chat-1": 1.0})
    assert "gone since: chat-2" in found.detail


async def test_a_rollback_that_is_overtaken_says_nothing() -> None:
    stand = Stand()
    await stand.step(0.5)
    stand.traffic.before_put = lambda: stand.intents.outdate(migration().id)
    assert await stand.rollback() == []


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
