"""The command itself, as a process, against a real API on real servers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from optiinfra.events import topology
from optiinfra.events.bus import Bus
from optiinfra.events.publish import Publisher
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.server import running_api
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.database import Database, open_database
from tests.integration.api_stand import Fleet

PATIENCE_S = 60.0


class Command:
    """Runs `optiinfra` with a session as `up` leaves it."""

    def __init__(self, home: Path, url: str, database: Database, publisher: Publisher) -> None:
        self.home = home
        self.url = url
        self.database = database
        self.publisher = publisher
        self.fleet = Fleet(database)

    async def sign_in(self, role: Role) -> None:
        token = await AccessTokens(self.database).issue("acme", "ana", role, lasts_s=600.0)
        session = self.home / "session.json"
        session.write_text(json.dumps({"url": self.url, "token": token}))

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "optiinfra.runtime.cli",
            *arguments,
            env={"OPTIINFRA_HOME": str(self.home), "PATH": "/usr/bin:/bin"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = await self.start(*arguments)
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
        assert b"Traceback" not in err, err.decode()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def data(self, *arguments: str) -> Any:
        code, out, err = await self.run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    async def publish_said(self) -> None:
        for event in self.fleet.bus.events:
            if not event.fact.kind.startswith("timer."):
                await self.publisher.publish(event)


@pytest.fixture
async def command(
    database: str, nats_server: Callable[[], NatsServer], tmp_path: Path
) -> AsyncIterator[Command]:
    bus = await Bus.connect(nats_server().url, name="test")
    try:
        await topology.apply(bus)
        publisher = Publisher(bus, "test", lambda: datetime.now(UTC), lambda: uuid4().hex)
        async with open_database(database) as opened:
            app = create_app(api_ports(opened, bus, publisher))
            async with running_api(app, "127.0.0.1", 0) as url:
                made = Command(tmp_path, url, opened, publisher)
                await made.sign_in(Role.ADMIN)
                yield made
    finally:
        await bus.close()


async def proposed(command: Command) -> Recommendation:
    return await command.fleet.awaiting("a")


async def test_a_recommendation_is_listed_shown_and_approved(command: Command) -> None:
    proposal = await proposed(command)
    (listed,) = await command.data("recs", "ls")
    assert listed["id"] == proposal.id
    code, out, _ = await command.run("recs", "show", proposal.id[:6])
    assert code == 0
    assert "Move chat to spot  [awaiting_approval]" in out
    assert "approval  0 of 1 have said yes" in out
    assert (await command.run("recs", "approve", proposal.id))[0] == 2
    stale = await command.run("recs", "approve", proposal.id, "--version", "0" * 16)
    assert stale[0] == 5
    assert "review again" in stale[2]
    assert (await command.run("recs", "snooze", proposal.id, "--until", "soon"))[0] == 2
    code, _, err = await command.run("recs", "snooze", proposal.id, "--until", "4h", "--yes")
    assert (code, err.splitlines()[-1]) == (0, f"snooze: accepted ({proposal.id})")
    code, out, err = await command.run("recs", "approve", proposal.id, "--yes", "-m", "good")
    assert (code, out) == (0, "")
    assert "accepted" in err
    row, snoozed = await command.data("audit", "ls")
    assert snoozed["action"] == "recommendation.snooze"
    assert row["detail"]["reason"] == "good"


async def test_exit_codes_say_what_went_wrong(command: Command) -> None:
    proposal = await proposed(command)
    assert (await command.run("changes", "show", "f" * 32))[0] == 3
    assert (await command.run("changes", "show", "zz"))[0] == 3
    assert (await command.run("changes", "resume", proposal.id))[0] == 5
    await command.sign_in(Role.VIEWER)
    code, _, err = await command.run("recs", "approve", proposal.id, "--yes")
    assert code == 4
    assert "approver" in err
    (command.home / "session.json").write_text('{"url": "http://127.0.0.1:9", "token": "x"}')
    assert (await command.run("agents", "ls"))[0] == 6


async def test_the_log_is_replayed_and_verified(command: Command) -> None:
    proposal = await proposed(command)
    code, out, _ = await command.run("events", "replay", "--change", proposal.id[:8], "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["version"] for event in told] == list(range(1, len(told) + 1))
    assert told[0]["kind"] == "recommendation.proposed"
    found = await command.data("audit", "verify")
    assert (found["ok"], found["events"]) == (True, len(told))
    async with command.database.connection() as connection:
        await connection.execute("UPDATE event_log SET source = 'forged' WHERE version = 2")
    code, out, _ = await command.run("audit", "verify")
    assert code == 1
    assert "version 2" in out


async def test_the_stream_is_tailed_as_lines_of_json(command: Command) -> None:
    process = await command.start("events", "tail", "--after", "0", "--limit", "3", "--json")
    await proposed(command)
    await command.publish_said()
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    kinds = [json.loads(line)["kind"] for line in out.splitlines()]
    assert kinds == ["change.opened", "vote.requested", "approval.requested"]


async def test_a_change_is_watched_to_its_end(command: Command) -> None:
    proposal = await proposed(command)
    process = await command.start("changes", "watch", proposal.id)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while b"approval.requested" not in await process.stdout.readline():
            pass
    from optiinfra.events.commands import ControlRequested
    from optiinfra.schemas.change import ControlVerb

    wish = ControlRequested(change=proposal.id, verb=ControlVerb.ABORT, by="ana")
    await command.fleet.hear(wish)
    await command.publish_said()
    async with asyncio.timeout(PATIENCE_S):
        out, _ = await process.communicate()
    assert process.returncode == 1
    assert "change.cancelled" in out.decode().splitlines()[-1]
    code, out_text, _ = await command.run("changes", "watch", proposal.id)
    assert (code, "change.cancelled" in out_text) == (1, True)


async def test_the_switch_and_lists_off_a_terminal_are_plain(command: Command) -> None:
    assert (await command.run("switch", "on", "-m", "incident"))[0] == 0
    assert (await command.run("switch", "show"))[1] == "off\n"
    code, out, _ = await command.run("agents", "ls")
    assert code == 0
    assert out.startswith("agent\tinstance\t")
    assert (await command.run("changes", "ls"))[1].startswith("id\tstate\t")


async def test_a_key_is_made_used_listed_and_revoked(command: Command) -> None:
    code, key, told = await command.run("keys", "create", "ci", "--scope", "read", "--days", "7")
    assert (code, key.startswith("oi_k-")) == (0, True)
    assert "may read" in told
    (listed,) = await command.data("keys", "ls")
    assert (listed["label"], listed["scopes"]) == ("ci", ["read"])
    assert key.strip().startswith(f"oi_{listed['id']}_")
    assert (await command.run("keys", "revoke", listed["id"]))[0] == 0
    assert (await command.run("keys", "revoke", listed["id"]))[0] == 3
    assert await command.data("keys", "ls") == []
    await command.sign_in(Role.VIEWER)
    assert (await command.run("keys", "create", "ci"))[0] == 4


async def test_login_prints_a_link_that_works_once_and_its_session_is_ended(
    command: Command,
) -> None:
    code, link, _ = await command.run("login")
    assert code == 0
    async with httpx.AsyncClient(trust_env=False, headers={"User-Agent": "Fox/1"}) as browser:
        opened = await browser.get(link.strip())
        assert opened.status_code == 303
        me = (await browser.get(f"{command.url}/api/v1/session")).json()
        assert me["name"] == "ana"
        assert (await browser.get(link.strip())).status_code == 401
        code, listed, err = await command.run("sessions", "ls")
        assert code == 0, err
        rows = [line.split("\t")[:3] for line in listed.splitlines()[1:]]
        assert sorted(row[1:] for row in rows) == [["browser", "Fox/1"], ["this one", "–"]]
        (there,) = [row[0] for row in rows if row[1] == "browser"]
        assert (await command.run("sessions", "end"))[0] == 2
        assert (await command.run("sessions", "end", there))[0] == 0
        assert (await command.run("sessions", "end", there))[0] == 3
        assert (await browser.get(f"{command.url}/api/v1/session")).status_code == 401
    assert (await command.run("sessions", "end", "--all"))[1] == "signed out everywhere\n"
    assert (await command.run("sessions", "ls"))[0] == 4
