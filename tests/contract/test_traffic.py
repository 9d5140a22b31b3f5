"""The traffic client against the real gateway's admin plane."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from pydantic import SecretStr

from optiinfra.agents.actuators.traffic import Backends, GatewayTraffic, RoutesMoved
from optiinfra.gateway.app import Gateway, GatewayConfig
from optiinfra.schemas.errors import Conflict, Denied, NotFound, Rejected, Unavailable
from optiinfra.schemas.routing import Backend, BackendState, RouteStatus, RouteTable

TOKEN = "an-admin-token-for-tests"
CHAT = ("acme", "chat")


def backend(name: str, weight: float = 1.0, url: str = "http://127.0.0.1:9") -> Backend:
    return Backend(replica=name, url=url, weight=weight)


def table(version: int, *backends: Backend) -> RouteTable:
    return RouteTable(
        tenant="acme", deployment="chat", model="m", version=version, backends=backends
    )


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    config = GatewayConfig(state_dir=tmp_path, admin_token=SecretStr(TOKEN), port=0, admin_port=0)
    gateway = Gateway(config, sink=None)
    await gateway.start()
    yield gateway
    await gateway.stop(grace_s=1)


@pytest.fixture
async def traffic(gateway: Gateway) -> AsyncIterator[GatewayTraffic]:
    async with GatewayTraffic(gateway.admin_url, TOKEN) as traffic:
        yield traffic


async def test_what_is_put_is_read_back(traffic: GatewayTraffic) -> None:
    put = await traffic.put(table(1, backend("a")))
    assert put == await traffic.status(*CHAT) == RouteStatus(table=table(1, backend("a")))


async def test_a_stale_writer_is_told_the_version_in_force(traffic: GatewayTraffic) -> None:
    await traffic.put(table(1, backend("a")))
    with pytest.raises(RoutesMoved) as caught:
        await traffic.put(table(1, backend("b")))
    assert isinstance(caught.value, Conflict)
    assert caught.value.current_version == 1
    assert (await traffic.status(*CHAT)).table == table(1, backend("a"))


async def test_what_does_not_exist_is_not_found(traffic: GatewayTraffic) -> None:
    with pytest.raises(NotFound):
        await traffic.status(*CHAT)
    with pytest.raises(NotFound):
        await traffic.delete(*CHAT)
    with pytest.raises(NotFound):
        await traffic.set_backends(*CHAT, (backend("a"),))


async def test_a_removed_table_cannot_be_revived_by_a_late_writer(traffic: GatewayTraffic) -> None:
    await traffic.put(table(1, backend("a")))
    with pytest.raises(RoutesMoved):
        await traffic.delete(*CHAT, version=7)
    await traffic.delete(*CHAT, version=1)
    with pytest.raises(RoutesMoved) as caught:
        await traffic.put(table(1, backend("a")))
    assert caught.value.current_version == 2
    await traffic.put(table(3, backend("a")))


async def test_an_invalid_table_is_rejected(traffic: GatewayTraffic, gateway: Gateway) -> None:
    with pytest.raises(Rejected, match="no usable url"):
        await traffic.put(table(1, backend("a", url="nonsense")))
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        url = f"{gateway.admin_url}/admin/routes/acme/chat"
        for content in ("{", '{"tenant": "acme"}', table(1).model_dump_json().replace("chat", "x")):
            assert (await http.put(url, content=content)).status_code == 422
        assert (await http.delete(url, params={"version": "x"})).status_code == 422
        for since in ("yesterday", "2026-01-01T00:00:00"):
            counters = gateway.admin_url + "/admin/counters"
            assert (await http.get(counters, params={"since": since})).status_code == 422
        assert (await http.get(gateway.admin_url + "/admin/nothing")).status_code == 404
        assert (await http.get(gateway.admin_url + "/admin/routes")).json() == {"tables": []}


@pytest.mark.parametrize("token", ["wrong", TOKEN + "x", "ü"])
async def test_a_wrong_token_is_denied(gateway: Gateway, token: str) -> None:
    async with GatewayTraffic(gateway.admin_url, token) as traffic:
        with pytest.raises(Denied):
            await traffic.put(table(1, backend("a")))
        with pytest.raises(Denied):
            await traffic.counters()


def test_an_empty_token_is_rejected_before_anything_is_sent() -> None:
    with pytest.raises(Rejected, match="token"):
        GatewayTraffic("http://127.0.0.1:9", " ")


async def test_a_gateway_that_is_away_is_unavailable() -> None:
    async with GatewayTraffic("http://127.0.0.1:9", TOKEN, timeout_s=1) as traffic:
        with pytest.raises(Unavailable):
            await traffic.status(*CHAT)
        assert await traffic.await_drained(*CHAT, "a", 0.2) is False


async def test_a_stranger_on_the_port_is_unavailable() -> None:
    answers = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    async with GatewayTraffic("http://gateway", TOKEN, transport=answers) as traffic:
        with pytest.raises(Unavailable):
            await traffic.status(*CHAT)
    broken = httpx.MockTransport(lambda _: httpx.Response(500, text="oops"))
    async with GatewayTraffic("http://gateway", TOKEN, transport=broken) as traffic:
        with pytest.raises(Unavailable):
            await traffic.status(*CHAT)


async def test_weights_shift_and_repeating_a_shift_writes_nothing(traffic: GatewayTraffic) -> None:
    await traffic.put(table(1, backend("a", 1), backend("b", 0)))
    shifted = await traffic.shift(*CHAT, {"a": 0.9, "b": 0.1})
    assert [b.weight for b in shifted.table.backends] == [0.9, 0.1]
    again = await traffic.shift(*CHAT, {"a": 0.9, "b": 0.1})
    assert again.table.version == shifted.table.version == 2
    with pytest.raises(Rejected, match="no such replica"):
        await traffic.shift(*CHAT, {"z": 1})


async def test_concurrent_writers_all_get_their_change_in(traffic: GatewayTraffic) -> None:
    await traffic.put(table(1))

    def adding(name: str) -> Callable[[Backends], Backends]:
        return lambda old: (*old, backend(name))

    async with asyncio.TaskGroup() as group:
        for name in ("a", "b", "c"):
            group.create_task(traffic.modify(*CHAT, adding(name)))
    final = (await traffic.status(*CHAT)).table
    assert {b.replica for b in final.backends} == {"a", "b", "c"}
    assert final.version == 4


async def test_a_writer_that_always_loses_gives_up(traffic: GatewayTraffic) -> None:
    await traffic.put(table(1))
    stale = (await traffic.status(*CHAT)).model_dump_json()

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, text=stale)
        return httpx.Response(409, json={"detail": "moved", "current_version": 9})

    async with GatewayTraffic("http://g", TOKEN, transport=httpx.MockTransport(answer)) as loser:
        with pytest.raises(RoutesMoved):
            await loser.set_backends(*CHAT, (backend("a"),))


async def test_a_replica_drains_when_its_requests_have_ended(
    traffic: GatewayTraffic, gateway: Gateway
) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: web.BaseRequest) -> web.Response:
        arrived.set()
        await go_on.wait()
        return web.json_response({})

    runner = web.ServerRunner(web.Server(slow))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    started = datetime.now(UTC)
    await traffic.put(table(1, backend("a", url=url)))
    with pytest.raises(Conflict, match="drain it first"):
        await traffic.await_drained(*CHAT, "a", 1)
    async with httpx.AsyncClient() as http:
        asking = asyncio.create_task(
            http.post(f"{gateway.url}/v1/chat/completions", json={"model": "m"})
        )
        await asyncio.wait_for(arrived.wait(), 5)
        drained = await traffic.drain(*CHAT, "a")
        assert drained.table.backends[0].state is BackendState.DRAINING
        assert await traffic.await_drained(*CHAT, "a", 0.25) is False
        assert (await traffic.remove(*CHAT, "a")).counters[0].in_flight == 1
        assert await traffic.await_drained(*CHAT, "a", 0.25) is False
        go_on.set()
        assert await traffic.await_drained(*CHAT, "a", 5) is True
        assert (await asking).status_code == 200
    await runner.cleanup()
    for counters in (await traffic.counters(), await traffic.counters(since=started)):
        assert (counters.totals.served, counters.totals.failed) == (1, 0)
        quantile = counters.quantile_s("e2e", 0.95)
        assert quantile is not None
        assert 0.2 < quantile < 10
        assert counters.quantile_s("ttft", 0.95) is None
        assert counters.quantile_s("e2e", 0.5, replicas={"b"}) is None


async def test_health_and_metrics_need_no_token(gateway: Gateway, traffic: GatewayTraffic) -> None:
    await traffic.put(table(1, backend("a")))
    async with httpx.AsyncClient(base_url=gateway.admin_url) as http:
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).json() == {"status": "ready", "deployments": 1}
        assert (
            await http.post(gateway.url + "/v1/completions", json={"model": "m"})
        ).status_code == 502
        text = (await http.get("/metrics")).text
    labels = 'deployment="chat",outcome="failed",replica="a",tenant="acme"'
    assert f"optiinfra_gateway_requests_total{{{labels}}} 1.0" in text
    assert 'optiinfra_gateway_route_version{deployment="chat",tenant="acme"} 1.0' in text
    assert "optiinfra_gateway_ttft_seconds_bucket" in text
