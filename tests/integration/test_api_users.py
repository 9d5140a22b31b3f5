"""Users on a real PostgreSQL: added, given roles, shut out, and never the last admin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import Purpose
from optiinfra.storage.postgres.database import Database
from tests.integration.api_stand import Stand, is_problem, standing


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    async with standing(postgres) as made:
        yield made


async def audited(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.get("/api/v1/audit")).json()["items"]
    return items


async def test_an_admin_adds_people_and_lists_them_by_page(stand: Stand) -> None:
    async with stand.client() as admin:
        ann = await stand.user("ann", Role.ADMIN)
        await stand.user("bob", Role.VIEWER)
        assert (ann["email"], ann["role"], ann["disabled"]) == ("ann@acme.example", "admin", False)
        first = (await admin.get("/api/v1/users?limit=1")).json()
        rest = (await admin.get(first["next"])).json()
        assert [one["name"] for one in first["items"] + rest["items"]] == ["ann", "bob"]
        again = await admin.post("/api/v1/users", json={"email": "ANN@acme.example", "name": "x"})
        assert "already" in is_problem(again, 409)["detail"]
        rows = await audited(admin)
        assert [row["action"] for row in rows] == ["user.add", "user.add"]
        assert (rows[1]["target"], rows[1]["detail"]["role"]) == (ann["id"], "admin")


@pytest.mark.parametrize("email", ["ann", "a@b@c", "a b@c", "@c", "a@"])
async def test_what_is_no_address_is_refused(stand: Stand, email: str) -> None:
    async with stand.client() as admin:
        is_problem(await admin.post("/api/v1/users", json={"email": email, "name": "x"}), 400)


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.APPROVER])
async def test_only_an_admin_sees_and_changes_people(stand: Stand, role: Role) -> None:
    async with stand.client() as admin:
        ann = await stand.user("ann", Role.VIEWER)
    async with stand.client(role) as client:
        is_problem(await client.get("/api/v1/users"), 403)
        is_problem(await client.post("/api/v1/users", json={"email": "a@b", "name": "a"}), 403)
        path = f"/api/v1/users/{ann['id']}"
        is_problem(await client.patch(path, json={"role": "admin"}), 403)
    async with stand.client() as admin:
        denied = [row for row in await audited(admin) if not row["allowed"]]
    assert [row["detail"]["method"] for row in denied] == ["PATCH", "POST", "GET"]


async def test_a_role_taken_away_is_gone_at_once(stand: Stand) -> None:
    async with stand.client() as admin:
        ann = await stand.user("ann", Role.OPERATOR)
        token = await stand.user_token(ann, Role.OPERATOR)
        async with stand.with_token(token) as hers:
            assert (await hers.get("/api/v1/audit")).status_code == 200
            path = f"/api/v1/users/{ann['id']}"
            changed = await admin.patch(path, json={"role": "viewer"})
            assert changed.json()["role"] == "viewer"
            is_problem(await hers.get("/api/v1/audit"), 403)
            assert (await hers.get("/api/v1/session")).json()["role"] == "viewer"
        row = next(row for row in await audited(admin) if row["action"] == "user.change")
    assert (row["detail"]["was"], row["detail"]["is"]) == ("operator", "viewer")


async def test_a_token_never_has_more_than_its_users_role_or_its_own(stand: Stand) -> None:
    ann = await stand.user("ann", Role.ADMIN)
    low = await stand.user_token(ann, Role.VIEWER)
    who = await stand.access.principal(low)
    assert who is not None
    assert who.role is Role.VIEWER


async def test_who_is_disabled_is_out_for_good(stand: Stand) -> None:
    async with stand.client() as admin:
        ann = await stand.user("ann", Role.OPERATOR)
        token = await stand.user_token(ann, Role.OPERATOR)
        async with stand.with_token(token) as hers:
            assert (await hers.get("/api/v1/session")).status_code == 200
            path = f"/api/v1/users/{ann['id']}"
            assert (await admin.patch(path, json={"disabled": True})).json()["disabled"]
            is_problem(await hers.get("/api/v1/session"), 401)
            assert not await stand.access.still_valid(token.split("_")[1])
            assert not (await admin.patch(path, json={"disabled": False})).json()["disabled"]
            is_problem(await hers.get("/api/v1/session"), 401)


async def test_the_last_admin_stays_one(stand: Stand) -> None:
    async with stand.client() as admin:
        ann = await stand.user("ann", Role.ADMIN)
        path = f"/api/v1/users/{ann['id']}"
        for body in ({"role": "approver"}, {"disabled": True}):
            assert "last admin" in is_problem(await admin.patch(path, json=body), 409)["detail"]
        assert (await admin.get("/api/v1/users")).json()["items"][0]["role"] == "admin"
        assert [row["action"] for row in await audited(admin)] == ["user.add"]
        await stand.user("ben", Role.ADMIN)
        assert (await admin.patch(path, json={"disabled": True})).status_code == 200


async def test_two_admins_who_remove_each_other_at_once_leave_one(stand: Stand) -> None:
    async with stand.client() as admin:
        both = [await stand.user(name, Role.ADMIN) for name in ("ann", "ben")]
        for attempt in range(5):
            answers = await asyncio.gather(
                *(
                    admin.patch(f"/api/v1/users/{one['id']}", json={"role": "viewer"})
                    for one in both
                )
            )
            assert sorted(answer.status_code for answer in answers) == [200, 409], attempt
            gone = both[[answer.status_code for answer in answers].index(200)]
            await admin.patch(f"/api/v1/users/{gone['id']}", json={"role": "admin"})


async def test_a_change_of_nothing_or_of_nobody_is_refused(stand: Stand) -> None:
    async with stand.client() as admin:
        is_problem(await admin.patch("/api/v1/users/" + "0" * 32, json={"role": "viewer"}), 404)
        is_problem(await admin.patch("/api/v1/users/" + "0" * 32, json={}), 400)
        is_problem(await admin.patch("/api/v1/users/x", json={"role": "viewer"}), 400)


async def test_people_of_another_tenant_are_nobody(stand: Stand) -> None:
    async with stand.client(tenant="globex") as other:
        ann = await stand.user("ann", Role.VIEWER)
        assert (await other.get("/api/v1/users")).json()["items"] == []
        path = f"/api/v1/users/{ann['id']}"
        is_problem(await other.patch(path, json={"role": "admin"}), 404)
        body = {"email": "ann@acme.example", "name": "ann"}
        assert (await other.post("/api/v1/users", json=body)).status_code == 201


async def test_a_session_token_cannot_pass_for_another_purpose(stand: Stand) -> None:
    token = await stand.access.issue("acme", "a", Role.VIEWER, lasts_s=60, purpose=Purpose.TICKET)
    assert await stand.access.principal(token) is None
    assert await stand.access.ended(token) is None
