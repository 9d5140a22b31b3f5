"""Browsers' sessions on a real PostgreSQL: cookies, renewal, theft, other sites' pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from optiinfra.portal_api.cookies import ACCESS, REFRESH
from optiinfra.portal_api.routes.socket import Close
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import issue_one_time_token
from optiinfra.storage.postgres.database import Database
from tests.integration.api_stand import Stand, is_problem, standing

PAGE = "http://localhost:8088"
OWN = {"Origin": PAGE}
STOP = {"stopped": True, "reason": "drill"}


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    async with standing(postgres) as made:
        yield made


@asynccontextmanager
async def browser(stand: Stand) -> AsyncIterator[httpx.AsyncClient]:
    """A browser that has opened the link which `up` prints."""
    once = await issue_one_time_token(stand.access, "acme", "ana", role=Role.OPERATOR)
    async with stand.bearing({}, PAGE) as client:
        opened = await client.get(f"/api/v1/sign-in?token={once}")
        assert (opened.status_code, opened.headers["location"]) == (303, "/"), opened.text
        is_problem(await client.get(f"/api/v1/sign-in?token={once}"), 401)
        yield client


def cookie(client: httpx.AsyncClient, name: str) -> str:
    return next(one.value or "" for one in client.cookies.jar if one.name == name)


async def audited(stand: Stand, action: str) -> list[dict[str, Any]]:
    async with stand.client() as admin:
        rows = (await admin.get("/api/v1/audit")).json()["items"]
    return [row for row in rows if row["action"] == action]


async def test_the_link_signs_a_browser_in_with_cookies_that_no_script_reads(stand: Stand) -> None:
    once = await issue_one_time_token(stand.access, "acme", "ana", role=Role.OPERATOR)
    async with stand.bearing({}, PAGE) as client:
        opened = await client.get(f"/api/v1/sign-in?token={once}")
        assert once not in opened.text
        assert opened.headers["referrer-policy"] == "no-referrer"
        for line in opened.headers.get_list("set-cookie"):
            assert "HttpOnly" in line
            assert "Secure" not in line
        assert [part.split("SameSite=")[1] for part in opened.headers.get_list("set-cookie")] == [
            "lax",
            "strict",
        ]
        me = (await client.get("/api/v1/session")).json()
        assert (me["name"], me["role"], me["tenant"]) == ("ana", "operator", "acme")
        (row,) = await audited(stand, "session.open")
        assert row["detail"]["browser"] is True


async def test_beyond_this_machine_cookies_travel_over_tls_alone(stand: Stand) -> None:
    for url in ("http://portal.example", "https://portal.example", "http://10.0.0.1"):
        once = await issue_one_time_token(stand.access, "acme", "ana")
        async with stand.bearing({}, url) as client:
            opened = await client.get(f"/api/v1/sign-in?token={once}")
        lines = opened.headers.get_list("set-cookie")
        assert len(lines) == 2
        assert all("Secure" in line for line in lines)


async def test_a_page_can_use_the_one_time_token_too(stand: Stand) -> None:
    once = await issue_one_time_token(stand.access, "acme", "ana", role=Role.VIEWER)
    async with stand.bearing({}, PAGE) as client:
        headers = {"Authorization": f"Bearer {once}"}
        opened = await client.post("/api/v1/session/browser", headers=headers)
        assert (opened.status_code, opened.json()["role"]) == (201, "viewer")
        assert (await client.get("/api/v1/session")).status_code == 200
        is_problem(await client.post("/api/v1/session/browser", headers=headers), 401)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        (OWN, 202),
        ({"Sec-Fetch-Site": "same-origin"}, 202),
    ],
)
async def test_only_our_own_pages_act_with_the_cookie(
    stand: Stand, headers: dict[str, str], status: int
) -> None:
    async with browser(stand) as client:
        answer = await client.post("/api/v1/switch", json=STOP, headers=headers)
        assert answer.status_code == status
        assert (await client.get("/api/v1/changes", headers=headers)).status_code == 200
    if status == 403:
        assert stand.said.events == []
        (row,) = [r for r in await audited(stand, "session") if not r["allowed"]]
        assert (row["actor"], row["target"]) == ("person:ana", "/api/v1/switch")


async def test_a_bearer_token_needs_no_origin_and_counts_before_the_cookie(stand: Stand) -> None:
    async with browser(stand) as client:
        bearing = {"Authorization": f"Bearer {await stand.token(Role.OPERATOR)}"}
        turned = await client.post("/api/v1/switch", json=STOP, headers=bearing)
        assert turned.status_code == 202
        wrong = {"Authorization": "Bearer oi_s-1_x"}
        is_problem(await client.get("/api/v1/session", headers=wrong), 401)


async def test_a_session_is_renewed_and_the_old_token_is_worth_nothing(stand: Stand) -> None:
    async with browser(stand) as client:
        first = cookie(client, ACCESS), cookie(client, REFRESH)
        renewed = await client.post("/api/v1/session/refresh", headers=OWN)
        assert (renewed.status_code, renewed.json()["name"]) == (201, "ana")
        assert {cookie(client, ACCESS), cookie(client, REFRESH)}.isdisjoint(first)
        assert (await client.get("/api/v1/session")).status_code == 200
        assert (await client.post("/api/v1/session/refresh", headers=OWN)).status_code == 201


async def test_a_refresh_token_used_twice_ends_the_whole_session(stand: Stand) -> None:
    async with browser(stand) as client, browser(stand) as other:
        stolen = cookie(client, REFRESH)
        assert (await client.post("/api/v1/session/refresh", headers=OWN)).status_code == 201
        async with stand.bearing({"Cookie": f"{REFRESH}={stolen}", **OWN}, PAGE) as thief:
            is_problem(await thief.post("/api/v1/session/refresh"), 401)
        is_problem(await client.get("/api/v1/session"), 401)
        is_problem(await client.post("/api/v1/session/refresh", headers=OWN), 401)
        assert (await other.get("/api/v1/session")).status_code == 200
    rows = await audited(stand, "session.reuse")
    assert [(row["actor"], row["allowed"], row["detail"]["ended"]) for row in rows] == [
        ("person:ana", False, 0),
        ("person:ana", False, 3),
    ]


async def test_of_two_renewals_at_once_one_is_taken_for_a_thief(stand: Stand) -> None:
    async with browser(stand) as client:
        token = cookie(client, REFRESH)
        async with stand.bearing({"Cookie": f"{REFRESH}={token}", **OWN}, PAGE) as twice:
            answers = await asyncio.gather(
                *(twice.post("/api/v1/session/refresh") for _ in range(2))
            )
        assert sorted(answer.status_code for answer in answers) == [201, 401]


async def test_renewal_is_for_our_own_pages_and_for_refresh_tokens(stand: Stand) -> None:
    async with browser(stand) as client:
        is_problem(await client.post("/api/v1/session/refresh"), 403)
        is_problem(await client.post("/api/v1/session/refresh", headers={"Origin": "null"}), 403)
        denied = await audited(stand, "session")
        assert [row["target"] for row in denied] == ["/api/v1/session/refresh"] * 2
        access, refresh = cookie(client, ACCESS), cookie(client, REFRESH)
        for wrong in ("", "x", access, refresh + "x"):
            async with stand.bearing({"Cookie": f"{REFRESH}={wrong}", **OWN}, PAGE) as another:
                is_problem(await another.post("/api/v1/session/refresh"), 401)
        async with stand.with_token(refresh) as bearing:
            is_problem(await bearing.get("/api/v1/session"), 401)
        assert (await client.post("/api/v1/session/refresh", headers=OWN)).status_code == 201


async def test_signing_out_ends_what_the_browser_could_go_on_with(stand: Stand) -> None:
    async with browser(stand) as client:
        access, refresh = cookie(client, ACCESS), cookie(client, REFRESH)
        is_problem(await client.delete("/api/v1/session"), 403)
        assert (await client.delete("/api/v1/session", headers=OWN)).status_code == 204
        assert not list(client.cookies.jar)
    kept = {"Cookie": f"{ACCESS}={access}; {REFRESH}={refresh}", **OWN}
    async with stand.bearing(kept, PAGE) as client:
        is_problem(await client.get("/api/v1/session"), 401)
        is_problem(await client.post("/api/v1/session/refresh"), 401)
    late, foreign = await audited(stand, "session")
    assert (late["actor"], late["allowed"], late["detail"]["why"]) == (
        "person:ana",
        False,
        "revoked",
    )
    assert foreign["detail"]["method"] == "DELETE"


async def test_a_session_ends_a_week_after_signing_in_however_often_it_is_renewed(
    stand: Stand, postgres: Database
) -> None:
    async with browser(stand) as client:
        await client.post("/api/v1/session/refresh", headers=OWN)
        async with postgres.connection() as connection:
            left = await connection.fetch(
                "SELECT DISTINCT round(extract(epoch FROM expires_at - clock_timestamp()) / 3600)"
                " AS hours FROM access_tokens WHERE id LIKE 'r-%'"
            )
            assert [int(row["hours"]) for row in left] == [7 * 24]
            await connection.execute(
                "UPDATE access_tokens SET expires_at = clock_timestamp() WHERE id LIKE 'r-%'"
            )
        is_problem(await client.post("/api/v1/session/refresh", headers=OWN), 401)
    assert await audited(stand, "session.reuse") == []


async def test_a_disabled_user_renews_nothing(stand: Stand, postgres: Database) -> None:
    ann = await stand.user("ann", Role.OPERATOR)
    token = await stand.user_token(ann, Role.OPERATOR)
    async with stand.with_token(token) as hers, stand.bearing({}, PAGE) as client:
        link = (await hers.post("/api/v1/session/link")).json()["url"]
        assert (await client.get(link.removeprefix("http://api"))).status_code == 303
        async with stand.client() as admin:
            await admin.patch(f"/api/v1/users/{ann['id']}", json={"disabled": True})
            is_problem(await client.get("/api/v1/session"), 401)
            await admin.patch(f"/api/v1/users/{ann['id']}", json={"disabled": False})
        is_problem(await client.post("/api/v1/session/refresh", headers=OWN), 401)


async def test_a_key_opens_no_browser(stand: Stand) -> None:
    async with stand.client() as admin:
        made = (await admin.post("/api/v1/keys", json={"label": "ci"})).json()
    async with stand.with_token(made["key"]) as key:
        is_problem(await key.post("/api/v1/session/link"), 403)


async def test_the_socket_takes_the_cookie_from_our_own_pages_alone(stand: Stand) -> None:
    async with browser(stand) as client:
        headers = {"host": "localhost:8088", "cookie": f"{ACCESS}={cookie(client, ACCESS)}"}
        assert await stand.socket_closed(headers) == Close.FORBIDDEN
        evil = {**headers, "origin": "https://evil.example"}
        assert await stand.socket_closed(evil) == Close.FORBIDDEN
        assert await stand.socket_closed({**headers, "origin": PAGE}) is None


async def test_an_open_stream_outlives_its_short_token_but_not_its_session(
    stand: Stand, postgres: Database
) -> None:
    async with browser(stand) as client:
        token_id = cookie(client, ACCESS).split("_")[1]
        async with postgres.connection() as connection:
            await connection.execute(
                "UPDATE access_tokens SET expires_at = clock_timestamp() WHERE id = $1", token_id
            )
        assert await stand.access.still_valid(token_id)
        await client.post("/api/v1/session/refresh", headers=OWN)
        assert await stand.access.still_valid(token_id)
        await client.delete("/api/v1/session", headers=OWN)
        assert not await stand.access.still_valid(token_id)
