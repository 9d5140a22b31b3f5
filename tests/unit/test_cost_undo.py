"""Taking a change back: the routes as they were, the new machines gone, and proved."""

from __future__ import annotations

from optiinfra.schemas.deployment import ReplicaState
from optiinfra.schemas.routing import BackendState
from tests.execute_stand import Stand, failed, migration, staged, undone


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
