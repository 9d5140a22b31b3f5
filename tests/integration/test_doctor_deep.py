"""`doctor --deep` on a real broker and a real PostgreSQL, signed in as an operator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from optiinfra.coordinator.runner import Runner
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events import topology
from optiinfra.events.bus_roles import BusRole
from optiinfra.events.condition import given_up
from optiinfra.events.permissions import DURABLES
from optiinfra.runtime.deep_checks import look_deep
from optiinfra.runtime.findings import Finding, Level
from optiinfra.runtime.session import FILE, Session
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.change import ControlVerb
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.vote import VOTERS, AgentName
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import Stand as BusStand
from tests.bus_stand import running, until
from tests.coordinator_stand import RULES, Stand, opened
from tests.factories import AT, event, recommendation, vote

BETWEEN_S = 0.3


@dataclass
class Ward:
    """A broker and a database with something wrong, and what the doctor finds there."""

    stand: Stand
    server: NatsServer
    postgres_url: str

    @property
    def runner(self) -> Runner:
        """Decides in this process; no coordinator looks after what it leaves."""
        return Runner(self.stand.database, self.stand.publisher, lambda: RULES)

    async def found(self) -> list[Finding]:
        url = self.server.url_for(BusRole.OPERATOR)
        return await look_deep(Settings(nats_url=url, postgres_url=self.postgres_url), BETWEEN_S)

    async def one(self, what: str) -> Finding:
        [found] = [one for one in await self.found() if one.what == what]
        return found

    async def proposed(self, name: object = "rec", *, agreed: bool = False) -> Recommendation:
        proposal = recommendation(name, deployment=f"chat-{name}")
        await self.handle(f.RecommendationProposed(recommendation=proposal))
        if agreed:
            await self.handle(*(vote(proposal.id, agent) for agent in VOTERS))
        return proposal

    async def handle(self, *facts: f.Fact) -> None:
        assert not any(await self.runner.handle([event(fact) for fact in facts]))

    async def do(self, statement: str) -> None:
        async with self.stand.database.connection() as connection:
            await connection.execute(statement)


async def _until(look: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(15):
        while not await look():  # noqa: ASYNC110 - the broker says when
            await asyncio.sleep(0.02)


async def _has_letters(bus: BusStand, count: int) -> bool:
    return len(await bus.dead_letters()) >= count


@pytest.fixture
async def ward(nats_server: Callable[[], NatsServer], database: str) -> AsyncIterator[Ward]:
    server = nats_server()
    async with opened(server.url, database) as stand:
        yield Ward(stand, server, database)


async def test_where_nothing_has_run_yet_each_missing_role_is_named(ward: Ward) -> None:
    found = {one.what: one for one in await ward.found()}
    for role, durables in DURABLES.items():
        for _, name in durables:
            missing = found[f"consumer {name}"]
            assert missing.level is Level.FAIL
            assert missing.todo == f"start it: optiinfra {role.value.replace('agent-', 'agent ')}"
    assert found["open changes"].said == "none"
    assert found["agents"].level is Level.FAIL
    well = ("open changes", "outbox", "timers", "event log", "projections", "dead letters")
    assert {found[what].level for what in well} == {Level.OK}
    assert {found[f"clock of the {who}"].level for who in ("broker", "database")} == {Level.OK}


async def test_a_change_that_goes_on_is_no_trouble_and_says_whom_it_waits_for(ward: Ward) -> None:
    await ward.stand.coordinator()
    change = recommendation()
    await ward.stand.propose(change)
    await ward.stand.until("SELECT count(*) = 1 FROM sagas WHERE state = 'voting'")
    found = {one.what: one for one in await ward.found()}
    assert found["open changes"].said == "1 voting"
    waits = found[f"change {change.id}"]
    assert waits.level is Level.OK
    assert "waits for the votes of application, performance, resource in round 1" in waits.said
    for name in ("coordinator", "coordinator-timers"):
        assert found[f"consumer {name}"].level is Level.OK


async def test_a_deadline_that_nobody_keeps_is_found(ward: Ward) -> None:
    change = await ward.proposed()
    await ward.do("UPDATE timers SET fire_at = clock_timestamp() - interval '3 minutes'")
    stuck = await ward.one(f"change {change.id}")
    assert stuck.level is Level.FAIL
    assert "was due 3 min ago" in stuck.said
    assert "coordinator" in stuck.todo
    assert (await ward.one("timers")).level is Level.FAIL


async def test_a_change_that_nothing_will_wake_is_found(ward: Ward) -> None:
    change = await ward.proposed()
    await ward.do("DELETE FROM timers")
    stuck = await ward.one(f"change {change.id}")
    assert (stuck.level, "nothing will wake it" in stuck.said) == (Level.FAIL, True)
    assert f"optiinfra changes abort {change.id}" in stuck.todo
    assert stuck.why


async def test_a_pause_is_told_with_who_paused_it_and_how_it_ends(ward: Ward) -> None:
    change = await ward.proposed(agreed=True)
    wish = c.ControlRequested(
        change=change.id, verb=ControlVerb.PAUSE, by="person:ana", reason="a launch"
    )
    await ward.handle(wish)
    paused = await ward.one(f"change {change.id}")
    assert paused.level is Level.WARN
    assert paused.said.startswith("paused by person:ana (a launch)")
    assert paused.todo == f"optiinfra changes resume {change.id}"

    await ward.handle(
        f.SwitchTurned(tenant="acme", stopped=True, by="person:bob", reason="an incident", at=AT)
    )
    switch = await ward.one("stop switch of acme")
    assert (switch.level, switch.todo) == (Level.WARN, "optiinfra switch off")
    assert "by person:bob: an incident" in switch.said


async def test_a_vote_whose_proposal_never_came_is_found_once_it_is_old(ward: Ward) -> None:
    change = recommendation().id
    await ward.handle(vote(change, "resource"))
    assert (await ward.one(f"change {change}")).level is Level.OK
    await ward.do("UPDATE sagas SET updated_at = updated_at - interval '1 hour'")
    orphan = await ward.one(f"change {change}")
    assert (orphan.level, "never proposed" in orphan.said) == (Level.WARN, True)


async def test_a_step_that_was_begun_and_not_finished_is_found(ward: Ward) -> None:
    change = await ward.proposed(agreed=True)
    await ward.do(
        "INSERT INTO executions (change_id, kind, stage, attempt, fence, captured, begun_at)"
        f" VALUES ('{change.id}', 'apply', 1, 1, 1, '{{}}', clock_timestamp() - interval '9 min')"
    )
    begun = await ward.one(f"step of {change.id}")
    assert begun.level is Level.WARN
    assert begun.said == "apply 1, attempt 1 was begun 9 min ago and has no result"


async def test_decisions_that_were_not_said_are_found(ward: Ward) -> None:
    await ward.proposed()
    assert (await ward.one("outbox")).level is Level.OK
    await ward.do(
        "UPDATE outbox SET sent_seq = NULL, created_at = clock_timestamp() - interval '5 minutes'"
    )
    behind = await ward.one("outbox")
    assert (behind.level, "the oldest for 5 min" in behind.said) == (Level.FAIL, True)


async def test_rows_that_are_off_their_log_and_tables_that_lack_something_are_found(
    ward: Ward,
) -> None:
    change = await ward.proposed(agreed=True)
    await ward.do("DELETE FROM votes")
    await ward.do("UPDATE sagas SET version = version - 1")
    log = await ward.one("event log")
    assert (log.level, change.id in log.said) == (Level.FAIL, True)
    behind = await ward.one("projections")
    assert (behind.level, behind.said.startswith("3 events")) == (Level.FAIL, True)


async def test_dead_letters_are_told_by_consumer_and_cause_with_an_example(ward: Ward) -> None:
    async def refuses(_event: object) -> None:
        raise Rejected("no such deployment")

    bus = BusStand(ward.stand.bus, ward.stand.publisher)
    async with running(bus.consumer("moody", handle=refuses)) as task:
        await bus.say(3)
        await _until(lambda: _has_letters(bus, 3))
        assert not task.done()
    found = {one.what: one for one in await ward.found()}
    letters = found["dead letters of moody"]
    assert letters.level is Level.WARN
    assert letters.said.startswith("3 for Rejected; number 3: ")
    assert "no such deployment" in letters.said
    assert "optiinfra dlq retry --all --consumer moody --cause Rejected" in letters.todo
    assert found["consumer moody"].said.startswith("nobody listens")


async def test_a_consumer_that_hangs_is_told_from_one_that_works(ward: Ward) -> None:
    release = asyncio.Event()

    async def hangs(_event: object) -> None:
        await release.wait()

    bus = BusStand(ward.stand.bus, ward.stand.publisher)
    consumer = bus.consumer("slow", handle=hangs, batch=2, concurrency=1, ack_wait_s=30.0)
    async with running(consumer):
        await bus.say(10)
        await until(lambda: consumer.stats.received >= 2)
        assert (await ward.one("consumer slow")).said.startswith("stands still")
        release.set()
        await until(lambda: consumer.stats.acked == 10)
        assert (await ward.one("consumer slow")).level is Level.OK


async def test_what_the_broker_has_given_up_is_told(ward: Ward) -> None:
    js = ward.stand.bus.js
    await js.add_consumer(
        "CHANGES",
        ConsumerConfig(
            durable_name="fragile", ack_policy=AckPolicy.EXPLICIT, ack_wait=0.2, max_deliver=1
        ),
    )
    await BusStand(ward.stand.bus, ward.stand.publisher).say(1)
    pulled = await js.pull_subscribe_bind("fragile", "CHANGES")
    await pulled.fetch(1, timeout=5)
    await _until(lambda: given_up(ward.stand.bus))
    told = [one for one in await ward.found() if one.what == "consumer fragile"]
    assert any("gave 1 messages up" in one.said for one in told)


async def test_a_silent_agent_is_found_unless_another_instance_lives(ward: Ward) -> None:
    for name in AgentName:
        for instance in ("one", "two"):
            fact = f.AgentRegistered(
                tenant="acme", agent=name, instance=instance, version="1", capabilities=(), at=AT
            )
            await ward.handle(fact)
    await ward.do(
        "UPDATE agents SET last_seen_at = clock_timestamp(), status = 'alive';"
        "UPDATE agents SET last_seen_at = clock_timestamp() - interval '10 minutes',"
        " status = 'lost' WHERE instance = 'one' OR agent = 'resource'"
    )
    found = {one.what: one for one in await ward.found()}
    assert found["agent cost of acme"].level is Level.OK
    silent = found["agent resource of acme"]
    assert (silent.level, silent.todo) == (Level.FAIL, "start it: optiinfra agent resource")
    assert "silent for 10 min" in silent.said


async def test_drifted_and_full_streams_are_found(
    nats_server: Callable[[], NatsServer], database: str
) -> None:
    server = nats_server()
    async with opened(server.url, database) as stand:
        js = stand.bus.js
        config = (await js.stream_info("CHANGES")).config
        await js.update_stream(config.evolve(max_bytes=120_000))
        bus = BusStand(stand.bus, stand.publisher)
        while (await js.stream_info("CHANGES")).state.bytes < 100_000:
            await bus.say(20)
        await js.delete_stream("SAMPLES")
        found = await Ward(stand, server, database).found()
    said = {(one.level, one.said) for one in found if one.what.startswith("stream ")}
    assert (Level.FAIL, "SAMPLES is missing") in said
    assert any("CHANGES.max_bytes is 120000" in words for _, words in said)
    assert any(level is Level.WARN and words == "0.1 of 0.1 MiB" for level, words in said)


async def test_the_home_of_a_running_up_is_enough(ward: Ward, tmp_path: Path) -> None:
    session = Session(
        url="http://127.0.0.1:1",
        token="t",
        nats_url=ward.server.url_for(BusRole.OPERATOR),
        postgres_url=ward.postgres_url,
    )
    (tmp_path / FILE).write_text(session.model_dump_json())
    found = await look_deep(Settings(home=tmp_path), BETWEEN_S)
    assert "open changes" in {one.what for one in found}


async def test_without_stores_it_says_so_and_does_not_raise(ward: Ward, tmp_path: Path) -> None:
    [nowhere] = await look_deep(Settings(home=tmp_path))
    assert (nowhere.level, "--home" in nowhere.todo) == (Level.FAIL, True)
    await asyncio.to_thread(ward.server.stop)
    found = await look_deep(Settings(nats_url=ward.server.url, postgres_url=ward.postgres_url))
    assert found[0].level is Level.FAIL
    assert "@" not in found[0].said


async def test_looking_changes_nothing_at_the_broker(ward: Ward) -> None:
    await ward.found()
    for stream in ("CHANGES", "DLQ"):
        assert await ward.stand.bus.js.consumers_info(stream) == []
    assert await topology.diff(ward.stand.bus) == []
