"""The API and the gateway killed while changes go on, as processes that an operator starts."""

from __future__ import annotations

import asyncio

import httpx

from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.routing import RouteTable
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.ports import free_port, free_ports
from optiinfra.storage.postgres.access import AccessTokens
from tests.faults.child import ADMIN_TOKEN
from tests.faults.processes import Program, until_up
from tests.faults.stand import SETTLE_S, Stand, playing

_GRANTED = "SELECT count(*) FROM event_log WHERE type LIKE 'optiinfra.approval.granted.%'"


async def test_an_api_that_dies_with_a_decision_in_hand_takes_it_once(stand: Stand) -> None:
    port = free_port()
    api = stand.product("portal-api", PORTAL_PORT=str(port))
    async with playing(api, stand.role("coordinator", asks=True), stand.role("agents")):
        made = await stand.propose(4)
        await stand.until("SELECT count(*) FROM sagas WHERE state = 'awaiting_approval'", len(made))
        token = await AccessTokens(stand.database).issue("acme", "ana", Role.APPROVER, lasts_s=600)
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{port}/api/v1/"
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as http:
            for number, one in enumerate(made):
                await approve(http, one, api if number % 2 else None, stand.chance.random() / 20)
        await stand.all_completed()
    assert await stand.count(_GRANTED) == len(made)
    assert len(api.exits) >= 2


async def approve(
    http: httpx.AsyncClient, one: Recommendation, dying: Program | None, after_s: float
) -> None:
    """Until it is accepted; `dying` is killed `after_s` after the first time that it was asked."""
    async with asyncio.timeout(SETTLE_S):
        while True:
            asked = asyncio.create_task(_ask(http, one))
            if dying is not None and (await http_is_up(http)):
                await asyncio.sleep(after_s)
                dying.kill()
                dying = None
            if await asked:
                return
            await asyncio.sleep(0.1)


async def _ask(http: httpx.AsyncClient, one: Recommendation) -> bool:
    try:
        answer = await http.post(
            f"recommendations/{one.id}/approve",
            json={"reason": "looks right"},
            headers={"If-Match": f'"{one.version_hash}"', "Idempotency-Key": one.id},
        )
    except httpx.TransportError:
        return False
    assert answer.status_code in (202, 503), answer.text
    return answer.status_code == 202


async def http_is_up(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("agents")).status_code == 200
    except httpx.TransportError:
        return False


async def test_a_gateway_killed_while_routes_change_keeps_each_change_of_them_once(
    stand: Stand,
) -> None:
    port, admin = free_ports(2)
    gateway = stand.product(
        "gateway",
        GATEWAY_PORT=str(port),
        GATEWAY_ADMIN_PORT=str(admin),
        GATEWAY_ADMIN_TOKEN=ADMIN_TOKEN,
    )
    url = f"http://127.0.0.1:{admin}"
    agents = stand.role("agents", gateway=url)
    async with (
        playing(gateway, stand.role("coordinator"), agents),
        GatewayTraffic(url, ADMIN_TOKEN) as traffic,
    ):
        await until_up(url)
        await move(stand, traffic, 1)
        await stand.all_completed()
        await move(stand, traffic, 4)
        for _ in range(3):
            await asyncio.sleep(stand.chance.uniform(0.2, 1.0))
            gateway.kill()
            await until_up(url)
        await stand.all_completed()
        tables = [(await traffic.status("acme", one.deployment)).table for one in stand.proposed]
    assert len(gateway.exits) >= 3
    assert len({table.version for table in tables}) == 1, [table.version for table in tables]
    assert all(_only_new(table) for table in tables), tables


async def move(stand: Stand, traffic: GatewayTraffic, count: int) -> None:
    """Proposes moves of deployments whose routes the gateway knows."""
    made = stand.prepared(count, soak_s=0.5)
    for one in made:
        table = (await stand.target.status("acme", one.deployment)).table
        await traffic.put(table.model_copy(update={"version": 1, "model": one.deployment}))
    await stand.say(made)


def _only_new(table: RouteTable) -> bool:
    """Whether the machine of before is gone from the routes, and another is in its place."""
    names = [backend.replica for backend in table.backends]
    return bool(names) and f"{table.deployment}-1" not in names
