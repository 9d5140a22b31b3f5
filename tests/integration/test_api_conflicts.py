"""The record of arbitration in the API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from optiinfra.events.facts import RecommendationProposed
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.postgres.database import open_database
from tests.factories import recommendation
from tests.integration.api_stand import Stand, is_problem, standing

CONFLICTS = "/api/v1/conflicts"
MONEY = recommendation("m", title="Cheaper")
SPEED = recommendation("p", title="Faster", proposer=AgentName.PERFORMANCE)
OTHER = recommendation("o", title="Elsewhere", deployment="other")


@pytest.fixture
async def stand(database: str) -> AsyncIterator[Stand]:
    """Two changes that want one deployment, and one that wants another."""
    async with open_database(database) as postgres, standing(postgres) as made:
        for proposal in (MONEY, OTHER, SPEED):
            await made.fleet.hear(RecommendationProposed(recommendation=proposal))
        yield made


def party(proposal: Recommendation, state: str) -> dict[str, str]:
    return {
        "id": proposal.id,
        "title": proposal.title,
        "deployment": proposal.deployment,
        "state": state,
    }


async def test_a_conflict_tells_who_gave_way_to_whom_and_by_which_rule(stand: Stand) -> None:
    async with stand.client(Role.VIEWER) as client:
        (found,) = (await client.get(CONFLICTS)).json()["items"]
        events = await client.get("/api/v1/events", params={"kind": "conflict.resolved"})
    (event,) = events.json()["items"]
    assert found["change"] == party(MONEY, "deferred")
    assert found["against"] == party(SPEED, "voting")
    assert (found["verdict"], found["rule"], found["claim"]) == ("yields", "interest", "chat")
    assert (found["id"], found["position"]) == (event["id"], event["position"])
    assert found["reason"] == event["fact"]["reason"]
    assert found["rules_version"] == event["fact"]["rules_version"]


async def test_conflicts_are_chosen_by_either_side_verdict_rule_and_time(stand: Stand) -> None:
    chosen: tuple[tuple[dict[str, str], int], ...] = (
        ({"change": MONEY.id}, 1),
        ({"change": SPEED.id}, 1),
        ({"change": OTHER.id}, 0),
        ({"verdict": "yields"}, 1),
        ({"verdict": "merged"}, 0),
        ({"rule": "interest"}, 1),
        ({"rule": "age"}, 0),
        ({"since": "2026-01-01T00:00:00Z"}, 1),
        ({"since": "2100-01-01T00:00:00Z"}, 0),
    )
    async with stand.client(Role.VIEWER) as client:
        for query, count in chosen:
            found = (await client.get(CONFLICTS, params=query)).json()["items"]
            assert len(found) == count, query
        for wrong in ({"verdict": "won"}, {"change": "x"}, {"cursor": "x"}):
            is_problem(await client.get(CONFLICTS, params=wrong), 400)


async def test_conflicts_come_page_by_page_the_latest_first_and_to_their_tenant_alone(
    stand: Stand,
) -> None:
    late = recommendation("late", title="Late")
    await stand.fleet.hear(RecommendationProposed(recommendation=late))
    async with stand.client(Role.VIEWER) as client:
        first = (await client.get(CONFLICTS, params={"limit": 1})).json()
        rest = (await client.get(first["next"])).json()
    assert [one["change"]["id"] for one in first["items"]] == [late.id]
    assert [one["change"]["id"] for one in rest["items"]] == [MONEY.id]
    assert rest["next"] is None
    async with stand.client(Role.VIEWER, tenant="globex") as client:
        assert (await client.get(CONFLICTS)).json()["items"] == []
