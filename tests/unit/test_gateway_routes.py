"""Choosing a backend and replacing a table."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.gateway.routes import Route, RouteKey, Routes, StaleRoutes
from optiinfra.schemas.errors import NotFound, Rejected
from optiinfra.schemas.routing import Backend, BackendState, RouteTable

KEY = RouteKey("acme", "chat")


def table(
    version: int = 1, model: str = "m", url: str = "http://h:1", **weights: float
) -> RouteTable:
    backends = tuple(Backend(replica=name, url=url, weight=w) for name, w in weights.items())
    return RouteTable(
        tenant="acme", deployment="chat", model=model, version=version, backends=backends
    )


def weighted(weights: dict[str, float]) -> RouteTable:
    backends = tuple(Backend(replica=n, url="http://h:1", weight=w) for n, w in weights.items())
    return table().model_copy(update={"backends": backends})


def arm(route: Route, unit: str) -> str:
    return route.ranked(unit)[0].replica


def test_shares_converge_to_the_weights() -> None:
    route = Route(table(a=6, b=3, c=1))
    shares = Counter(arm(route, f"s{n}") for n in range(20_000))
    for name, weight in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        deviation = (weight * (1 - weight) / 20_000) ** 0.5
        assert abs(shares[name] / 20_000 - weight) < 4 * deviation


def test_a_shift_moves_only_the_units_it_must() -> None:
    before, after = Route(table(a=0.9, b=0.1)), Route(table(a=0.5, b=0.5))
    moves = Counter((arm(before, f"s{n}"), arm(after, f"s{n}")) for n in range(10_000))
    assert moves[("b", "a")] == 0
    assert abs(moves[("a", "b")] / 10_000 - 0.4) < 0.02


def test_a_backend_that_goes_moves_only_its_own_units() -> None:
    before, after = Route(table(a=1, b=1, c=1)), Route(table(a=1, b=1))
    for number in range(2_000):
        old = arm(before, f"s{number}")
        assert old == "c" or arm(after, f"s{number}") == old


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1e300), min_size=1, max_size=8),
    st.text(st.characters(), max_size=50),
)
def test_any_unit_ranks_each_weighted_backend_once(weights: dict[str, float], unit: str) -> None:
    ranked = Route(weighted(weights)).ranked(unit)
    assert sorted(b.replica for b in ranked) == sorted(n for n, w in weights.items() if w > 0)
    assert ranked == Route(weighted(weights)).ranked(unit)


def test_draining_and_weightless_backends_get_nothing() -> None:
    base = table(a=1, b=0)
    draining = base.backends[0].model_copy(update={"state": BackendState.DRAINING})
    assert (
        Route(base.model_copy(update={"backends": (draining, base.backends[1])})).ranked("s") == []
    )


def test_a_table_must_follow_the_one_in_force() -> None:
    routes = Routes().replaced(table(1, a=1))
    assert routes.version(KEY) == 1
    for version in (0, 1, 3):
        with pytest.raises(StaleRoutes) as caught:
            routes.replaced(table(version, a=1))
        assert caught.value.current_version == 1
    assert routes.replaced(table(2, a=2)).version(KEY) == 2


def test_a_removed_table_keeps_its_version_so_that_late_writers_fail() -> None:
    routes = Routes().replaced(table(1, a=1)).removed(KEY, 1)
    assert (routes.version(KEY), routes.get(KEY), routes.by_model("m")) == (2, None, None)
    with pytest.raises(StaleRoutes):
        routes.replaced(table(1, a=1))
    with pytest.raises(NotFound):
        routes.removed(KEY)
    assert routes.replaced(table(3, a=1)).retired == {}


def test_removing_another_version_is_stale() -> None:
    with pytest.raises(StaleRoutes):
        Routes([table(4, a=1)]).removed(KEY, 3)


def test_two_deployments_cannot_serve_one_model_name() -> None:
    other = RouteTable(tenant="acme", deployment="batch", model="m", version=1)
    with pytest.raises(Rejected, match="already routed"):
        Routes([table(1, a=1)]).replaced(other)


@pytest.mark.parametrize(
    "url",
    ["h:1", "ftp://h", "http://", "http://u:p@h", "http://h/?q=1", "http://h:99999", "http://h/#f"],
)
def test_an_unusable_url_is_rejected(url: str) -> None:
    with pytest.raises(Rejected, match="no usable url"):
        Routes().replaced(table(1, url=url, a=1))


def test_a_deployment_is_found_by_its_names() -> None:
    twin = RouteTable(tenant="other", deployment="chat", model="n", version=1)
    routes = Routes([table(1, a=1)])
    assert routes.by_name("chat") is routes.by_name("acme/chat") is routes.by_model("m")
    assert routes.by_name("nobody/chat") is None
    with pytest.raises(Rejected, match="several tenants"):
        Routes([table(1, a=1), twin]).by_name("chat")
