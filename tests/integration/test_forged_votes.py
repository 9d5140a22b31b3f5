"""Votes and gate answers in the name of another agent: the broker or the coordinator refuses them.

The agents here sign in at a real broker, each with the credential of its role alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import BusRole, agent_of
from optiinfra.events.envelope import encode
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.vote import VOTERS, AgentName
from optiinfra.storage.embedded.nats import NatsServer
from tests.coordinator_stand import Stand, opened
from tests.factories import gate_answer, recommendation, rollout, step_result, vote
from tests.integration.test_forged_words import dead_letters

PERFORMANCE, RESOURCE, APPLICATION = (
    BusRole.AGENT_PERFORMANCE,
    BusRole.AGENT_RESOURCE,
    BusRole.AGENT_APPLICATION,
)
LOGGED = "SELECT body FROM event_log WHERE chain = $1 AND type = $2"
SAGA = "SELECT state, version, hash FROM sagas WHERE change_id = $1"


@pytest.fixture
def server(nats_server: Callable[[], NatsServer]) -> NatsServer:
    return nats_server()


@pytest.fixture
async def stand(server: NatsServer, database: str) -> AsyncIterator[Stand]:
    async with opened(server.url, database) as made:
        await made.coordinator()
        yield made


@asynccontextmanager
async def signed_in(server: NatsServer, role: BusRole) -> AsyncIterator[Bus]:
    bus = await Bus.connect(server.url_for(role), name=role.value)
    try:
        yield bus
    finally:
        await bus.close()


async def said(stand: Stand, change: str, prefix: str, count: int = 1) -> list[f.Fact]:
    """The facts of this kind in the change's log, once there are as many as `count`."""
    async with asyncio.timeout(20):
        while True:
            rows = await stand.fetch(LOGGED, change, BY_PREFIX[prefix].type)
            if len(rows) >= count:
                return [f.FACT.validate_json(str(row["body"])) for row in rows]
            await asyncio.sleep(0.02)


async def voting(stand: Stand) -> Recommendation:
    proposal = recommendation("voted", rollout=rollout(1.0))
    await stand.propose(proposal)
    await said(stand, proposal.id, "vote.requested")
    return proposal


async def gating(stand: Stand) -> tuple[Recommendation, c.GateRequested]:
    """A change whose gate waits for its assessors."""
    proposal = await voting(stand)
    await stand.say(*(vote(proposal.id, voter) for voter in VOTERS))
    [asked] = await said(stand, proposal.id, "execution.requested")
    assert isinstance(asked, c.ExecutionRequested)
    result = step_result(asked.step, asked.fence)
    await stand.say(f.ExecutionStaged(change=proposal.id, result=result))
    look, *_ = await said(stand, proposal.id, "gate.requested")
    assert isinstance(look, c.GateRequested)
    return proposal, look


def answer(look: c.GateRequested, who: AgentName) -> f.GateAnswered:
    return f.GateAnswered(answer=gate_answer(look.change, who, stage=look.stage, look=look.look))


async def say_as(bus: Bus, fact: f.Fact) -> None:
    publisher = Publisher(bus, "agent", now, new_id)
    await publisher.publish(publisher.event(fact, tenant="acme"))


async def say_under_own_name(bus: Bus, role: BusRole, fact: f.Fact) -> None:
    """Where the broker lets the role speak, with a body that names somebody else."""
    subject, headers, body = encode(Publisher(bus, "agent", now, new_id).event(fact, tenant="acme"))
    own = f"{subject.rpartition('.')[0]}.{agent_of(role)}"
    await bus.js.publish(own, body, headers={**headers, "ce-subject": own})


@pytest.mark.parametrize(
    ("forger", "voter"),
    [
        (forger, voter)
        for forger in (BusRole.AGENT_COST, PERFORMANCE, RESOURCE, APPLICATION)
        for voter in sorted(VOTERS)
        if agent_of(forger) != voter
    ],
)
async def test_a_vote_by_the_credential_of_another_agent_never_reaches_the_stream(
    server: NatsServer, stand: Stand, forger: BusRole, voter: AgentName
) -> None:
    proposal = await voting(stand)
    before = await stand.fetch(SAGA, proposal.id)
    async with signed_in(server, forger) as bus:
        with pytest.raises(Unavailable, match=rf"{forger} may not publish vote\.cast\..*\.{voter}"):
            await say_as(bus, vote(proposal.id, voter))
    kept = await stand.bus.js.stream_info("CHANGES", subjects_filter="vote.cast.>")
    assert not kept.state.subjects
    assert await stand.fetch(SAGA, proposal.id) == before


