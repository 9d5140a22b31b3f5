"""Who is at work, as the log and a real broker tell it; the API signs in as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from optiinfra.events import facts as f
from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import BusRole
from optiinfra.events.consumer_spec import ConsumerSpec
from optiinfra.events.durable import Durable
from optiinfra.events.envelope import Event
from optiinfra.events.subjects import Stream
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.registry import saw
from tests import bus_stand
from tests.bus_stand import running, until
from tests.factories import AT
from tests.integration.api_stand import Stand, standing
from tests.integration.test_api import approve

REGISTERED = f.AgentRegistered(
    tenant="acme", agent="cost", instance="cost-1", version="0.2", capabilities=("propose",), at=AT
)
COST = ConsumerSpec(name="cost", stream=Stream.CHANGES, prefixes=("change.resumed",))


async def detail(stand: Stand, tenant: str = "acme") -> Any:
    async with stand.client(Role.VIEWER, tenant=tenant) as client:
        answer = await client.get("/api/v1/agents/detail")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_agent_is_shown_with_the_change_that_it_is_at(postgres: Database) -> None:
    async with standing(postgres) as stand:
        proposal = await stand.fleet.awaiting("a")
        async with stand.client(Role.APPROVER) as client:
            await approve(client, proposal)
        await stand.fleet.take_in(stand.said.events)
        rules = Rules(name="calm")
        policy = f.PolicyChanged(
            tenant="acme", number=1, version=rules.version, sha256=rules.sha256,
            policy=rules.model_dump(mode="json"), by="file:policy.yaml", written_at=AT, at=AT,
        )  # fmt: skip
        await stand.fleet.hear(REGISTERED, policy)
        beat = f.AgentHeartbeat(
            tenant="acme", agent="cost", instance="cost-1", version="0.2", capabilities=(),
            busy_with=f"execution.requested {proposal.id}", handled=7, failed=1, at=AT,
        )  # fmt: skip
        assert await saw(postgres, beat)
        found = await detail(stand)
        foreign = await detail(stand, "other")
    (one,) = found["agents"]
    assert (one["handled"], one["failed"], one["version"], one["status"]) == (7, 1, "0.2", "alive")
    assert one["work"] == {"title": proposal.title, "deployment": "chat", "state": "executing"}
    assert (one["lag"], one["lag_reason"]) == (None, "this API has no broker to ask")
    coordinator = found["coordinator"]
    assert (coordinator["open_changes"], coordinator["policy"]) == (1, rules.version)
    assert coordinator["last_written_at"] is not None
    assert coordinator["status"] == "unknown"
    assert foreign["agents"] == []
    assert foreign["coordinator"]["open_changes"] == 0


async def test_what_waits_for_a_role_is_what_the_broker_says(
    postgres: Database, nats_server: Callable[[], NatsServer]
) -> None:
    server = nats_server()
    async with bus_stand.stand(server.url) as bus:
        portal = await Bus.connect(server.url_for(BusRole.PORTAL_API), name="portal-api")
        try:
            async with standing(postgres, bus=portal) as stand:
                await stand.fleet.hear(REGISTERED)
                before = await detail(stand)
                await bus.say(3)
                await Durable(bus.bus, COST.durable()).attach()
                waiting = await detail(stand)
                handled: list[Event] = []

                async def handle(event: Event) -> None:
                    handled.append(event)

                async with running(bus.consumer("coordinator", handle=handle)):
                    await until(lambda: len(handled) == 3)
                    working = await detail(stand)
                    async with asyncio.timeout(15):
                        while working["coordinator"]["status"] != "alive":
                            await asyncio.sleep(0.05)
                            working = await detail(stand)
        finally:
            await portal.close()
    assert before["agents"][0]["lag_reason"] == "it has never listened"
    assert waiting["agents"][0]["lag"] == {"waiting": 3, "in_hand": 0, "redelivered": 0}
    assert waiting["coordinator"]["status"] == "unknown"
    assert working["coordinator"]["lag"]["waiting"] == 0


async def test_without_a_broker_the_lag_is_unknown_and_the_rest_is_shown(
    postgres: Database, nats_server: Callable[[], NatsServer]
) -> None:
    bus = await Bus.connect(nats_server().url, name="portal-api")
    await bus.close()
    async with standing(postgres, bus=bus) as stand:
        await stand.fleet.hear(REGISTERED)
        (one,) = (await detail(stand))["agents"]
    assert (one["agent"], one["lag"]) == ("cost", None)
    assert one["lag_reason"]
