"""Ten times the metrics that a slow store takes: memory is bounded, changes go on as before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from statistics import quantiles

import psutil
from nats.js.errors import NotFoundError

from optiinfra.events.subjects import Stream
from tests.faults.flood import NAME, TAKEN_PER_S
from tests.faults.oracle import ENDS
from tests.faults.processes import Program
from tests.faults.stand import Stand, playing

MIB = 1 << 20
TURNS = 2
"""Quiet and flood take turns, so that a machine that is busy for a while is it in both."""
WAVES = 2
A_WAVE = 4
A_TURN = 1_500
GROWS_MIB = 12
"""Twice what was measured; a hand without its limit grows by five times this."""


async def test_a_flood_of_metrics_before_a_slow_store_slows_no_change_down(stand: Stand) -> None:
    taker = stand.module("tests.faults.flood", "take", stand.nats.url)
    teller = stand.module("tests.faults.flood", "say", stand.nats.url, str(10 * TAKEN_PER_S))
    calm, flooded, grown = [], [], []
    async with playing(stand.role("coordinator"), stand.role("agents"), taker):
        await until_listening(stand)
        await waves(stand, 1)  # until all have started
        for turn in range(1, TURNS + 1):
            calm += await waves(stand, WAVES)
            async with playing(teller):
                await until_behind(stand, turn * A_TURN)
                grown.append(resident_mib(taker))
                flooded += await waves(stand, WAVES)
                grown.append(resident_mib(taker))
        await stand.all_completed()
    assert max(grown) - grown[0] < GROWS_MIB, grown
    assert upper_quartile(flooded) < 2 * upper_quartile(calm), (calm, flooded)


def upper_quartile(taken: Sequence[float]) -> float:
    """Three of four were quicker; how long the slowest takes, a busy machine decides."""
    return quantiles(taken, n=4)[2]


async def waves(stand: Stand, count: int) -> list[float]:
    """How long each of some changes took from its proposal to its end, s, by the log."""
    taken = []
    for _ in range(count):
        made = await stand.propose(A_WAVE)
        await stand.settled()
        async with stand.database.connection() as connection:
            rows = await connection.fetch(_TAKEN, [one.id for one in made], ENDS)
        taken += [float(row["taken"]) for row in rows]
    return taken


async def until_listening(stand: Stand) -> None:
    """Until the slow store asks for events: its process imports for longer than others do."""
    async with asyncio.timeout(60):
        while True:
            with suppress(NotFoundError):
                if (await stand.bus.js.consumer_info(Stream.METRICS.value, NAME)).num_waiting:
                    return
            await asyncio.sleep(0.05)


async def until_behind(stand: Stand, least: int) -> None:
    """Until so many events wait for the slow store: it is a flood indeed."""
    async with asyncio.timeout(60):
        while True:
            info = await stand.bus.js.consumer_info(Stream.METRICS.value, NAME)
            if (info.num_pending or 0) >= least:
                return
            await asyncio.sleep(0.2)


def resident_mib(program: Program) -> float:
    assert program.process is not None
    return float(psutil.Process(program.process.pid).memory_info().rss) / MIB


_TAKEN = """
SELECT extract(epoch FROM max(at) FILTER (WHERE type = ANY($2)) - min(said_at)) AS taken
FROM event_log WHERE chain = ANY($1) GROUP BY chain
"""
