"""An export of the log proves itself without a database, and shows where somebody touched it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest

from optiinfra.coordinator.runner import Runner
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.runtime.stores import now
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.export import Range, checked, exported
from tests.factories import event, recommendation, vote
from tests.saga_log import AUTO


class Silent:
    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        return list(range(1, len(events) + 1))


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[Database]:
    async with open_database(database) as opened:
        runner = Runner(opened, Silent(), lambda: AUTO)
        for number in range(3):
            one = recommendation(number, deployment=f"d-{number}")
            await runner.handle([event(f.RecommendationProposed(recommendation=one))])
            await runner.handle([event(vote(one.id, agent)) for agent in VOTERS])
        async with opened.connection() as connection:
            await connection.execute(
                "INSERT INTO audit (tenant, actor, action, target, allowed)"
                " VALUES ('acme', 'person:ann', 'recommendation.approve', 'x', false)"
            )
        yield opened


async def lines_of(postgres: Database, wanted: Range) -> list[bytes]:
    return [line.encode() async for line in exported(postgres, wanted)]


async def test_a_file_nobody_touched_is_whole_and_tells_who_was_denied(postgres: Database) -> None:
    lines = await lines_of(postgres, Range("acme"))
    found = checked(lines)
    assert found.ok
    assert (found.chains, found.audit_rows) == (3, 1)
    assert found.events == len(lines) - 2
    denied = [json.loads(line) for line in lines if b'"line": "audit"' in line]
    assert [(row["actor"], row["allowed"]) for row in denied] == [("person:ann", False)]
    assert (await lines_of(postgres, Range("nobody")))[0].startswith(b'{"line": "manifest"')


async def test_a_changed_a_missing_and_a_moved_line_are_found(postgres: Database) -> None:
    lines = await lines_of(postgres, Range("acme"))
    forged = [*lines]
    forged[2] = forged[2].replace(b"optiinfra.vote", b"optiinfra.note")
    found = checked(forged)
    assert not found.whole
    assert [one.version for one in found.breaks] == [3]
    assert "missing" in checked(lines[:3] + lines[4:]).breaks[0].what
    swapped = [*lines]
    swapped[1], swapped[2] = swapped[2], swapped[1]
    assert checked(swapped).breaks
    without_audit = [line for line in lines if b'"line": "audit"' not in line]
    assert (checked(without_audit).whole, checked(without_audit).breaks) == (False, ())


async def test_what_is_no_export_is_refused(postgres: Database) -> None:
    lines = await lines_of(postgres, Range("acme"))
    for bad, why in (
        (lines[:-1], "before its last line"),
        ([*lines, lines[0]], "after the last line"),
        ([b"{}\n"], "line 1"),
        ([b"no json\n"], "line 1"),
        ([b'{"line": "event"}\n', lines[-1]], "cannot be read"),
    ):
        with pytest.raises(Rejected, match=why):
            checked(bad)


async def test_a_range_takes_whole_chains(postgres: Database) -> None:
    assert checked(await lines_of(postgres, Range("acme", since=now() - timedelta(hours=1)))).ok
    later = await lines_of(postgres, Range("acme", since=now() + timedelta(hours=1)))
    assert len(later) == 1
