"""Every role against every subject that it may not use, and at the work that is its own."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import product

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import AGENTS, BusRole, agent_of, inbox_of
from optiinfra.events.consume import Consumer, ConsumerSpec, listen
from optiinfra.events.envelope import Event
from optiinfra.events.facts import (
    AgentHeartbeat,
    AgentRegistered,
    DeadLettered,
    Fact,
    GateAnswered,
    TimerSet,
    VoteCast,
)
from optiinfra.events.feed import Feed
from optiinfra.events.permissions import DURABLES, permissions_of, says
from optiinfra.events.publish import Publisher, fired_by
from optiinfra.events.replay import replay
from optiinfra.events.subjects import SUBJECTS, Stream
from optiinfra.events.subscribe import subscribe
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.testing.servers import reachable_home
from optiinfra.storage.testing.servers import running as started
from tests.bus_stand import new_id, now, running, until
from tests.payloads import PAYLOADS

Connect = Callable[[BusRole], Awaitable[Bus]]
_VIOLATION = re.compile(r'permissions violation for (?:publish|subscription) to "([^"]+)"')
_VERBS = (
    "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE",
    "STREAM.MSG.GET", "STREAM.SNAPSHOT", "STREAM.RESTORE", "DIRECT.GET", "CONSUMER.LIST",
    "CONSUMER.NAMES", "CONSUMER.CREATE",
)  # fmt: skip


@dataclass
class Probe:
    """A raw client of one role, which counts what the broker forbids."""

    client: Client
    forbidden: set[str] = field(default_factory=set)

    async def publish(self, subjects: Iterable[str], expected: set[str]) -> set[str]:
        """Which of `subjects` the broker forbids against expectation, or the other way round."""
        self.forbidden.clear()
        for subject in subjects:
            await self.client.publish(subject, b"{}")
        return await self._settled({one.lower() for one in expected})

    async def subscribe(self, subjects: Iterable[str], expected: set[str]) -> set[str]:
        self.forbidden.clear()
        for subject in subjects:
            await self.client.subscribe(subject, cb=_nothing)
        return await self._settled({one.lower() for one in expected})

    async def _settled(self, expected: set[str]) -> set[str]:
        """In lower case, as the client gives what the broker says."""
        await self.client.flush()
        with suppress(TimeoutError):
            await until(lambda: self.forbidden >= expected, 5.0)
        await self.client.flush()
        return self.forbidden ^ expected


async def _nothing(_message: object) -> None:
    return


@asynccontextmanager
async def probe(server: NatsServer, role: BusRole) -> AsyncIterator[Probe]:
    made = Probe(Client())

    async def noticed(error: Exception) -> None:
        said = _VIOLATION.search(str(error))
        assert said is not None, error
        made.forbidden.add(said[1].lower())

    await made.client.connect(server.url_for(role), error_cb=noticed, inbox_prefix=inbox_of(role))
    try:
        yield made
    finally:
        await made.client.close()


@pytest.fixture(scope="module")
def bare() -> Iterator[NatsServer]:
    """Without streams: what is tried on it leaves nothing behind."""
    with reachable_home() as home, started(made := NatsServer(home / "nats")):
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[NatsServer]:
    with reachable_home() as home, started(made := NatsServer(home / "nats")):
        yield made


@pytest.fixture
async def server(shared: NatsServer) -> NatsServer:
    """With all streams, made by the role whose work that is."""
    bus = await Bus.connect(shared.url_for(BusRole.TOPOLOGY), name="topology")
    try:
        await topology.apply(bus)
    finally:
        await bus.close()
    return shared


@pytest.fixture
async def connect(server: NatsServer) -> AsyncIterator[Connect]:
    async with AsyncExitStack() as stack:

        async def opened(role: BusRole) -> Bus:
            bus = await Bus.connect(server.url_for(role), name=role.value)
            stack.push_async_callback(bus.close)
            return bus

        yield opened


@pytest.fixture
async def admin(server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(server.url, name="test")
    yield bus
    await bus.close()


def _concrete(pattern: str) -> str:
    return pattern.replace("*", "x").replace(">", "y")


def _sayers() -> dict[str, set[BusRole]]:
    """Each subject, and in each name that stands in it, with the roles that may say it."""
    found: dict[str, set[BusRole]] = {"timer.schedule.x.x.x": {BusRole.COORDINATOR}}
    for row in SUBJECTS:
        if row.tokens[-1] == "agent":
            trusted = {BusRole.COORDINATOR} & set(row.publishers)
            owners = {agent_of(role): trusted | ({role} & set(row.publishers)) for role in AGENTS}
            owners["other"] = trusted
        elif row.tokens[-1] == "consumer":
            owners = {name: {role} for role, own in DURABLES.items() for _, name in own}
            owners |= {BusRole.NOTIFIER.value: {BusRole.NOTIFIER}, "other": set()}
        else:
            owners = {"x": set(row.publishers)}
        found |= {_concrete(row.pattern_of(last)): roles for last, roles in owners.items()}
    return found


async def test_no_role_can_say_what_is_not_its_to_say(bare: NatsServer) -> None:
    """Nor in the name of another: a vote, an answer, a heartbeat, a dead letter."""
    sayers = _sayers()
    for role in BusRole:
        foreign = {one for one, roles in sayers.items() if role not in roles}
        if role is BusRole.OPERATOR:  # sends buried messages again, and buries
            foreign = {one for one in foreign if one.startswith(("timer.schedule.", "agent.heart"))}
        async with probe(bare, role) as client:
            assert await client.publish(sayers, foreign) == set(), role


async def test_no_role_can_hear_what_is_said_to_others(bare: NatsServer) -> None:
    inboxes = {f"{inbox_of(role)}.one": role for role in BusRole}
    everything = [*(_concrete(row.pattern) for row in SUBJECTS), ">", "_INBOX.>", "$JS.>", "$SYS.>"]
    for role in BusRole:
        heard = {_concrete(one) for one in permissions_of(role).subscribe}
        asked = {*everything, *inboxes}
        allowed = {one for one, owner in inboxes.items() if owner is role} | (heard & asked)
        foreign = asked - allowed
        async with probe(bare, role) as client:
            assert await client.subscribe(asked, foreign) == set(), role


ADMINISTERS = {
    BusRole.AGENT_PERFORMANCE: {"$JS.API.STREAM.MSG.GET.SAMPLES"},
    BusRole.COORDINATOR: {"$JS.API.STREAM.MSG.GET.CHANGES"},
    BusRole.PORTAL_API: {"$JS.API.STREAM.MSG.GET.DLQ"},
    BusRole.TOPOLOGY: {
        f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE") for stream in Stream
    },
    BusRole.SUBSCRIBER: {"$JS.API.STREAM.MSG.GET.CHANGES_REPLAY"},
    BusRole.OPERATOR: {
        "$JS.API.STREAM.MSG.DELETE.DLQ",
        *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in Stream),
        *(f"$JS.API.CONSUMER.{verb}.{stream}" for verb in ("LIST", "NAMES") for stream in Stream),
    },
}
"""What a role may ask of the broker's administration; the others nothing."""


