"""Undoing under faults: the fleet is as it was, whatever died on the way."""

from __future__ import annotations

from collections.abc import Sequence

from optiinfra.events import facts as f
from optiinfra.events.publish import Publisher
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.recommendation import Recommendation
from tests.faults.stand import Stand, playing

SOAK_S = 60.0


async def test_an_undo_survives_every_death_of_its_executor(stand: Stand) -> None:
    crashes = [
        ("put.after", 2), ("terminate.before", 1), ("terminate.after", 1), ("finish.before", 1),
        ("finish.after", 1),
    ]  # fmt: skip
    deaths = len(crashes)
    agents = stand.role("agents", crashes)
    async with playing(stand.role("coordinator"), agents):
        made = await stand.propose(3, soak_s=SOAK_S)
        await regress(stand, made)
        await stand.settled()
    assert agents.exits[:deaths] == [-9] * deaths
    assert await unlike_before(stand, made) == []


async def test_without_intents_an_undo_knows_of_nothing_to_undo(stand: Stand) -> None:
    agents = stand.role("agents", without=("intents",))
    async with playing(stand.role("coordinator"), agents):
        made = await stand.propose(1, soak_s=SOAK_S)
        await regress(stand, made)
        await stand.until("SELECT count(*) FROM sagas WHERE state = 'rolled_back'", 1)
    assert await unlike_before(stand, made) == [made[0].deployment]


async def regress(stand: Stand, made: Sequence[Recommendation]) -> None:
    """Lets the first stage of each come into force, then says that answers have become worse."""
    await stand.staged(len(made))
    publisher = Publisher(stand.bus, "application", now, new_id)
    for one in made:
        alarm = f.QualityRegressed(change=one.id, reason="answers are worse")
        await publisher.publish(publisher.event(alarm, tenant="acme"))


async def unlike_before(stand: Stand, made: Sequence[Recommendation]) -> list[str]:
    """The deployments whose machines or routes are not as they were before their change."""
    different = []
    for one in made:
        machines = await stand.target.replicas("acme", one.deployment)
        table = (await stand.target.status("acme", one.deployment)).table
        first = f"{one.deployment}-1"
        shares = {backend.replica: backend.weight for backend in table.backends}
        if [machine.id for machine in machines] != [first] or shares != {first: 1.0}:
            different.append(one.deployment)
    return different
