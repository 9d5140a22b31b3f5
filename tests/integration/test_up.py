"""`optiinfra up` as a person runs it: a real process on a real fleet file."""

from __future__ import annotations

import asyncio
import signal
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import psutil
import pytest

from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.events.bus import Bus
from optiinfra.events.publish import Publisher
from optiinfra.runtime.clouds import engines_dir
from optiinfra.runtime.deep_checks import look_deep
from optiinfra.runtime.engines import end_engines
from optiinfra.runtime.findings import Finding, Level
from optiinfra.runtime.session import Session
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.routing import Backend
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.postgres.verification import verify
from optiinfra.storage.testing.servers import reachable_home
from tests.bus_stand import letter_of
from tests.up_stand import (
    ENGINE,
    Up,
    answered,
    api,
    engines_of_ones_own,
    fleet,
    until,
    until_answered,
)

Make = Callable[..., Up]


@pytest.fixture
async def up() -> AsyncIterator[Make]:
    """Makes homes whose processes are ended after the test."""
    async with AsyncExitStack() as stack:

        def make(content: dict[str, Any] | None = None, **env: str) -> Up:
            folder = stack.enter_context(reachable_home())
            made = Up(folder, content or fleet(), env)
            stack.push_async_callback(made.close)
            return made

        yield make


async def until_routed(session: Session, count: int) -> None:
    """Until so many replicas of the deployment get requests."""
    url, token = session.gateway_admin_url or "", session.gateway_admin_token or ""
    found: tuple[Backend, ...] = ()
    async with GatewayTraffic(url, token) as traffic:
        for _ in range(300):
            found = (await traffic.status("default", "chat")).table.backends
            if len(found) == count:
                return
            await asyncio.sleep(0.2)
    raise AssertionError(found)


async def until_all_have_registered(session: Session) -> None:
    """Until the coordinator has written all four agents down."""
    known: set[str] = set()
    async with api(session) as http:
        for _ in range(300):
            agents = (await http.get("/agents")).json()
            known = {row["agent"] for row in agents["items"]}
            if known == {name.value for name in AgentName}:
                return
            await asyncio.sleep(0.2)
    raise AssertionError(known)


async def until_nothing_is_wrong(up: Up) -> None:
    """Until the doctor, signed in as an operator, finds nothing to warn of in what runs."""
    wrong: list[Finding] = []
    for _ in range(20):
        found = await look_deep(Settings(home=up.home))
        wrong = [one for one in found if one.level is not Level.OK]
        if found and not wrong:
            return
    raise AssertionError(wrong)


async def a_letter_is_sent_again(session: Session) -> None:
    """Through the API, of a message that stands in the stream."""
    assert session.nats_url is not None
    bus = await Bus.connect(session.nats_url, name="operator")
    try:
        publisher = Publisher(bus, "operator", now, new_id)
        await publisher.publish(publisher.event(await letter_of(bus, 1), tenant="default"))
    finally:
        await bus.close()
    async with api(session) as http:
        answer = await http.post("/dead-letters/1/retry", json={})
        assert answer.status_code == 200, answer.text
        assert answer.json()["state"] == "retried"


async def count(up: Up, table: str) -> int:
    async with up.database() as database, database.connection() as connection:
        found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return found


async def figures_are_shown(session: Session) -> None:
    """The API reads the metrics that the agents leave, and asks the broker who is there."""
    async with api(session) as client, asyncio.timeout(60):
        (await client.get("/overview")).raise_for_status()
        (one,) = (await client.get("/deployments")).raise_for_status().json()["items"]
        seen, alive = None, "unknown"
        while seen is None or alive != "alive":
            await asyncio.sleep(0.5)
            shown = await client.get(f"/deployments/{one['id']}/performance?window_s=300")
            seen = shown.raise_for_status().json()["levels"][0]["latest"]["value"]
            workers = (await client.get("/agents/detail")).raise_for_status().json()
            alive = workers["coordinator"]["status"]


