"""The weights of an HTTPRoute behind the traffic port, on an API server that keeps the rules."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from optiinfra.agents.actuators.http_route import GatewayRef, HttpRouteTraffic
from optiinfra.agents.actuators.kubernetes_api import HTTP_ROUTE, KubernetesApi
from optiinfra.agents.actuators.traffic import RoutesMoved
from optiinfra.schemas.errors import Conflict, NotFound, Rejected, Unavailable
from optiinfra.schemas.routing import Backend, BackendState, RouteTable
from tests.kubernetes_stub import ClusterAt, Object, stub_cluster

CHAT = ("acme", "chat")
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Road:
    """A route's client with what engines say of themselves; None is silence."""

    traffic: HttpRouteTraffic
    at: ClusterAt
    api: KubernetesApi
    says: dict[str, list[int | None]] = field(default_factory=dict)

    async def requests(self, _: str, replica: str) -> int | None:
        said = self.says.get(replica, [None])
        return said.pop(0) if len(said) > 1 else said[0]

    @property
    def route(self) -> Object:
        (only,) = self.at.stub.of("httproutes")
        return only

    def weights(self) -> list[int]:
        return [one["weight"] for one in self.route["spec"]["rules"][0]["backendRefs"]]

    def gateway_says(self, status: str = "True", *, generation: int | None = None) -> None:
        """What a gateway's controller writes into the route."""
        seen = generation or self.route["metadata"]["generation"]
        condition: Object = {"type": "Accepted", "status": status, "reason": "NoMatchingParent"}
        condition |= {"observedGeneration": seen, "message": "no listener"}
        self.route["status"] = {"parents": [{"conditions": [condition]}]}

    def service(self, replica: str) -> None:
        """Makes the Service of a replica."""
        labels = {
            f"optiinfra.io/{n}": v for n, v in zip(("tenant", "deployment"), CHAT, strict=True)
        }
        body = {
            "metadata": {"name": replica, "labels": {**labels, "optiinfra.io/replica": replica}},
            "spec": {"ports": [{"port": 8000}], "selector": {"app.kubernetes.io/name": replica}},
        }
        self.at.stub._create("services", body)


@pytest.fixture
async def road(tmp_path: Path) -> AsyncIterator[Road]:
    async with stub_cluster(lambda command, _: command, [], takes_routes=False) as at:
        api = at.api(tmp_path)
        made: list[Road] = []

        async def requests(deployment: str, replica: str) -> int | None:
            return await made[0].requests(deployment, replica)

        gateway = GatewayRef("inference", "gateways", "https", {"chat": ("chat.example.com",)})
        made.append(Road(HttpRouteTraffic(api, gateway, requests), at, api))
        for name in "ab":
            made[0].service(name)
        yield made[0]
        await api.close()


def table(version: int, *backends: Backend) -> RouteTable:
    return RouteTable(
        tenant="acme", deployment="chat", model="m", version=version, backends=backends
    )


def backend(replica: str, weight: float = 1.0, **changes: Any) -> Backend:
    return Backend(replica=replica, url="http://x", weight=weight, **changes)


def draining(replica: str) -> Backend:
    return backend(replica, 0.0, state=BackendState.DRAINING)


async def test_what_is_put_is_read_back_and_counts_nothing(road: Road) -> None:
    with pytest.raises(NotFound):
        await road.traffic.status(*CHAT)
    put = await road.traffic.put(table(1, backend("a", 0.9), backend("b", 0.1)))
    assert put == await road.traffic.status(*CHAT)
    assert put.table == table(1, backend("a", 0.9), backend("b", 0.1))
    assert put.counters == (), "unknown, and not zero"
    assert road.weights() == [10_000, 1_111]
    spec = road.route["spec"]
    assert spec["parentRefs"] == [
        {"name": "inference", "namespace": "gateways", "sectionName": "https"}
    ]
    assert spec["hostnames"] == ["chat.example.com"]