@pytest.mark.parametrize(
    ("forger", "voter"),
    [(PERFORMANCE, AgentName.RESOURCE), (APPLICATION, AgentName.PERFORMANCE)],
)
async def test_a_vote_whose_body_names_another_voter_is_buried_and_changes_nothing(
    server: NatsServer, stand: Stand, forger: BusRole, voter: AgentName
) -> None:
    proposal = await voting(stand)
    before = await stand.fetch(SAGA, proposal.id)
    async with signed_in(server, forger) as bus:
        await say_under_own_name(bus, forger, vote(proposal.id, voter))
    [letter] = await dead_letters(stand, 1)
    assert (letter.consumer, letter.cause) == ("coordinator", "Rejected")
    assert letter.subject == f"vote.cast.acme.{proposal.id}.{agent_of(forger)}"
    assert f"belongs on 'vote.cast.acme.{proposal.id}.{voter}'" in letter.error
    assert await stand.fetch(SAGA, proposal.id) == before
    assert await stand.fetch("SELECT 1 FROM votes") == []


async def test_the_votes_of_the_voters_themselves_count(server: NatsServer, stand: Stand) -> None:
    """What the tests above refuse is the forgery, not the way."""
    proposal = await voting(stand)
    for role in (PERFORMANCE, RESOURCE, APPLICATION):
        async with signed_in(server, role) as bus:
            await say_as(bus, vote(proposal.id, agent_of(role)))
    await said(stand, proposal.id, "change.approved")


async def test_a_gate_is_not_passed_by_an_answer_in_the_name_of_another_assessor(
    server: NatsServer, stand: Stand
) -> None:
    proposal, look = await gating(stand)
    forged = answer(look, AgentName.APPLICATION)
    async with signed_in(server, PERFORMANCE) as bus:
        await say_as(bus, answer(look, AgentName.PERFORMANCE))
        with pytest.raises(Unavailable, match=r"may not publish gate\.answered\."):
            await say_as(bus, forged)
        await say_under_own_name(bus, PERFORMANCE, forged)
    [letter] = await dead_letters(stand, 1)
    assert (letter.consumer, letter.cause) == ("coordinator", "Rejected")
    answers = await said(stand, proposal.id, "gate.answered")
    assert {a.answer.assessor for a in answers if isinstance(a, f.GateAnswered)} == {
        AgentName.PERFORMANCE
    }
    closed = await said(stand, proposal.id, "gate.closed", 0)
    assert "pass" not in [one.verdict for one in closed if isinstance(one, f.GateClosed)]
    async with signed_in(server, APPLICATION) as bus:
        [*_, newest] = await said(stand, proposal.id, "gate.requested")
        assert isinstance(newest, c.GateRequested)
        await say_as(bus, answer(newest, AgentName.APPLICATION))
    await said(stand, proposal.id, "gate.answered", 2)


@pytest.mark.parametrize("kind", [f.AgentRegistered, f.AgentHeartbeat])
async def test_no_agent_can_say_that_another_one_is_alive(
    server: NatsServer, stand: Stand, kind: type[f.AgentRegistered | f.AgentHeartbeat]
) -> None:
    alive = kind(
        tenant="acme", agent="resource", instance="r-1", version="1", capabilities=(), at=now()
    )
    async with signed_in(server, PERFORMANCE) as bus:
        refused: asyncio.Queue[str] = asyncio.Queue()
        bus.on_forbidden(refused.put_nowait)
        try:
            await say_as(bus, alive)
        except Unavailable:
            assert kind is f.AgentRegistered
        async with asyncio.timeout(10):
            assert (await refused.get()).endswith(".acme.resource")
    assert await stand.fetch("SELECT 1 FROM agents") == []