async def test_it_starts_serves_keeps_its_session_private_and_leaves_nothing_behind(
    up: Make,
) -> None:
    one = up()
    session = await one.start()
    path = one.home / "session.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert session.token not in one.errors
    assert session.gateway_url is not None
    await until_answered(session.gateway_url)
    await until_all_have_registered(session)
    assert len(one.engines()) == 2
    await until_nothing_is_wrong(one)
    await a_letter_is_sent_again(session)
    await figures_are_shown(session)

    second = Up(one.folder)
    process = await second.spawn()
    assert await second.ended(30) == 5
    assert one.process is not None
    assert f"in use by process {one.process.pid}" in one.errors
    assert process.returncode == 5

    one.process.send_signal(signal.SIGTERM)
    assert await one.ended(30) == 0
    assert one.left() == []
    assert one.engines() == []


async def test_an_engine_that_loads_for_longer_gets_its_requests_too(up: Make) -> None:
    content, one = fleet(), up()
    slow = 'mkdir "$0" 2>/dev/null || sleep 5; exec "$@"'
    first = str(one.folder / "first")
    content["clouds"]["local"]["command"] = ["/bin/sh", "-c", slow, first, *ENGINE]
    one.content = content
    session = await one.start()
    assert session.gateway_url is not None
    await until_answered(session.gateway_url)
    await until_routed(session, 2)


async def test_after_kill_9_it_takes_the_gateway_over_and_keeps_data_and_token(up: Make) -> None:
    one = up()
    before = await one.start()
    assert before.gateway_url is not None
    await until_answered(before.gateway_url)
    gateway, engines = gateway_pid(one), one.engines()
    await until_all_have_registered(before)
    events = await count(one, "event_log")
    assert events >= 4
    await one.kill()
    assert await answered(before.gateway_url) == 200
    assert sorted(one.engines()) == sorted(engines)
    after = await one.start()
    assert gateway_pid(one) == gateway
    assert (after.gateway_url, after.token) == (before.gateway_url, before.token)
    assert sorted(one.engines()) == sorted(engines)
    assert await answered(before.gateway_url) == 200
    assert await count(one, "event_log") >= events
    async with one.database() as database:
        assert (await verify(database)).ok
    assert one.process is not None
    one.process.send_signal(signal.SIGINT)
    assert await one.ended(30) == 0
    assert one.left() == []


def gateway_pid(up: Up) -> int:
    [pid] = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if (line := process.info["cmdline"])
        and "optiinfra.runtime.gateway_main" in line
        and any(str(up.folder) in word for word in line)
    ]
    return pid


async def test_observing_proposes_and_never_acts(up: Make) -> None:
    rules = {
        "approvals": [{"name": "all", "max_risk": "critical"}],
        "revote_after_s": 1,
        "max_vote_rounds": 200,
    }
    one = up(fleet(mode="observe", rules=rules))
    async with engines_of_ones_own(one):
        before = sorted(one.engines())
        session = await one.start()
        assert session.gateway_url is not None
        await until_answered(session.gateway_url)
        async with api(session) as http:
            proposal = await proposed(http)
            recommended = Recommendation.model_validate(proposal["recommendation"])
            assert recommended.spec.kind == "spot_migration"
            assert "observe-only" in await reason_of_refusal(http, recommended.id)
        async with one.database() as database, database.connection() as connection:
            begun = "SELECT count(*) FROM executions WHERE kind <> 'rollback'"
            assert await connection.fetchval(begun) == 0
        assert sorted(one.engines()) == before
        assert '"mode": "observe"' in one.errors


async def reason_of_refusal(http: httpx.AsyncClient, change: str) -> str:
    """What the executor answers once all have approved and the coordinator has commanded it."""
    told: list[dict[str, Any]] = []
    for _ in range(600):
        answer = await http.get(f"/changes/{change}")
        told = answer.json()["timeline"] if answer.status_code == 200 else []
        for one in told:
            if one["kind"] == "execution.failed":
                return str(one["fact"]["reason"])
        await asyncio.sleep(0.2)
    raise AssertionError([(one["kind"], one["at"]) for one in told])


async def proposed(http: httpx.AsyncClient) -> dict[str, Any]:
    for _ in range(300):
        items = (await http.get("/recommendations")).json()["items"]
        if items:
            first: dict[str, Any] = items[0]
            return first
        await asyncio.sleep(0.2)
    raise AssertionError("nothing was proposed")


