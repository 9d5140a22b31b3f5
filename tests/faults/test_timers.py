"""Timers that come due while nobody is there to fire them."""

from __future__ import annotations

import asyncio

from optiinfra.storage.embedded.nats import NatsServer
from tests.faults.stand import Stand, playing

_FIRED = "SELECT count(*) FROM event_log WHERE type LIKE 'optiinfra.timer.fired.%'"


async def test_a_timer_outlives_coordinator_and_broker_that_are_killed_together(
    stand: Stand, server: NatsServer
) -> None:
    """It comes due while both are away, fires once they are back, and never early."""
    first = stand.role("coordinator", restarts=False)
    async with playing(stand.role("agents")):
        async with playing(first):
            await stand.propose(1, soak_s=3.0)
            await stand.staged(1)
            await stand.until("SELECT count(*) FROM timers WHERE name = 'soak'", 1)
            first.kill()
            await asyncio.to_thread(server.kill)
            await first.ended()
        fired = await stand.count(_FIRED)
        await stand.until(
            "SELECT count(*) FROM timers WHERE name = 'soak' AND fire_at < clock_timestamp()", 1
        )
        assert await stand.count(_FIRED) == fired
        due = "SELECT extract(epoch FROM fire_at)::bigint FROM timers WHERE name = 'soak'"
        due_s = await stand.count(due)
        await asyncio.to_thread(server.start)
        async with playing(stand.role("coordinator")):
            await stand.all_completed()
    asked = (
        "SELECT extract(epoch FROM min(at))::bigint FROM event_log"
        " WHERE type LIKE 'optiinfra.gate.requested.%'"
    )
    assert await stand.count(asked) >= due_s
