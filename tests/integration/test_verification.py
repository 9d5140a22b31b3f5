"""The log of a real PostgreSQL, tampered with by hand: the first broken event is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from optiinfra.coordinator.runner import Runner
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.schemas.errors import OptiInfraError
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.postgres import verification
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.verification import verify
from tests.factories import event, recommendation, vote

PROPOSALS = [recommendation(n, deployment=f"d-{n}") for n in range(5)]


class Silent:
    """A bus that takes everything."""

    async def publish_many(self, events: list[Event]) -> list[int | OptiInfraError]:
        return list(range(1, len(events) + 1))


@dataclass(frozen=True)
class Logged:
    """A database with the logs of five changes in it."""

    database: Database

    async def do(self, statement: str, *arguments: object) -> None:
        async with self.database.connection() as connection:
            assert (await connection.execute(statement, *arguments)).split()[-1] != "0"

    async def row(self, chain: str, version: int) -> tuple[int, str]:
        async with self.database.connection() as connection:
            found = await connection.fetchrow(
                "SELECT position, event_id FROM event_log WHERE chain = $1 AND version = $2",
                chain,
                version,
            )
        assert found is not None
        return found["position"], found["event_id"]


@pytest.fixture
async def logged(database: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Logged]:
    monkeypatch.setattr(verification, "CHUNK", 7)
    async with open_database(database) as opened:
        runner = Runner(opened, Silent(), Rules)  # type: ignore[arg-type]
        for proposal in PROPOSALS:
            await runner.handle([event(f.RecommendationProposed(recommendation=proposal))])
            await runner.handle([event(vote(proposal.id, agent)) for agent in sorted(VOTERS)])
        yield Logged(opened)


async def test_a_log_that_nobody_touched_is_whole(logged: Logged) -> None:
    found = await verify(logged.database)
    assert found.ok
    assert found.chains == len(PROPOSALS)
    assert found.events > 7 * len(PROPOSALS)
    assert await verify(logged.database, "acme") == found
    assert (await verify(logged.database, "nobody")).events == 0


async def test_a_changed_row_is_named(logged: Logged) -> None:
    chain = PROPOSALS[2].id
    position, event_id = await logged.row(chain, 3)
    await logged.do(
        "UPDATE event_log SET body = body || ' ' WHERE chain = $1 AND version = 1",
        PROPOSALS[4].id,
    )
    await logged.do("UPDATE event_log SET source = 'x' WHERE chain = $1 AND version = 3", chain)
    found = await verify(logged.database)
    assert len(found.breaks) == 2
    first = found.breaks[0]
    assert (first.chain, first.version, first.event_id, first.position) == (
        chain,
        3,
        event_id,
        position,
    )
    assert first.what == "its content does not match its hash"


async def test_a_dropped_row_is_named_by_the_one_after_it(logged: Logged) -> None:
    chain = PROPOSALS[1].id
    _, event_id = await logged.row(chain, 3)
    await logged.do("DELETE FROM event_log WHERE chain = $1 AND version = 2", chain)
    [broken] = (await verify(logged.database)).breaks
    assert (broken.version, broken.event_id) == (3, event_id)
    assert "missing" in broken.what


async def test_two_rows_that_changed_places_are_named(logged: Logged) -> None:
    chain = PROPOSALS[0].id
    for old, new in ((2, -1), (3, 2), (-1, 3)):
        await logged.do(
            "UPDATE event_log SET version = $3 WHERE chain = $1 AND version = $2", chain, old, new
        )
    [broken] = (await verify(logged.database)).breaks
    assert broken.version == 2
    assert broken.what == "it does not continue from the event before it"


async def test_a_tail_that_was_cut_off_is_missed_by_the_head(logged: Logged) -> None:
    chain = PROPOSALS[3].id
    await logged.do(
        "DELETE FROM event_log WHERE chain = $1 AND version >="
        " (SELECT max(version) FROM event_log WHERE chain = $1)",
        chain,
    )
    [broken] = (await verify(logged.database)).breaks
    assert "its head claims" in broken.what


async def test_whole_chains_that_are_gone_on_either_side_are_named(logged: Logged) -> None:
    await logged.do("DELETE FROM event_log WHERE chain = $1", PROPOSALS[0].id)
    await logged.do("DELETE FROM sagas WHERE change_id = $1", PROPOSALS[1].id)
    found = {one.chain: one.what for one in (await verify(logged.database, "acme")).breaks}
    assert "the log has nothing of it" in found[PROPOSALS[0].id]
    assert found[PROPOSALS[1].id] == "there is no head for this chain"


async def test_a_forged_head_is_named(logged: Logged) -> None:
    await logged.do("UPDATE sagas SET hash = $2 WHERE change_id = $1", PROPOSALS[2].id, "f" * 64)
    [broken] = (await verify(logged.database)).breaks
    assert broken.what == "the head names another hash than the last event"