async def test_the_shipped_role_allows_what_is_done_and_nothing_else(road: Road) -> None:
    roles = yaml.safe_load_all((ROOT / "deploy/kubernetes-role.yaml").read_text())
    (rule,) = next(one for one in roles if one["metadata"]["name"] == "optiinfra-route")["rules"]
    assert rule["apiGroups"] == [HTTP_ROUTE.group]
    for version in (1, 2):
        await road.traffic.put(table(version, backend("a")))
    done = {verb for verb, plural in road.at.stub.calls if plural == HTTP_ROUTE.plural}
    assert done == set(rule["verbs"])


async def test_what_drains_gets_nothing_and_the_least_share_gets_something(road: Road) -> None:
    await road.traffic.put(table(1, draining("a"), backend("b")))
    assert road.weights() == [0, 10_000]
    await road.traffic.put(table(2, backend("a", 1e-9), backend("b")))
    assert road.weights() == [1, 10_000]
    status = await road.traffic.put(table(3, backend("a", 0), backend("b")))
    assert road.weights() == [0, 10_000]
    assert status.table.version == 3


async def test_a_mark_that_changes_no_weight_is_a_version_too(road: Road) -> None:
    await road.traffic.put(table(1, backend("a", 0), backend("b")))
    before = road.route["metadata"]["generation"]
    put = await road.traffic.put(table(2, draining("a"), backend("b")))
    assert road.route["metadata"]["generation"] == before
    assert put == await road.traffic.status(*CHAT)
    assert put.table.version == 2
    with pytest.raises(RoutesMoved):
        await road.traffic.put(table(2, backend("b")))


async def test_a_stale_writer_is_told_the_version_in_force(road: Road) -> None:
    await road.traffic.put(table(1, backend("a")))
    with pytest.raises(RoutesMoved) as caught:
        await road.traffic.put(table(1, backend("b")))
    assert caught.value.current_version == 1
    assert (await road.traffic.status(*CHAT)).table == table(1, backend("a"))


async def test_of_writers_at_the_same_time_one_wins(road: Road) -> None:
    for version in (1, 2):
        found = await asyncio.gather(
            *(road.traffic.put(table(version, backend(name))) for name in "abab"),
            return_exceptions=True,
        )
        assert sum(not isinstance(one, BaseException) for one in found) == 1
        assert sum(isinstance(one, RoutesMoved) for one in found) == 3
        assert (await road.traffic.status(*CHAT)).table.version == version


async def test_backends_are_set_whoever_wrote_in_between(road: Road) -> None:
    await road.traffic.put(table(1, backend("a")))
    await asyncio.gather(*(road.traffic.set_backends(*CHAT, (backend(name),)) for name in "ab"))
    final = (await road.traffic.status(*CHAT)).table
    assert len(final.backends) == 1
    same = await road.traffic.set_backends(*CHAT, final.backends)
    assert same.table.version == final.version


