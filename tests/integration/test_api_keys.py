"""Keys on a real PostgreSQL: shown once, kept to their scopes, and never above their maker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from optiinfra.portal_api.routes.socket import Close
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import Database
from tests.integration.api_stand import Stand, is_problem, standing


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    async with standing(postgres) as made:
        yield made


async def make(client: httpx.AsyncClient, *scopes: str, **rest: Any) -> dict[str, Any]:
    body = {"label": "ci", "scopes": scopes or ["read"], **rest}
    answer = await client.post("/api/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_key_is_shown_once_and_kept_as_a_digest(stand: Stand, postgres: Database) -> None:
    async with stand.client(Role.OPERATOR) as client:
        made = await make(client, "read", "audit", days=7)
        assert made["key"].startswith(f"oi_{made['id']}_")
        (listed,) = (await client.get("/api/v1/keys")).json()["items"]
        assert listed == {name: made[name] for name in listed}
        assert (listed["owner"], listed["scopes"]) == ("operator-ana", ["audit", "read"])
        assert listed["last_used_at"] is None
        rows = (await client.get("/api/v1/audit")).json()["items"]
    assert (rows[0]["action"], rows[0]["target"]) == ("key.make", made["id"])
    secret = made["key"].rpartition("_")[2]
    async with postgres.connection() as connection:
        for table in ("access_tokens", "audit"):
            kept = await connection.fetchval(f"SELECT string_agg({table}::text, '') FROM {table}")
            assert secret not in kept


async def test_a_key_does_what_its_scopes_say_in_its_makers_name(stand: Stand) -> None:
    async with stand.client(Role.OPERATOR) as client:
        made = await make(client, "read", "switch")
        async with stand.with_token(made["key"]) as key:
            assert (await key.get("/api/v1/changes")).status_code == 200
            turned = await key.post("/api/v1/switch", json={"stopped": True, "reason": "drill"})
            assert turned.status_code == 202
            denied = is_problem(await key.get("/api/v1/audit"), 403)
            assert "scope audit" in denied["hint"]
            is_problem(await key.get("/api/v1/keys"), 403)
        (said,) = stand.said.said("switch.turned")
        assert said.by == "person:operator-ana"
        (listed,) = (await client.get("/api/v1/keys")).json()["items"]
        assert listed["last_used_at"] is not None
        rows = (await client.get("/api/v1/audit?allowed=false")).json()["items"]
    assert [(row["action"], row["detail"]["token"]) for row in rows] == [
        ("keys", made["id"]),
        ("audit", made["id"]),
    ]


async def test_a_key_may_not_do_more_than_its_maker(stand: Stand) -> None:
    async with stand.client(Role.OPERATOR) as client:
        answer = await client.post("/api/v1/keys", json={"label": "x", "scopes": ["decide"]})
        assert "may not decide" in is_problem(answer, 403)["detail"]
        for scopes in (["keys"], ["everything"], []):
            answer = await client.post("/api/v1/keys", json={"label": "x", "scopes": scopes})
            is_problem(answer, 400)
        assert (await client.get("/api/v1/keys")).json()["items"] == []


async def test_a_key_loses_what_its_maker_loses(stand: Stand) -> None:
    ann = await stand.user("ann", Role.APPROVER)
    async with stand.with_token(await stand.user_token(ann, Role.APPROVER)) as client:
        made = await make(client, "read", "audit")
    async with stand.client() as admin, stand.with_token(made["key"]) as key:
        assert (await key.get("/api/v1/audit")).status_code == 200
        path = f"/api/v1/users/{ann['id']}"
        await admin.patch(path, json={"role": "viewer"})
        is_problem(await key.get("/api/v1/audit"), 403)
        assert (await key.get("/api/v1/changes")).status_code == 200
        await admin.patch(path, json={"disabled": True})
        is_problem(await key.get("/api/v1/changes"), 401)


async def test_keys_are_revoked_by_their_maker_or_an_admin(stand: Stand) -> None:
    async with (
        stand.client(Role.OPERATOR) as operator,
        stand.client(Role.APPROVER) as approver,
        stand.client() as admin,
    ):
        made = [await make(operator) for _ in range(2)]
        paths = [f"/api/v1/keys/{one['id']}" for one in made]
        is_problem(await approver.delete(paths[0]), 404)
        assert (await approver.get("/api/v1/keys")).json()["items"] == []
        first = (await admin.get("/api/v1/keys?limit=1")).json()
        rest = (await admin.get(first["next"])).json()
        assert [one["id"] for one in first["items"] + rest["items"]] == [
            one["id"] for one in reversed(made)
        ]
        for client, path, one in zip((operator, admin), paths, made, strict=True):
            async with stand.with_token(one["key"]) as key:
                assert (await key.get("/api/v1/session")).status_code == 200
                assert (await client.delete(path)).status_code == 204
                is_problem(await key.get("/api/v1/session"), 401)
            is_problem(await client.delete(path), 404)


async def test_a_key_ends_with_its_time(stand: Stand, postgres: Database) -> None:
    async with stand.client() as admin:
        made = await make(admin)
    async with postgres.connection() as connection:
        await connection.execute(
            "UPDATE access_tokens SET expires_at = clock_timestamp() WHERE id = $1", made["id"]
        )
    async with stand.with_token(made["key"]) as key:
        is_problem(await key.get("/api/v1/session"), 401)


async def test_another_tenant_has_no_part_in_keys(stand: Stand) -> None:
    async with stand.client() as admin, stand.client(tenant="globex") as other:
        made = await make(admin)
        assert (await other.get("/api/v1/keys")).json()["items"] == []
        is_problem(await other.delete(f"/api/v1/keys/{made['id']}"), 404)


async def test_a_key_that_may_not_read_opens_no_stream(stand: Stand) -> None:
    async with stand.client() as admin:
        made = await make(admin, "switch")
    async with stand.with_token(made["key"]) as key:
        is_problem(await key.get("/api/v1/sse"), 403)
        is_problem(await key.post("/api/v1/stream/ticket"), 403)
    assert await stand.socket_closed({"authorization": f"Bearer {made['key']}"}) == Close.FORBIDDEN
