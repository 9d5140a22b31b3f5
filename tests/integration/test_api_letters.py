"""Dead letters in the API, on a real broker where the API signs in as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import httpx
import pytest

from optiinfra.events.bus import Bus
from optiinfra.events.bus_roles import BusRole
from optiinfra.events.envelope import Event
from optiinfra.events.publish import Publisher
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.letters import Letters
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.inbox import PostgresInbox
from tests import bus_stand
from tests.bus_stand import new_id, now, running, until
from tests.integration.api_stand import Stand, is_problem, standing

LETTERS = "/api/v1/dead-letters"


@dataclass
class Ward:
    """An API over a broker on which a consumer buries what comes, until it is in a better mood."""

    bus: bus_stand.Stand
    api: Stand
    bad: bool = True
    handled: list[Event] = field(default_factory=list)

    async def handle(self, event: Event) -> None:
        if self.bad:
            raise Rejected("not today")
        self.handled.append(event)

    async def bury(self, count: int) -> list[Event]:
        said = await self.bus.say(count)
        async with asyncio.timeout(20):
            while len(await self.bus.dead_letters()) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return said

    async def sequence(self) -> int:
        return (await self.bus.bus.js.stream_info("CHANGES")).state.last_seq


@pytest.fixture
def server(nats_server: Callable[[], NatsServer]) -> NatsServer:
    return nats_server()


@pytest.fixture
async def ward(server: NatsServer, postgres: Database) -> AsyncIterator[Ward]:
    """The API has an operator's credential here."""
    async with bus_stand.stand(server.url) as bus:
        operator = await Bus.connect(server.url_for(BusRole.OPERATOR), name="operator")
        try:
            letters = Letters(operator, postgres, Publisher(operator, "operator", now, new_id))
            async with standing(postgres, letters) as api:
                made = Ward(bus, api)
                inbox = PostgresInbox(postgres)
                async with running(bus.consumer("moody", handle=made.handle, inbox=inbox)):
                    yield made
        finally:
            await operator.close()


async def retry(client: httpx.AsyncClient, number: int, **headers: str) -> httpx.Response:
    path = f"{LETTERS}/{number}/retry"
    return await client.post(path, json={"reason": "mended"}, headers=headers)


async def audited(client: httpx.AsyncClient) -> list[tuple[str, str, str, bool]]:
    rows = (await client.get("/api/v1/audit")).json()["items"]
    return [(row["actor"], row["action"], row["target"], row["allowed"]) for row in rows]


async def test_letters_are_listed_page_by_page_and_shown_whole(ward: Ward) -> None:
    said = {event.id: event for event in await ward.bury(3)}
    async with ward.api.client(Role.OPERATOR) as client:
        first = (await client.get(LETTERS, params={"limit": 2})).json()
        rest = (await client.get(first["next"])).json()
        assert [one["number"] for one in first["items"] + rest["items"]] == [1, 2, 3]
        assert rest["next"] is None
        assert {one["event_id"] for one in first["items"] + rest["items"]} == set(said)
        assert first["items"][0]["cause"] == "Rejected"
        assert {one["state"] for one in first["items"]} == {"new"}
        assert "body" not in first["items"][0]
        whole = (await client.get(f"{LETTERS}/2")).json()
        assert whole["event_id"] == first["items"][1]["event_id"]
        assert whole["body"] == said[whole["event_id"]].body
        assert whole["headers"]["ce-id"] == whole["event_id"]
        for query, count in (
            ({"consumer": "moody"}, 3),
            ({"consumer": "other"}, 0),
            ({"cause": "Invariant"}, 0),
            ({"state": "retried"}, 0),
            ({"since": now().isoformat()}, 0),
        ):
            found = (await client.get(LETTERS, params=query)).json()["items"]
            assert len(found) == count, query
        is_problem(await client.get(f"{LETTERS}/4"), 404)
        is_problem(await client.get(f"{LETTERS}/0"), 400)
        is_problem(await client.get(LETTERS, params={"cursor": "x"}), 400)


async def test_a_retried_letter_is_handled_once(ward: Ward) -> None:
    [said] = await ward.bury(1)
    ward.bad = False
    async with ward.api.client(Role.OPERATOR) as client:
        keyed = {"Idempotency-Key": "k1"}
        first, *again = [await retry(client, 1, **keyed) for _ in range(3)]
        assert first.status_code == 200, first.text
        assert (first.json()["state"], first.json()["repeated"]) == ("retried", False)
        assert first.json()["sequence"] == await ward.sequence() == 2
        assert [(one.status_code, one.json()["repeated"]) for one in again] == [(200, True)] * 2
        await until(lambda: ward.handled == [said])
        for other in ({"Idempotency-Key": "k2"}, {}):
            told = is_problem(await retry(client, 1, **other), 409)
            assert "retried by person:operator-ana" in told["detail"]
        shown = (await client.get(f"{LETTERS}/1")).json()
        assert (shown["state"], shown["dealt_by"]) == ("retried", "person:operator-ana")
        assert await audited(client) == [
            ("person:operator-ana", "letter.retried", shown["id"], True)
        ]
    assert await ward.sequence() == 2
    assert ward.handled == [said]


