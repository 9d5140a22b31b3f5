"""Where somebody is signed in: seen by the person alone, ended by the person and by an admin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from optiinfra.portal_api.cookies import ACCESS, REFRESH
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import AccessTokens, Purpose, issue_one_time_token
from optiinfra.storage.postgres.database import Database
from tests.integration.api_stand import Stand, is_problem, standing
from tests.integration.test_api_sessions import OWN, PAGE, audited, cookie

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    async with standing(postgres) as made:
        yield made


async def browser(
    stand: Stand, stack: AsyncExitStack, name: str = "ana", agent: str = FIREFOX
) -> httpx.AsyncClient:
    """A browser in which somebody has signed in by a link."""
    once = await issue_one_time_token(stand.access, "acme", name, role=Role.VIEWER)
    client = await stack.enter_async_context(stand.bearing({"User-Agent": agent}, PAGE))
    assert (await client.get(f"/api/v1/sign-in?token={once}")).status_code == 303
    client.headers.update(OWN)
    return client


async def listed(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    answer = await client.get("/api/v1/sessions")
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


async def is_over(client: httpx.AsyncClient) -> bool:
    """Whether neither the session nor what could renew it is good any more."""
    now = await client.get("/api/v1/session")
    later = await client.post("/api/v1/session/refresh")
    assert now.is_error is later.is_error, (now.text, later.text)
    return later.status_code == 401


async def test_one_sees_ones_own_sessions_and_which_one_this_is(stand: Stand) -> None:
    async with AsyncExitStack() as stack:
        desk = await browser(stand, stack)
        phone = await browser(stand, stack, agent="Phone\x07" + "y" * 500)
        await browser(stand, stack, name="bob")
        once = await issue_one_time_token(stand.access, "acme", "ana", role=Role.VIEWER)
        async with stand.bearing({"User-Agent": "shell/1", "Authorization": f"Bearer {once}"}) as c:
            shell = (await c.post("/api/v1/session")).json()["token"]
        assert (await phone.post("/api/v1/session/refresh")).status_code == 201
        rows = await listed(desk)
        assert sorted((row["browser"], row["agent"], row["here"]) for row in rows) == [
            (False, "shell/1", False),
            (True, FIREFOX, True),
            (True, "Phone" + "y" * 195, False),
        ]
        assert {row["here"]: row["id"] for row in await listed(phone)}[True] != rows[0]["id"]
        for row in rows:
            assert row["signed_in_at"] <= row["last_used_at"] < row["expires_at"]
        text = str(rows)
        assert shell not in text
        assert not any(cookie(desk, name) in text for name in (ACCESS, REFRESH))
        async with stand.with_token(shell) as client:
            assert [row["agent"] for row in await listed(client) if row["here"]] == ["shell/1"]


async def test_one_of_them_is_ended_and_the_others_go_on(stand: Stand) -> None:
    async with AsyncExitStack() as stack:
        desk, phone = await browser(stand, stack), await browser(stand, stack)
        bob = await browser(stand, stack, name="bob")
        (there,) = [row["id"] for row in await listed(desk) if not row["here"]]
        for nobodys in ("0" * 16, next(row["id"] for row in await listed(bob))):
            is_problem(await desk.delete(f"/api/v1/sessions/{nobodys}"), 404)
        is_problem(await bob.delete(f"/api/v1/sessions/{there}"), 404)
        assert (await desk.delete(f"/api/v1/sessions/{there}")).status_code == 204
        assert await is_over(phone)
        (here,) = await listed(desk)
        is_problem(await desk.delete(f"/api/v1/sessions/{there}"), 404)
        assert (await desk.delete(f"/api/v1/sessions/{here['id']}")).status_code == 204
        assert not list(desk.cookies.jar)
        assert not await is_over(bob)
        rows = await audited(stand, "session.end")
        assert [row["target"] for row in rows] == [here["id"], there]


async def test_signing_out_everywhere_ends_them_all_and_unopened_links(stand: Stand) -> None:
    async with AsyncExitStack() as stack:
        desk, phone = await browser(stand, stack), await browser(stand, stack)
        bob = await browser(stand, stack, name="bob")
        ticket = (await phone.post("/api/v1/stream/ticket")).json()["ticket"]
        link = (await phone.post("/api/v1/session/link")).json()["url"]
        assert (await desk.delete("/api/v1/sessions")).status_code == 204
        assert not list(desk.cookies.jar)
        assert await is_over(phone)
        is_problem(await bob.get(link.removeprefix(PAGE)), 401)
        assert await stand.access.consume(ticket, Purpose.TICKET) is None
        assert not await is_over(bob)
        (row,) = await audited(stand, "session.end_all")
        assert (row["actor"], row["detail"]["ended"]) == ("person:ana", 2)


async def test_no_renewal_outlives_the_end_of_them_all(stand: Stand, postgres: Database) -> None:
    """Renewals are under way in other browsers while all are ended."""
    async with AsyncExitStack() as stack:
        browsers = [await browser(stand, stack) for _ in range(6)]
        renewals = [one.post("/api/v1/session/refresh") for one in browsers[1:]]
        await asyncio.gather(*renewals, browsers[0].delete("/api/v1/sessions"))
        async with postgres.connection() as connection:
            good = await connection.fetchval(
                "SELECT count(*) FROM access_tokens WHERE name = 'ana' AND revoked_at IS NULL"
            )
        assert good == 0


async def test_another_process_knows_it_within_its_memory(stand: Stand, postgres: Database) -> None:
    """What it has looked at it takes for good for 5 s; renewals are looked up each time."""
    clock = [0.0]
    there = AccessTokens(postgres, clock=lambda: clock[0])
    async with AsyncExitStack() as stack:
        desk, phone = await browser(stand, stack), await browser(stand, stack)
        token = cookie(phone, ACCESS)
        assert await there.principal(token) is not None
        assert (await desk.delete("/api/v1/sessions")).status_code == 204
        assert await there.principal(token) is not None
        clock[0] = 5.0
        assert await there.principal(token) is None


async def test_an_admin_ends_the_sessions_of_a_user_whose_keys_go_on(stand: Stand) -> None:
    ann, bob = [await stand.user(name, Role.OPERATOR) for name in ("ann", "bob")]
    async with AsyncExitStack() as stack:
        tokens = [await stand.user_token(one, Role.OPERATOR) for one in (ann, ann, bob)]
        first, second, other = [
            await stack.enter_async_context(stand.with_token(token)) for token in tokens
        ]
        key = (await first.post("/api/v1/keys", json={"label": "ci"})).json()["key"]
        path = f"/api/v1/users/{ann['id']}/sessions"
        is_problem(await other.delete(path), 403)
        async with stand.client(tenant="globex") as foreign:
            is_problem(await foreign.delete(path), 404)
        async with stand.client() as admin:
            answer = await admin.delete(path)
            assert (answer.status_code, answer.json()) == (200, {"ended": 2})
            assert (await admin.delete(path)).json() == {"ended": 0}
        for client in (first, second):
            is_problem(await client.get("/api/v1/session"), 401)
        assert (await other.get("/api/v1/session")).status_code == 200
        async with stand.with_token(key) as program:
            assert (await program.get("/api/v1/session")).status_code == 200
            for verb in ("GET", "DELETE"):
                is_problem(await program.request(verb, "/api/v1/sessions"), 403)
    rows = await audited(stand, "user.sign_out")
    assert [(row["target"], row["detail"]["ended"]) for row in rows] == [
        (ann["id"], 0),
        (ann["id"], 2),
    ]
