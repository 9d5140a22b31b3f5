"""Route tables that shift traffic to new replicas and take it back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.agents.moving.shares import (
    carries_traffic,
    draining,
    replicas_needed,
    restored,
    staged,
    without,
)
from optiinfra.schemas.routing import Backend, BackendState, RouteTable
from tests.cost_stand import machine


def table(**weights: float) -> RouteTable:
    backends = tuple(
        Backend(replica=name, url="http://h:1", weight=weight) for name, weight in weights.items()
    )
    return RouteTable(tenant="acme", deployment="chat", model="m", backends=backends)


def moved(before: RouteTable, *backends: Backend) -> RouteTable:
    return before.model_copy(update={"backends": backends})


def weights(backends: tuple[Backend, ...]) -> dict[str, float]:
    return {backend.replica: backend.weight for backend in backends}


@given(share=st.floats(0.01, 1), old=st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
def test_canaries_together_get_exactly_the_share(share: float, old: list[float]) -> None:
    before = table(**{f"old{n}": weight for n, weight in enumerate(old)})
    names = [backend.replica for backend in before.backends]
    canaries = [machine(n) for n in range(1, replicas_needed(share, len(old)) + 1)]
    after = weights(staged(before, before, names, canaries=canaries, share=share))
    on_canaries = sum(after[canary.id] for canary in canaries)
    assert on_canaries / sum(after.values()) == pytest.approx(share)
    assert on_canaries / len(canaries) <= sum(old) / len(old) + 1e-9


def test_replicas_outside_the_change_keep_their_weight() -> None:
    before = table(a=1, b=1, other=2)
    after = weights(staged(before, before, ("a", "b"), canaries=[machine(1)], share=0.5))
    assert after == {"a": 0.5, "b": 0.5, "other": 2, "chat-1": 1}


def test_a_second_stage_replaces_the_weights_of_the_first() -> None:
    before = table(a=1, b=1)
    first = staged(before, before, ("a", "b"), canaries=[machine(1)], share=0.1)
    both = [machine(1), machine(2)]
    current = moved(before, *first)
    after = weights(staged(before, current, ("a", "b"), canaries=both, share=1.0))
    assert after == {"a": 0, "b": 0, "chat-1": 1, "chat-2": 1}


def test_gone_and_draining_old_replicas_stay_so() -> None:
    before = table(a=1, b=1)
    current = moved(before, *draining(before, ("a",)))
    after = staged(before, current, ("a", "b"), canaries=[machine(1)], share=0.5, gone=("b",))
    assert [(one.replica, one.state) for one in after] == [
        ("a", BackendState.DRAINING),
        ("chat-1", BackendState.ACTIVE),
    ]


def test_replacing_what_is_routed_no_more_takes_the_weight_of_its_peers() -> None:
    peers = table(x=2, y=4, z=0)
    assert weights(staged(peers, peers, ("gone",), canaries=[machine(1)], share=1))["chat-1"] == 3
    empty = table(z=0)
    assert weights(staged(empty, empty, ("gone",), canaries=[machine(1)], share=1))["chat-1"] == 1


def test_a_canary_without_an_address_is_not_routed() -> None:
    before = table(a=1)
    nowhere = machine(1, url=None)
    assert weights(staged(before, before, ("a",), canaries=[nowhere], share=0.5)) == {"a": 0.5}


def test_restoring_brings_back_what_lives_and_drains_canaries_only() -> None:
    before = table(a=1, b=3)
    late = Backend(replica="added-by-hand", url="http://h:2", weight=1)
    canary = Backend(replica="c", url="http://h:3", weight=1)
    current = moved(before, canary, late)
    after = restored(before, current, {"a"}, {"c", "b"})
    assert [(one.replica, one.weight, one.state) for one in after] == [
        ("a", 1, BackendState.ACTIVE),
        ("c", 0, BackendState.DRAINING),
        ("added-by-hand", 1, BackendState.ACTIVE),
    ]


def test_traffic_is_carried_by_active_weighted_others_only() -> None:
    before = table(a=1, b=0)
    assert carries_traffic(before, ())
    assert not carries_traffic(before, ("a",))
    assert not carries_traffic(moved(before, *draining(before, ("a",))), ())
    assert without(before, ("a", "b")) == ()


@pytest.mark.parametrize(
    ("share", "replaced", "needed"),
    [(0.1, 1, 1), (0.1, 10, 1), (0.5, 3, 2), (0.7, 10, 7), (1, 3, 3)],
)
def test_new_replicas_are_rounded_up(share: float, replaced: int, needed: int) -> None:
    assert replicas_needed(share, replaced) == needed