async def test_observing_starts_no_engine_and_says_why(up: Make) -> None:
    one = up(fleet(mode="observe"))
    await one.start()
    assert one.engines() == []
    assert "replicas.not_started" in one.errors
    assert "observe-only" in one.errors


def aws(**cloud: Any) -> dict[str, Any]:
    return fleet(
        clouds={"aws": {"regions": ["us-east-1"], **cloud}},
        deployments=[{"id": "chat", "model": "m", "provider": "aws"}],
    )


NOWHERE = {"url": "http://127.0.0.1:9/", "admin_url": "http://127.0.0.1:9/"}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "an unknown key": ({"modes": "act"}, {}, "did you mean 'mode'?"),
    "a gateway without its token": (
        {"gateway": NOWHERE},
        {},
        "set OPTIINFRA_GATEWAY_ADMIN_TOKEN",
    ),
    "a golden set that is not there": (
        {"deployments": [{**fleet()["deployments"][0], "golden": "none.jsonl"}]},
        {},
        "deployments.golden: the golden set",
    ),
    "a bad setting": ({}, {"OPTIINFRA_PORTAL_PORT": "high"}, "OPTIINFRA_PORTAL_PORT"),
    "a gateway that is not there": (
        {"gateway": NOWHERE},
        {"OPTIINFRA_GATEWAY_ADMIN_TOKEN": "t"},
        "gateway.admin_url: the gateway at http://127.0.0.1:9/ cannot be reached",
    ),
    "a cloud that is not there": (
        aws(endpoint_url="http://127.0.0.1:9/"),
        {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"},
        "clouds.aws: ec2:DescribeInstances did not get through",
    ),
    "a cloud without credentials": (
        aws(endpoint_url="http://127.0.0.1:9/"),
        {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"},
        "clouds.aws: AWS credentials are missing",
    ),
    "an engine command that cannot be run": (
        {"clouds": {"local": {"command": ["no-such-engine"]}}},
        {},
        "clouds.local.command: 'no-such-engine' cannot be run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_config_is_one_clear_line_and_leaves_nothing_running(
    up: Make, case: str
) -> None:
    changes, env, told = REFUSED[case]
    one = up({**fleet(), **changes}, **env)
    await one.spawn()
    code = await one.ended(60)
    lines = [line for line in one.errors.splitlines() if not line.startswith("{")]
    assert code in (1, 2, 6), one.errors
    assert len([line for line in lines if told in line]) == 1, one.errors
    assert "Traceback" not in one.errors
    assert one.left() == []


async def test_a_wrong_gateway_token_is_refused(up: Make) -> None:
    keeper = up(fleet(mode="observe"))
    session = await keeper.start()
    named = {"url": session.gateway_url, "admin_url": session.gateway_admin_url}
    one = up(fleet(mode="observe", gateway=named), OPTIINFRA_GATEWAY_ADMIN_TOKEN="wrong")
    await one.spawn()
    assert await one.ended(60) in (1, 2, 4)
    assert "gateway.admin_url" in one.errors
    assert "use the admin token that the gateway was started with" in one.errors
    right = up(
        fleet(mode="observe", gateway=named),
        OPTIINFRA_GATEWAY_ADMIN_TOKEN=session.gateway_admin_token or "",
    )
    assert (await right.start()).gateway_url == f"{session.gateway_url}/"


async def test_down_ends_what_a_crash_has_left(up: Make) -> None:
    one = up()
    await one.start()
    await one.kill()
    assert one.engines()
    await one.close()
    assert one.left() == []
    assert one.engines() == []


async def test_engines_go_on_when_they_are_to_be_kept(up: Make) -> None:
    content = fleet()
    content["clouds"]["local"]["keep_running"] = True
    one = up(content)
    await one.start()
    engines = one.engines()
    assert one.process is not None
    one.process.send_signal(signal.SIGTERM)
    assert await one.ended(30) == 0
    assert one.engines() == engines
    assert await end_engines(engines_dir(one.home)) == 2
    await until(lambda: one.left() == [], 10)