async def test_a_writer_that_always_loses_gives_up(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    await road.traffic.put(table(1, backend("a")))

    async def lost(*_: object) -> dict[str, Any]:
        raise Conflict("the object has been modified")

    monkeypatch.setattr(road.api, "replace", lost)
    with pytest.raises(RoutesMoved, match="wrote first"):
        await road.traffic.set_backends(*CHAT, (backend("b"),))


async def test_what_a_person_changes_is_read_and_moves_the_version_on(road: Road) -> None:
    await road.traffic.put(table(1, backend("a", 0.5), draining("b")))
    by_hand = await road.api.get(HTTP_ROUTE, road.route["metadata"]["name"])
    assert by_hand is not None
    by_hand["spec"]["rules"][0]["timeouts"] = {"request": "600s"}
    by_hand = await road.api.replace(HTTP_ROUTE, by_hand)
    with pytest.raises(RoutesMoved):
        await road.traffic.put(table(2, backend("b")))
    assert (await road.traffic.status(*CHAT)).table == table(2, backend("a", 0.5), draining("b"))
    by_hand["spec"]["rules"][0]["backendRefs"][1]["weight"] = 30
    by_hand["spec"]["rules"][0]["backendRefs"].append({"name": "other", "port": 80, "weight": 5})
    await road.api.replace(HTTP_ROUTE, by_hand)
    found = (await road.traffic.status(*CHAT)).table
    assert [(one.replica, one.weight) for one in found.backends] == [
        ("a", 10_000), ("b", 30), ("other", 5)
    ]  # fmt: skip
    assert found.version == 3
    await road.traffic.put(table(4, backend("b")))
    assert road.route["spec"]["rules"][0]["timeouts"] == {"request": "600s"}, "theirs stays"


async def test_a_route_of_the_operator_is_taken_over_by_its_labels(road: Road) -> None:
    await road.traffic.put(table(1, backend("a")))
    road.route["metadata"]["annotations"] = {}
    found = (await road.traffic.status(*CHAT)).table
    assert (found.version, found.model) == (1, "")
    assert found.backends[0].url.startswith("http://127.")
    road.route["metadata"]["annotations"] = {"optiinfra.io/route": "{"}
    with pytest.raises(Rejected, match="unreadable"):
        await road.traffic.status(*CHAT)
    second = {**road.route, "metadata": {**road.route["metadata"], "name": "second"}}
    road.at.stub.objects["httproutes", "second"] = second
    with pytest.raises(Rejected, match=r"several HTTPRoutes: chat-\w+, second"):
        await road.traffic.status(*CHAT)


async def test_what_a_rule_cannot_hold_is_refused(road: Road) -> None:
    with pytest.raises(Rejected, match="no Service is before z"):
        await road.traffic.put(table(1, backend("a"), backend("z")))
    with pytest.raises(Rejected, match="at most 16"):
        await road.traffic.put(table(1, *(backend(f"r{n}") for n in range(17))))
    wrong = {"metadata": {"name": "x"}, "spec": {"rules": [{"backendRefs": [{"name": "a"}]}]}}
    with pytest.raises(Rejected, match="'port' is a required property"):
        await road.api.create(HTTP_ROUTE, wrong)
    assert road.at.stub.of("httproutes") == []


async def test_what_gets_nothing_may_be_gone(road: Road) -> None:
    await road.traffic.put(table(1, backend("a"), backend("b")))
    del road.at.stub.objects["services", "a"]
    put = await road.traffic.put(table(2, draining("a"), backend("b")))
    assert put == await road.traffic.status(*CHAT)
    assert put.table.backends == (draining("a"), backend("b"))
    assert road.weights() == [10_000]


async def test_a_route_that_no_gateway_takes_is_not_in_force(road: Road) -> None:
    await road.traffic.put(table(1, backend("a")))
    road.gateway_says("False")
    with pytest.raises(Unavailable, match=r"no gateway takes HTTPRoute chat-\w+: no listener"):
        await road.traffic.status(*CHAT)
    road.gateway_says("False", generation=99)
    assert (await road.traffic.status(*CHAT)).table.version == 1, "said of another generation"


async def test_a_replica_is_drained_when_its_engine_says_so_twice(road: Road) -> None:
    road.service("c")
    await road.traffic.put(table(1, draining("c"), backend("b")))
    road.gateway_says()
    road.says["c"] = [2, 0, 1, 0, 0]
    assert await road.traffic.await_drained(*CHAT, "c", 10)
    assert road.says["c"] == [0]


@pytest.mark.parametrize("doubt", ["engine", "gateway", "older generation", "API"])
async def test_what_is_unknown_is_not_drained(road: Road, doubt: str) -> None:
    road.service("c")
    await road.traffic.put(table(1, draining("c"), backend("b")))
    road.says["c"] = [None] if doubt == "engine" else [0]
    if doubt != "gateway":
        road.gateway_says(generation=99 if doubt == "older generation" else None)
    if doubt == "API":
        road.at.stub.failing = 503
    assert not await road.traffic.await_drained(*CHAT, "c", 1.2)


async def test_only_what_gets_nothing_new_can_be_waited_for(road: Road) -> None:
    await road.traffic.put(table(1, backend("a")))
    with pytest.raises(Conflict, match="drain it first"):
        await road.traffic.await_drained(*CHAT, "a", 1)
    road.says["a"] = [0]
    assert await road.traffic.await_drained("acme", "unrouted", "a", 5)


async def test_deployments_whose_names_run_together_have_routes_of_their_own(road: Road) -> None:
    for tenant, deployment in (("a", "b-c"), ("a-b", "c")):
        await road.traffic.put(
            RouteTable(tenant=tenant, deployment=deployment, model="m", version=1)
        )
    assert len(road.at.stub.of("httproutes")) == 2
