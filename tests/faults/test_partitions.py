"""Black holes between any two: noticed, nothing decided in them, healed without loss."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from optiinfra.events.bus import Bus
from tests.faults.proxy import Proxy, proxied
from tests.faults.stand import Stand, playing


@pytest.mark.parametrize("who", ["coordinator", "agents"])
@pytest.mark.parametrize("far", ["nats_url", "postgres_url"])
async def test_a_black_hole_before_a_server_loses_nothing(stand: Stand, who: str, far: str) -> None:
    async with proxied(getattr(stand.config("coordinator"), far)) as hole:
        behind: dict[str, Any] = {far: hole.url}
        roles = [
            stand.role(role, **(behind if role == who else {}))
            for role in ("coordinator", "agents")
        ]
        async with playing(*roles):
            await stand.propose(3, soak_s=0.5)
            await stand.staged(1)
            await in_the_dark(hole, 4.0)
            await stand.propose(2)
            await stand.settled()


async def in_the_dark(hole: Proxy, seconds: float) -> None:
    hole.open.clear()
    await asyncio.sleep(seconds)  # the outage itself
    hole.open.set()


async def test_agents_that_cannot_be_heard_veto_by_their_silence(stand: Stand) -> None:
    async with proxied(stand.nats.url) as hole:
        agents = stand.role("agents", nats_url=hole.url)
        async with playing(stand.role("coordinator"), agents):
            await stand.propose(1)
            await stand.all_completed()
            hole.open.clear()
            await stand.propose(1)
            await stand.until("SELECT count(*) FROM sagas WHERE state = 'vetoed'", 1, 60)
            hole.open.set()
            await stand.settled()
    executed = await stand.count(
        "SELECT count(*) FROM event_log JOIN sagas ON chain = change_id"
        " WHERE state = 'vetoed' AND type LIKE 'optiinfra.execution.requested.%'"
    )
    assert executed == 0


async def test_a_peer_that_stopped_answering_is_noticed_within_half_a_minute(stand: Stand) -> None:
    async with proxied(stand.nats.url) as hole:
        bus = await Bus.connect(hole.url, name="lonely")
        hole.open.clear()
        async with asyncio.timeout(35):
            while bus.is_connected:  # noqa: ASYNC110 - the client tells it to nobody else
                await asyncio.sleep(0.2)
        hole.open.set()
        assert await bus.connected(10)
        await bus.close()
