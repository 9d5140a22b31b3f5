"""What a downstream system hears of changes: complete, each end once, in the order of the log."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from optiinfra.events.bus_roles import BusRole
from optiinfra.events.envelope import Event
from optiinfra.events.facts import TERMINAL_FACTS
from optiinfra.events.replay import replay
from optiinfra.events.subjects import SUBJECTS, Stream
from optiinfra.events.subscribe import subscribe
from optiinfra.storage.embedded.nats import NatsServer
from tests.coordinator_stand import Stand, opened
from tests.factories import recommendation

COUNT = 12
_KEPT = {row.type for row in SUBJECTS if row.stream is Stream.CHANGES}


@pytest.fixture
async def story(
    nats_server: Callable[[], NatsServer], database: str
) -> AsyncIterator[tuple[Stand, NatsServer]]:
    """Changes that went from proposal to completion, all of them said."""
    server = nats_server()
    async with opened(server.url, database) as stand:
        await stand.cast()
        await stand.coordinator()
        proposals = [recommendation(n, deployment=f"d-{n}") for n in range(COUNT)]
        await stand.propose(*proposals)
        await stand.until_completed(proposals, 60.0)
        await stand.until("SELECT count(*) = 0 FROM outbox WHERE sent_seq IS NULL")
        yield stand, server


async def _by_change(stand: Stand) -> dict[str, list[Event]]:
    told: dict[str, list[Event]] = defaultdict(list)
    async for _, event in replay(stand.bus):
        if event.correlation is not None and event.source == "coordinator":
            told[event.correlation].append(event)
    return told


async def test_the_stream_tells_each_change_in_the_order_of_its_log(
    story: tuple[Stand, NatsServer],
) -> None:
    stand, _ = story
    told = await _by_change(stand)
    assert len(told) == COUNT
    for change, events in told.items():
        rows = await stand.fetch(
            "SELECT event_id FROM event_log WHERE chain = $1 AND source = 'coordinator'"
            " AND type = ANY($2) ORDER BY version",
            change,
            sorted(_KEPT),
        )
        assert [event.id for event in events] == [row["event_id"] for row in rows]


async def test_a_cause_stands_before_what_follows_from_it(story: tuple[Stand, NatsServer]) -> None:
    stand, _ = story
    places = {event.id: sequence async for sequence, event in replay(stand.bus)}
    caused = 0
    async for sequence, event in replay(stand.bus):
        if event.causation in places:
            assert places[event.causation] < sequence
            caused += 1
    assert caused > COUNT


async def test_each_change_ends_with_one_fact_and_the_coordinator_says_nothing_after_it(
    story: tuple[Stand, NatsServer],
) -> None:
    stand, _ = story
    for events in (await _by_change(stand)).values():
        ends = [event.fact.kind in TERMINAL_FACTS for event in events]
        assert (sum(ends), ends[-1]) == (1, True)


async def test_a_subscriber_that_comes_late_hears_all_of_it_with_its_own_credential(
    story: tuple[Stand, NatsServer],
) -> None:
    stand, server = story
    wanted = {event.id for events in (await _by_change(stand)).values() for event in events}
    heard: set[str] = set()
    source = subscribe(server.url_for(BusRole.SUBSCRIBER), tenant="acme", since_sequence=0)
    async with asyncio.timeout(20), aclosing(source):
        while not wanted <= heard:
            heard.add((await anext(source)).event.id)