async def test_a_key_names_a_request_of_its_token_alone(ward: Ward) -> None:
    await ward.bury(1)
    async with ward.api.client(Role.OPERATOR) as ana, ward.api.client(Role.OPERATOR) as also_ana:
        assert (await retry(ana, 1, **{"Idempotency-Key": "k"})).status_code == 200
        is_problem(await retry(also_ana, 1, **{"Idempotency-Key": "k"}), 409)


async def test_a_viewer_cannot_look_retry_or_drop_and_the_attempts_are_audited(ward: Ward) -> None:
    await ward.bury(1)
    async with ward.api.client(Role.VIEWER) as client:
        told = is_problem(await retry(client, 1), 403)
        assert "operator" in told["hint"]
        is_problem(await client.post(f"{LETTERS}/1/drop", json={"reason": "no"}), 403)
        for path in (LETTERS, f"{LETTERS}/1"):
            is_problem(await client.get(path), 403)
    async with ward.api.client(Role.OPERATOR) as client:
        rows = await audited(client)
        assert ("person:viewer-ana", "letters", f"{LETTERS}/1/retry", False) in rows
        assert ("person:viewer-ana", "letters", f"{LETTERS}/1/drop", False) in rows
        assert not [row for row in rows if row[3]]
        assert (await client.get(f"{LETTERS}/1")).json()["state"] == "new"
    assert await ward.sequence() == 1


async def test_a_letter_is_dropped_with_a_reason_and_nothing_is_sent(ward: Ward) -> None:
    await ward.bury(1)
    path = f"{LETTERS}/1/drop"
    async with ward.api.client(Role.OPERATOR) as client:
        is_problem(await client.post(path, json={"reason": ""}), 400)
        keyed = {"Idempotency-Key": "k"}
        answers = [
            await client.post(path, json={"reason": "known bad"}, headers=keyed) for _ in range(2)
        ]
        assert [one.json()["repeated"] for one in answers] == [False, True]
        assert answers[0].json()["state"] == "dropped"
        told = is_problem(await retry(client, 1), 409)
        assert "dropped by person:operator-ana" in told["detail"]
        (row,) = (await client.get("/api/v1/audit")).json()["items"]
        assert (row["action"], row["detail"]["reason"]) == ("letter.dropped", "known bad")
        assert (await client.get(LETTERS, params={"state": "dropped"})).json()["items"] != []
    assert await ward.sequence() == 1


async def test_letters_of_another_tenant_are_not_there(ward: Ward) -> None:
    await ward.bury(1)
    async with ward.api.client(Role.ADMIN, tenant="globex") as client:
        assert (await client.get(LETTERS)).json()["items"] == []
        is_problem(await client.get(f"{LETTERS}/1"), 404)
        is_problem(await retry(client, 1), 404)
        is_problem(await client.post(f"{LETTERS}/1/drop", json={"reason": "x"}), 404)


async def test_the_apis_own_credential_shows_and_drops_letters_and_sends_none(
    ward: Ward, server: NatsServer, postgres: Database
) -> None:
    """Who may send them again may say everything; that is given apart, or not."""
    await ward.bury(2)
    portal = await Bus.connect(server.url_for(BusRole.PORTAL_API), name="portal-api")
    try:
        async with (
            standing(postgres, Letters(portal, postgres, None)) as api,
            api.client(Role.OPERATOR) as client,
        ):
            listed = (await client.get(LETTERS)).json()["items"]
            assert [one["number"] for one in listed] == [1, 2]
            assert (await client.get(f"{LETTERS}/1")).json()["subject"] == listed[0]["subject"]
            told = is_problem(await retry(client, 1), 503)
            assert "OPTIINFRA_OPERATOR_NATS_URL" in told["hint"]
            assert (await client.get(f"{LETTERS}/1")).json()["state"] == "new"
            dropped = await client.post(f"{LETTERS}/2/drop", json={"reason": "x"})
            assert dropped.status_code == 200
    finally:
        await portal.close()
    assert await ward.sequence() == 2
