"""Rate limits of the API: sign-ins, bad tokens and decisions, each for itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.rates import PER_MINUTE, Bucket
from tests.integration.api_stand import Stand, is_problem, standing


@pytest.fixture
async def stand(database: str) -> AsyncIterator[Stand]:
    async with open_database(database) as postgres, standing(postgres) as made:
        yield made


async def test_sign_ins_are_limited_and_leave_the_rest_alone(stand: Stand) -> None:
    async with stand.client(None) as client:
        for _ in range(PER_MINUTE[Bucket.SIGN_IN]):
            is_problem(await client.get("/api/v1/sign-in?token=oi_once-1_x"), 401)
        for path in ("/api/v1/sign-in?token=oi_once-1_x", "/api/v1/sign-in/google"):
            answer = await client.get(path)
            is_problem(answer, 429)
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        for path in ("session", "session/browser", "session/refresh"):
            is_problem(await client.post(f"/api/v1/{path}"), 429)
    async with stand.client() as admin:
        assert (await admin.get("/api/v1/changes")).status_code == 200
        body = {"stopped": True, "reason": "drill"}
        assert (await admin.post("/api/v1/switch", json=body)).status_code == 202


async def test_decisions_are_limited_by_person_and_reading_is_not(stand: Stand) -> None:
    body = {"stopped": True, "reason": "drill"}
    async with stand.client(Role.VIEWER) as viewer, stand.client(Role.OPERATOR) as operator:
        for _ in range(PER_MINUTE[Bucket.DECISIONS]):
            is_problem(await viewer.post("/api/v1/switch", json=body), 403)
        answer = await viewer.post("/api/v1/switch", json=body)
        is_problem(answer, 429)
        assert int(answer.headers["retry-after"]) >= 1
        assert (await viewer.get("/api/v1/changes")).status_code == 200
        assert (await operator.post("/api/v1/switch", json=body)).status_code == 202


async def test_bad_tokens_are_limited_by_address_and_good_ones_go_on(stand: Stand) -> None:
    async with stand.client() as admin, stand.with_token("oi_s-1_x") as guessing:
        for _ in range(PER_MINUTE[Bucket.REFUSED]):
            is_problem(await guessing.get("/api/v1/session"), 401)
        is_problem(await guessing.get("/api/v1/session"), 429)
        assert (await admin.get("/api/v1/session")).status_code == 200
