"""Four eyes through the API: one person is one person, by whatever token, and no agent approves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from optiinfra.coordinator.runner import Runner
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import Database
from tests.integration.api_stand import Stand, is_problem, standing


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    """Under a policy that wants two people from risk high on."""
    async with standing(postgres) as made:
        made.fleet.runner = Runner(
            postgres, made.fleet.bus, lambda: Rules(four_eyes_from=Risk.HIGH)
        )
        yield made


async def approve(client: httpx.AsyncClient, proposal: Recommendation) -> httpx.Response:
    return await client.post(
        f"/api/v1/recommendations/{proposal.id}/approve",
        json={"reason": "yes"},
        headers={"If-Match": f'"{proposal.version_hash}"'},
    )


async def state(stand: Stand, proposal: Recommendation) -> str:
    """Where the change stands once the coordinator has heard everything."""
    await stand.fleet.take_in(stand.said.events)
    async with stand.client() as client:
        shown = (await client.get(f"/api/v1/changes/{proposal.id}")).json()
    return str(shown["state"])


async def test_one_person_with_two_sessions_and_a_key_is_one_pair_of_eyes(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    ann, bob = [await stand.user(name, Role.APPROVER) for name in ("ann", "bob")]
    tokens = [await stand.user_token(ann, Role.APPROVER) for _ in range(2)]
    async with stand.with_token(tokens[0]) as client:
        body = {"label": "bot", "scopes": ["read", "decide"]}
        tokens.append((await client.post("/api/v1/keys", json=body)).json()["key"])
    repeated = []
    for token in tokens:
        async with stand.with_token(token) as client:
            repeated.append((await approve(client, proposal)).json()["repeated"])
    assert repeated == [False, True, True]
    assert await state(stand, proposal) == "awaiting_approval"
    async with stand.with_token(await stand.user_token(bob, Role.APPROVER)) as client:
        assert (await approve(client, proposal)).status_code == 202
    assert await state(stand, proposal) == "executing"
    words = [str(said.approval.by) for said in stand.said.said("approval.granted")]
    assert words == ["person:ann@acme.example", "person:bob@acme.example"]


async def test_whoever_operates_the_machine_is_one_person_in_browser_and_shell(
    stand: Stand,
) -> None:
    proposal = await stand.fleet.awaiting("a")
    shell = await stand.access.issue("acme", "local operator", Role.ADMIN, lasts_s=60)
    async with stand.with_token(shell) as client, stand.bearing({}, "http://localhost") as browser:
        assert (await approve(client, proposal)).status_code == 202
        link = (await client.post("/api/v1/session/link")).json()["url"]
        await browser.get(link.removeprefix("http://api"))
        browser.headers["Origin"] = "http://localhost"
        assert (await approve(browser, proposal)).json()["repeated"] is True
    assert await state(stand, proposal) == "awaiting_approval"


async def test_the_proposer_is_no_pair_of_eyes(stand: Stand) -> None:
    """Only agents propose; a token in the name of one decides nothing."""
    proposal = await stand.fleet.awaiting("a")
    name = proposal.proposer.value
    agent = await stand.access.issue("acme", name, Role.APPROVER, lasts_s=60)
    async with stand.with_token(agent) as client:
        problem = is_problem(await approve(client, proposal), 403)
    assert "proposed" in problem["detail"]
    async with stand.client() as admin:
        (row,) = (await admin.get("/api/v1/audit?allowed=false")).json()["items"]
    assert (row["actor"], row["action"]) == (f"person:{name}", "decide")
    assert proposal.id in row["target"]
    assert stand.said.events == []


async def test_the_proposer_may_still_say_no(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    name = proposal.proposer.value
    agent = await stand.access.issue("acme", name, Role.APPROVER, lasts_s=60)
    async with stand.with_token(agent) as client:
        answer = await client.post(
            f"/api/v1/recommendations/{proposal.id}/reject",
            json={"reason": "on second thoughts"},
            headers={"If-Match": f'"{proposal.version_hash}"'},
        )
        assert answer.status_code == 202
    assert await state(stand, proposal) == "rejected"
