"""Answers that PostgreSQL writes as JSON are what the models of the OpenAPI document say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from optiinfra.events import facts as f
from optiinfra.portal_api.paging import PageOf
from optiinfra.portal_api.views import (
    AgentView,
    ChangeDetail,
    ChangeView,
    ConflictView,
    EventView,
    RecommendationDetail,
    RecommendationView,
)
from optiinfra.schemas.rollout import GateVerdict
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.postgres.database import open_database
from tests.factories import AT, recommendation
from tests.integration.api_stand import Stand, standing

TIME = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+(Z|[+]00:00)$")
LISTS: dict[str, type[BaseModel]] = {
    "/agents": PageOf[AgentView],
    "/recommendations": PageOf[RecommendationView],
    "/changes": PageOf[ChangeView],
    "/conflicts": PageOf[ConflictView],
    "/events?limit=200": PageOf[EventView],
    "/changes?limit=1&state=completed&kind=spot_migration&deployment=done": PageOf[ChangeView],
}
DETAILS: dict[str, type[BaseModel]] = {
    "/recommendations/": RecommendationDetail,
    "/changes/": ChangeDetail,
}


@pytest.fixture
async def stand(database: str) -> AsyncIterator[Stand]:
    """Changes that went well, were undone and wait; their titles need escapes in JSON."""
    async with open_database(database) as postgres, standing(postgres) as made:
        yield made


async def decided(stand: Stand, name: str) -> str:
    title = f'Move "{name}" \\ nach Zürich\n\t\u2028 to spot'
    proposal = await stand.fleet.awaiting(name, deployment=name, title=title)
    async with stand.client() as client:
        answer = await client.post(
            f"/api/v1/recommendations/{proposal.id}/approve",
            json={"reason": 'quite "right"'},
            headers={"If-Match": f'"{proposal.version_hash}"'},
        )
    assert answer.status_code == 202
    await stand.fleet.take_in(stand.said.events)
    await stand.fleet.play()
    return proposal.id


async def changes(stand: Stand) -> list[str]:
    registered = f.AgentRegistered(
        tenant="acme",
        agent="cost",
        instance="cost-1",
        version="1",
        capabilities=("propose", "execute"),
        at=AT,
    )
    await stand.fleet.hear(registered)
    done = await decided(stand, "done")
    stand.fleet.verdict = GateVerdict.ROLL_BACK
    undone = await decided(stand, "undone")
    waits = (await stand.fleet.awaiting("waits")).id
    rival = recommendation("rival", proposer=AgentName.PERFORMANCE)
    await stand.fleet.hear(f.RecommendationProposed(recommendation=rival))
    return [done, undone, waits]


def told(value: Any) -> Any:
    """The same with times as times: RFC 3339 writes one time in several ways."""
    if isinstance(value, dict):
        return {name: told(part) for name, part in value.items()}
    if isinstance(value, list):
        return [told(part) for part in value]
    if isinstance(value, str) and TIME.match(value):
        return datetime.fromisoformat(value)
    return value


async def test_what_is_written_is_what_the_models_would_write(stand: Stand) -> None:
    made = await changes(stand)
    asked = LISTS | {path + one: model for path, model in DETAILS.items() for one in made}
    async with stand.client() as client:
        for path, model in asked.items():
            answer = await client.get(f"/api/v1{path}")
            assert answer.headers["content-type"] == "application/json", path
            assert "x-event-seq" in answer.headers, path
            read = model.model_validate_json(answer.content)
            assert told(answer.json()) == told(read.model_dump(mode="json")), path
            assert answer.json().get("items") != [], path


async def test_a_story_is_told_in_the_words_of_its_events(stand: Stand) -> None:
    done, undone, waits = await changes(stand)
    async with stand.client() as client:
        found = [(await client.get(f"/api/v1/changes/{one}")).json() for one in (done, undone)]
        waiting = (await client.get(f"/api/v1/changes/{waits}")).json()
    assert [one["state"] for one in found] == ["completed", "rolled_back"]
    assert found[0]["title"] == 'Move "done" \\ nach Zürich\n\t\u2028 to spot'
    assert {stage["status"] for stage in found[0]["stages"]} == {"passed"}
    first, *_ = found[0]["stages"]
    assert datetime.fromisoformat(first["requested_at"]) <= datetime.fromisoformat(
        first["in_force_at"]
    )
    assert [event["version"] for event in found[0]["timeline"]] == list(
        range(1, found[0]["version"] + 1)
    )
    assert found[1]["rollback_reason"]
    assert [stage["status"] for stage in waiting["stages"]] == ["pending"] * 3
    assert (waiting["approvals"], waiting["executions"]) == ([], [])


async def test_the_models_stand_in_the_description(stand: Stand) -> None:
    async with stand.client(None) as client:
        described = (await client.get("/api/openapi.json")).json()
    for path, model in (LISTS | DETAILS).items():
        name = path.partition("?")[0]
        found = described["paths"][f"/api/v1{name}{'{change}' if name.endswith('/') else ''}"]
        schema = found["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        named = re.sub(r"\W", "_", model.__name__)
        assert schema == {"$ref": f"#/components/schemas/{named}"}, path