async def test_no_role_can_touch_what_the_broker_keeps_of_others(bare: NatsServer) -> None:
    administration = {f"$JS.API.{verb}.{stream}" for verb, stream in product(_VERBS, Stream)}
    administration |= {f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.mine" for stream in Stream}
    for role in BusRole:
        foreign = {
            subject
            for owner, durables in DURABLES.items()
            for stream, name in durables
            for subject in _uses(stream, name)
            if owner is not role
        }
        asked = administration | foreign
        expected = asked - ADMINISTERS.get(role, set())
        async with probe(bare, role) as client:
            assert await client.publish(sorted(asked), expected) == set(), role


def _uses(stream: Stream, name: str) -> Iterable[str]:
    for verb in ("CREATE", "DELETE", "MSG.NEXT", "PAUSE", "RESET", "UNPIN"):
        yield f"$JS.API.CONSUMER.{verb}.{stream}.{name}"
    yield f"$JS.ACK.{stream}.{name}.1.1.1.1.0"


async def test_a_role_does_not_reach_another_consumer_under_its_own_name(
    server: NatsServer, connect: Connect
) -> None:
    """The name in the request must be that in the subject, which is what the broker permits."""
    coordinator = await connect(BusRole.COORDINATOR)
    await coordinator.js.add_consumer("CHANGES", _durable("coordinator"))
    reader = await connect(BusRole.PORTAL_API)
    request = {"stream_name": "CHANGES", "config": {"name": "coordinator", "ack_policy": "none"}}
    answer = await reader.client.request(
        "$JS.API.CONSUMER.CREATE.CHANGES.other", json.dumps(request).encode(), timeout=5
    )
    assert json.loads(answer.data)["name"] == "other"
    kept = await coordinator.js.consumer_info("CHANGES", "coordinator")
    assert kept.config.ack_policy == AckPolicy.EXPLICIT


async def test_what_a_consumer_is_told_to_deliver_elsewhere_keeps_its_subject(
    nats_server: Callable[[], NatsServer],
) -> None:
    """Else whoever may read could have the broker say what it may not say itself."""
    server = nats_server()
    admin = await Bus.connect(server.url, name="test")
    await topology.apply(admin)
    voter = await Bus.connect(server.url_for(BusRole.AGENT_PERFORMANCE), name="voter")
    try:
        publisher = Publisher(voter, "performance", now, new_id)
        await publisher.publish(publisher.event(PAYLOADS["vote.cast"], tenant="acme"))
        await voter.js.add_consumer("CHANGES", _durable("performance"))
        asked = json.dumps({"batch": 1, "expires": 1_000_000_000}).encode()
        aim = "execution.requested.acme.forged"
        await voter.client.publish("$JS.API.CONSUMER.MSG.NEXT.CHANGES.performance", asked, aim)
        await _until_pending(admin, "CHANGES", "performance", 1)
        info = await admin.js.stream_info("CHANGES", subjects_filter=">")
        assert {one.split(".")[0] for one in info.state.subjects or ()} == {"vote"}
    finally:
        await voter.close()
        await admin.close()


async def _until_pending(bus: Bus, stream: str, name: str, count: int) -> None:
    """Until that many messages are in hand."""
    async with asyncio.timeout(10):
        while (await bus.js.consumer_info(stream, name)).num_ack_pending != count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _durable(name: str) -> ConsumerConfig:
    return ConsumerConfig(name=name, durable_name=name, ack_policy=AckPolicy.EXPLICIT)


async def test_a_forbidden_publish_fails_at_once_and_names_role_and_subject(
    connect: Connect,
) -> None:
    agent = await connect(BusRole.AGENT_COST)
    publisher = Publisher(agent, "cost", now, new_id)
    forged = publisher.event(PAYLOADS["approval.granted"], tenant="acme")
    honest = publisher.event(PAYLOADS["recommendation.proposed"], tenant="acme")
    began_s = time.monotonic()
    refused, accepted = await publisher.publish_many([forged, honest])
    assert time.monotonic() - began_s < 2.0
    assert isinstance(refused, Unavailable)
    assert f"agent-cost may not publish {forged.subject}" in str(refused)
    assert isinstance(accepted, int)


async def test_a_forbidden_question_names_role_and_subject(connect: Connect) -> None:
    gateway = await connect(BusRole.GATEWAY)
    with pytest.raises(Unavailable, match=r"gateway may not publish \$js.api.stream.info.changes"):
        await gateway.ask(lambda: gateway.js.stream_info("CHANGES"), "looking", timeout_s=0.5)


def _said_by(role: BusRole, prefix: str) -> Fact:
    """The example of a row, in the name of `role` where it names who says it."""
    match PAYLOADS[prefix]:
        case VoteCast(vote=cast):
            return VoteCast(vote=cast.model_copy(update={"agent": agent_of(role)}))
        case GateAnswered(answer=answer):
            name = AgentName(agent_of(role))
            return GateAnswered(answer=answer.model_copy(update={"assessor": name}))
        case AgentRegistered() as back if role is BusRole.COORDINATOR:
            return back  # an agent that it hears again
        case AgentRegistered() | AgentHeartbeat() as alive:
            return alive.model_copy(update={"agent": agent_of(role)})
        case DeadLettered() as letter if role is BusRole.NOTIFIER:
            return letter.model_copy(update={"consumer": role.value})
        case DeadLettered() as letter if role in DURABLES:
            return letter.model_copy(update={"consumer": DURABLES[role][-1][1]})
        case fact:
            return fact


@pytest.mark.parametrize("role", BusRole)
async def test_each_role_says_what_is_its_to_say(connect: Connect, role: BusRole) -> None:
    publisher = Publisher(await connect(role), role.value, now, new_id)
    rows = [row for row in SUBJECTS if role in row.publishers]
    events = [publisher.event(_said_by(role, row.prefix), tenant="acme") for row in rows]
    assert [one for one in await publisher.publish_many(events) if not isinstance(one, int)] == []


async def test_the_coordinator_schedules_timers(connect: Connect) -> None:
    publisher = Publisher(await connect(BusRole.COORDINATOR), "coordinator", now, new_id)
    fact = PAYLOADS["timer.set"]
    assert isinstance(fact, TimerSet)
    event = publisher.event(fact, tenant="acme")
    assert await publisher.schedule(event, now(), fired_by(event)) > 0


@pytest.mark.parametrize(
    ("role", "stream", "name"),
    [(role, *durable) for role, durables in DURABLES.items() for durable in durables],
)
async def test_each_role_draws_from_its_consumers(
    admin: Bus, connect: Connect, role: BusRole, stream: Stream, name: str
) -> None:
    row = next(row for row in SUBJECTS if row.stream is stream and row.payload is not TimerSet)
    bus = await connect(role)
    sayer = Publisher(admin, "test", now, new_id)
    await topology.require(bus)
    handled: list[str] = []

    async def handle(event: Event) -> None:
        handled.append(event.id)

    consumer = Consumer(
        bus,
        ConsumerSpec(name=name, stream=stream, prefixes=(row.prefix,)),
        handle=handle,
        handle_batch=None,
        publisher=Publisher(bus, name, now, new_id),
        inbox=None,
        clock=now,
        jitter=lambda: 1.0,
    )
    async with running(consumer):
        event = sayer.event(PAYLOADS[row.prefix], tenant="acme")
        await sayer.publish(event)
        await until(lambda: event.id in handled)
        await _until_pending(admin, stream.value, name, 0)


async def test_readers_read(server: NatsServer, connect: Connect) -> None:
    portal = Publisher(await connect(BusRole.PORTAL_API), "portal-api", now, new_id)
    await portal.publish(portal.event(PAYLOADS["approval.granted"], tenant="acme"))
    feed = Feed(await connect(BusRole.PORTAL_API))
    state = await feed.state()
    async with aclosing(feed.follow(state.last - 1)) as following:
        assert (await anext(following)).sequence == state.last
    operator = await connect(BusRole.OPERATOR)
    assert [event async for _, event in replay(operator)]
    assert [event async for _, event in replay(operator, stream=Stream.CHANGES)]
    await topology.require(operator)


@pytest.mark.parametrize("durable", [None, "bills"])
async def test_a_subscriber_reads_and_says_nothing(
    server: NatsServer, connect: Connect, durable: str | None
) -> None:
    said = Publisher(await connect(BusRole.PORTAL_API), "portal-api", now, new_id)
    event = said.event(PAYLOADS["approval.granted"], tenant="acme")
    sequence = await said.publish(event)
    source = subscribe(
        server.url_for(BusRole.SUBSCRIBER),
        subjects=("approval.*",),
        durable=durable,
        since_sequence=sequence - 1,
    )
    async with asyncio.timeout(20), aclosing(source) as received:
        one = await anext(received)
        assert one.event.id == event.id
        await one.ack()
    assert says(BusRole.SUBSCRIBER) == ()


async def test_heartbeats_reach_the_coordinator(connect: Connect) -> None:
    coordinator = await connect(BusRole.COORDINATOR)
    agent = Publisher(await connect(BusRole.AGENT_RESOURCE), "resource", now, new_id)
    heard: asyncio.Queue[Event] = asyncio.Queue()
    beat = _said_by(BusRole.AGENT_RESOURCE, "agent.heartbeat")

    async def hear() -> None:
        async for event in listen(coordinator, "agent.heartbeat"):
            heard.put_nowait(event)

    listening = asyncio.create_task(hear())
    try:
        async with asyncio.timeout(10):
            while heard.empty():
                await agent.publish(agent.event(beat, tenant="acme"))
                await asyncio.sleep(0.05)
    finally:
        listening.cancel()
        await asyncio.wait({listening})
