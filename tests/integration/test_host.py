"""The agent host on a real bus: it registers, beats, senses, and repeats itself under one name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from optiinfra.agents.base.agent import Say
from optiinfra.agents.base.host import AgentHost, Identity, Ports
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.events.subjects import Stream
from optiinfra.events.topology import last_sequence
from optiinfra.runtime.stores import jitter, new_id, now
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.vote import VOTERS, AgentName
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.inbox import PostgresInbox
from optiinfra.storage.postgres.vouching import CommandsInLog
from tests.coordinator_stand import Stand, ended, opened
from tests.factories import AT, recommendation, vote


@dataclass
class Voter:
    """Votes on what it is asked; its senses and hands fail as often as they are told to."""

    failures: list[Exception] = field(default_factory=list)
    sensed: int = 0
    heard: list[Event] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    name: AgentName = AgentName.RESOURCE
    capabilities: tuple[str, ...] = ("vote",)
    hears: tuple[str, ...] = ("vote.requested",)
    sense_every_s: float = 0.05

    async def handle(self, event: Event, say: Say) -> Sequence[f.Fact]:
        self.heard.append(event)
        assert isinstance(event.fact, c.VoteRequested)
        if event.fact.round > 1:
            await say(gap("first"))
            await say(gap("second"))
        return [vote(event.fact.change, self.name, number=event.fact.round)]

    async def sense(self) -> Sequence[f.Fact]:
        self.sensed += 1
        if self.failures:
            raise self.failures.pop()
        return []

    async def samples_handler(self, events: Sequence[Event]) -> Sequence[f.Fact]:
        self.batches.append(len(events))
        return [gap("sampled")]


def gap(metric: str) -> f.TelemetryGap:
    return f.TelemetryGap(
        tenant="acme",
        deployment="chat",
        metrics=(metric,),
        engine="vllm",
        detail="it is not there",
        at=AT,
    )


@pytest.fixture
async def stand(nats_server: Callable[[], NatsServer], database: str) -> AsyncIterator[Stand]:
    async with opened(nats_server().url, database) as made:
        yield made


def started(stand: Stand, agent: Voter, instance: str = "one") -> asyncio.Task[None]:
    ports = Ports(
        bus=stand.bus,
        publisher=Publisher(stand.bus, agent.name.value, now, new_id),
        inbox=PostgresInbox(stand.database),
        proof=CommandsInLog(stand.database),
        clock=now,
        new_id=new_id,
        jitter=jitter,
    )
    host = AgentHost(agent, Identity("acme", instance, "1"), ports, heartbeat_s=0.1)
    return stand.runs(host.run)


def asked(number: int = 1) -> c.VoteRequested:
    proposal = recommendation("asked")
    return c.VoteRequested(
        change=proposal.id,
        round=number,
        agents=VOTERS,
        recommendation=proposal,
        deadline=AT + timedelta(minutes=1),
    )


async def told(stand: Stand, fact: f.Fact, name: str) -> None:
    publisher = stand.publisher
    await publisher.publish(publisher.event(fact, tenant="acme", id=derived_id(name)))


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - filled by handlers
            await asyncio.sleep(0.02)


async def said(stand: Stand, source: AgentName) -> list[tuple[str, str]]:
    """Type and id of what an agent has said on the stream of changes, as it lies there."""
    found = []
    for sequence in range(1, await last_sequence(stand.bus, Stream.CHANGES) + 1):
        headers = (await stand.bus.js.get_msg(Stream.CHANGES.value, sequence)).headers or {}
        if headers["ce-source"] == source.value:
            found.append((headers["ce-type"], headers["ce-id"]))
    return found


async def until_said(stand: Stand, source: AgentName, kind: str, count: int) -> list[str]:
    """The ids of what was said of a kind, once there are as many as `count`."""
    async with asyncio.timeout(20):
        while True:
            ids = [name for type_, name in await said(stand, source) if kind in type_]
            if len(ids) >= count:
                return ids
            await asyncio.sleep(0.02)


async def test_the_same_question_asked_again_gives_the_same_vote(stand: Stand) -> None:
    agent = Voter()
    started(stand, agent)
    await told(stand, asked(), "first")
    await told(stand, asked(), "sent again at half of the deadline")
    await until(lambda: len(agent.heard) == 2)
    await told(stand, asked(2), "second round")
    await until(lambda: len(agent.heard) == 3)

    votes = await until_said(stand, agent.name, "vote.cast", 2)
    change = asked().change
    assert votes == [derived_id("vote", change, agent.name, number) for number in (1, 2)]


async def test_two_facts_of_one_kind_said_on_the_way_are_two(stand: Stand) -> None:
    agent = Voter()
    started(stand, agent)
    await told(stand, asked(2), "second round")
    await until(lambda: len(agent.heard) == 1)
    await until_said(stand, agent.name, "vote.cast", 1)
    gaps = await until_said(stand, agent.name, "telemetry.gap", 2)
    assert len(set(gaps)) == 2


async def test_sensing_that_fails_is_tried_again(stand: Stand) -> None:
    agent = Voter(failures=[Unavailable("the cloud is away"), ValueError("a bug in a sense")])
    started(stand, agent)
    await until(lambda: agent.sensed >= 5)


async def test_tapped_answers_come_in_batches(stand: Stand) -> None:
    agent = Voter()
    started(stand, agent)
    for number in range(20):
        await told(stand, f.AnswerSampled(sample=sample(number)), f"sample-{number}")
    await until(lambda: sum(agent.batches) == 20)
    assert len(agent.batches) < 20


def sample(number: int) -> AnswerSample:
    return AnswerSample(
        id=derived_id("sample", number),
        tenant="acme",
        deployment="chat",
        replica="chat-1",
        unit=f"session-{number}",
        prompt="why?",
        answer="because",
        ok=True,
        route_version=1,
        at=AT,
    )


ALIVE = "SELECT count(*) = 1 FROM agents WHERE agent = 'resource' AND status = $1"
LOST = "SELECT count(*) = $1 FROM event_log WHERE type = 'optiinfra.agent.lost.v1'"


async def test_a_silent_agent_is_lost_and_heard_again_is_registered(stand: Stand) -> None:
    await stand.coordinator()
    task = started(stand, Voter())
    await stand.until(ALIVE, "alive")
    await stand.until("SELECT count(*) = 1 FROM agents WHERE last_seen_at > registered_at")
    await ended(task)
    await stand.until(ALIVE, "lost")
    await stand.until(LOST, 1)
    started(stand, Voter())
    await stand.until(ALIVE, "alive")
    await stand.until("SELECT count(*) = 1 FROM agents")
    rows = await stand.fetch(
        "SELECT type FROM event_log WHERE type LIKE 'optiinfra.agent.%' ORDER BY position"
    )
    kinds = [str(row["type"]).split(".")[2] for row in rows]
    assert kinds.count("lost") == 1
    assert set(kinds[kinds.index("lost") + 1 :]) == {"registered"}


async def test_an_agent_that_was_only_cut_off_comes_back_by_its_heartbeat(stand: Stand) -> None:
    """It says nothing new of itself: the heartbeat of a lost instance registers it again."""
    await stand.coordinator()
    started(stand, Voter())
    await stand.until(ALIVE, "alive")
    async with stand.database.connection() as connection:
        await connection.execute("UPDATE agents SET status = 'lost'")
    await stand.until(ALIVE, "alive")


async def test_two_instances_of_one_agent_share_the_work(stand: Stand) -> None:
    one, two = Voter(), Voter()
    started(stand, one, "one")
    started(stand, two, "two")
    for number in range(10):
        await told(stand, asked(), f"asked-{number}")
    await until(lambda: len(one.heard) + len(two.heard) == 10)
    assert len({event.id for event in (*one.heard, *two.heard)}) == 10
