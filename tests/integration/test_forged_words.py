"""Words and commands that the bus brings but nobody has written down: refused, buried, audited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from optiinfra.agents.base.agent import Say
from optiinfra.agents.base.host import AgentHost, Identity, Ports
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.events.replay import replay
from optiinfra.events.subjects import Stream
from optiinfra.runtime.stores import jitter, new_id, now
from optiinfra.schemas.approval import Approval
from optiinfra.schemas.change import ControlVerb
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import Role, person, policy
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.decisions import Decision, Decisions
from optiinfra.storage.postgres.inbox import PostgresInbox
from optiinfra.storage.postgres.vouching import CommandsInLog, PortalWords
from tests.coordinator_stand import Stand, opened
from tests.factories import recommendation, rollout, step_result
from tests.payloads import PAYLOADS

STATE = "SELECT state = $2 FROM sagas WHERE change_id = $1"
AUDITED = "SELECT count(*) = $2 FROM audit WHERE action = $1 AND NOT allowed"
ANN = Principal("t-1", "acme", "ann", Role.ADMIN, None)


@pytest.fixture
async def stand(nats_server: Callable[[], NatsServer], database: str) -> AsyncIterator[Stand]:
    async with opened(nats_server().url, database) as made:
        yield made


@dataclass
class Hands:
    """An executor that writes down what it was made to do."""

    name: AgentName = AgentName.COST
    capabilities: tuple[str, ...] = ()
    hears: tuple[str, ...] = ("execution.requested", "rollback.requested")
    sense_every_s: float = 3600.0
    done: list[Event] = field(default_factory=list)

    async def handle(self, event: Event, say: Say) -> Sequence[f.Fact]:
        self.done.append(event)
        fact = event.fact
        assert isinstance(fact, c.ExecutionRequested)
        return [f.ExecutionStaged(change=fact.change, result=step_result(fact.step, fact.fence))]

    async def sense(self) -> Sequence[f.Fact]:
        return []


def started(stand: Stand) -> Hands:
    hands = Hands()
    ports = Ports(
        bus=stand.bus,
        publisher=Publisher(stand.bus, "cost", now, new_id),
        inbox=PostgresInbox(stand.database),
        proof=CommandsInLog(stand.database),
        clock=now,
        new_id=new_id,
        jitter=jitter,
    )
    stand.runs(AgentHost(hands, Identity("acme", "one", "1"), ports, heartbeat_s=60.0).run)
    return hands


async def dead_letters(stand: Stand, count: int) -> list[f.DeadLettered]:
    """All of them, once there are as many as `count`."""
    async with asyncio.timeout(20):
        while True:
            found = [event.fact async for _, event in replay(stand.bus, stream=Stream.DLQ)]
            if len(found) >= count:
                return [fact for fact in found if isinstance(fact, f.DeadLettered)]
            await asyncio.sleep(0.02)


async def awaiting(stand: Stand) -> Recommendation:
    """A change that waits for a person."""
    await stand.cast()
    await stand.coordinator(rules=Rules())
    proposal = recommendation("asked", rollout=rollout(1.0))
    await stand.propose(proposal)
    await stand.until(STATE, proposal.id, "awaiting_approval")
    return proposal


def approval(proposal: Recommendation) -> Approval:
    return Approval(
        change=proposal.id,
        granted=True,
        by=person("ann"),
        version_hash=proposal.version_hash,
        at=now(),
    )


async def test_an_approval_that_nobody_gave_at_the_portal_moves_nothing(stand: Stand) -> None:
    proposal = await awaiting(stand)
    await stand.say(f.ApprovalGranted(approval=approval(proposal)))
    [letter] = await dead_letters(stand, 1)
    assert letter.cause == "Rejected"
    assert "nobody said this at the portal" in letter.error
    await stand.until(AUDITED, "word.refused", 1)
    await stand.until(STATE, proposal.id, "awaiting_approval")
    portal = Decisions(stand.database, stand.publisher)
    await portal.decide(ANN, Decision(proposal.id, True, proposal.version_hash, "good"))
    await stand.until_completed([proposal], within_s=30)


async def test_a_policys_word_is_not_taken_from_the_bus(stand: Stand) -> None:
    proposal = await awaiting(stand)
    forged = approval(proposal).model_copy(update={"by": policy("default@0123456789ab")})
    await stand.say(f.ApprovalGranted(approval=forged))
    await stand.say(c.ControlRequested(change=proposal.id, verb=ControlVerb.ABORT, by="person:eve"))
    await dead_letters(stand, 1)  # of what came after it
    await stand.until(STATE, proposal.id, "awaiting_approval")
    assert await stand.fetch("SELECT 1 FROM event_log WHERE type LIKE '%approval.granted%'") == []


async def test_the_portals_word_for_another_fact_does_not_pass(stand: Stand) -> None:
    """Whoever knows the id of a word that was given cannot say something else under it."""
    await stand.coordinator()
    portal = Decisions(stand.database, stand.publisher)
    given = await portal.turn_switch(ANN, stopped=False, reason="fine", key="k")
    other = f.SwitchTurned(tenant="acme", stopped=True, by="person:ann", reason="no", at=now())
    event = stand.publisher.event(other, tenant="acme", id=given.event_id)
    assert list(await PortalWords(stand.database).refused([event])) == [given.event_id]


async def test_a_command_that_the_coordinator_did_not_give_is_never_carried_out(
    stand: Stand,
) -> None:
    hands = started(stand)
    await stand.say(PAYLOADS["execution.requested"], PAYLOADS["rollback.requested"])
    letters = await dead_letters(stand, 2)
    assert {letter.error.rpartition(": ")[2] for letter in letters} == {
        "it does not stand in the event log"
    }
    await stand.until(AUDITED, "command.refused", 2)
    assert hands.done == []


async def test_the_coordinators_commands_are_carried_out(stand: Stand) -> None:
    hands = started(stand)
    await stand.cast()
    await stand.coordinator()
    proposal = recommendation("real", rollout=rollout(1.0))
    await stand.propose(proposal)
    await stand.until_completed([proposal], within_s=30)
    assert {event.fact.kind for event in hands.done} == {"execution.requested"}
    assert await stand.fetch("SELECT 1 FROM audit WHERE action = 'command.refused'") == []


async def test_a_command_is_held_to_what_the_log_says_of_it(stand: Stand) -> None:
    await stand.cast()
    await stand.coordinator()
    proposal = recommendation("real", rollout=rollout(1.0))
    await stand.propose(proposal)
    await stand.until_completed([proposal], within_s=30)
    command = stand.asked[0]
    assert isinstance(command.fact, c.ExecutionRequested)
    proof = CommandsInLog(stand.database)
    await proof.require(command)
    changed = command.fact.model_copy(update={"fence": command.fact.fence + 1})
    for forged, why in (
        (command.model_copy(update={"fact": changed}), "holds another command under this id"),
        (command.model_copy(update={"tenant": "other"}), "did not say it for this tenant"),
        (command.model_copy(update={"id": derived_id("x")}), "does not stand in the event log"),
    ):
        with pytest.raises(Rejected, match=why):
            await proof.require(forged)
    for deleted, why in (
        ("approval.granted", "no grant for this version stands before it"),
        ("vote.cast", "no approving vote of application, performance, resource stands before"),
    ):
        async with stand.database.connection() as connection:
            await connection.execute(
                "DELETE FROM event_log WHERE type = $1", f"optiinfra.{deleted}.v1"
            )
        with pytest.raises(Rejected, match=why):
            await proof.require(command)
