"""The log read again through the API: causes, standings at a time, another policy, the export."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from optiinfra.portal_api.routes import hindsight
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres import causes, replays
from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.export import checked
from tests.integration.api_stand import Stand, is_problem, standing

EVENTS = "/api/v1/events?limit=200"
ALL = {"name": "all", "approvals": [{"name": "all", "max_risk": "critical"}]}


@pytest.fixture
async def stand(database: str) -> AsyncIterator[Stand]:
    """A change that was carried out, and one that waits for a person."""
    async with open_database(database) as postgres, standing(postgres) as made:
        done = await made.fleet.awaiting("done", deployment="one")
        async with made.client() as client:
            answer = await client.post(
                f"/api/v1/recommendations/{done.id}/approve",
                json={"reason": "good"},
                headers={"If-Match": f'"{done.version_hash}"'},
            )
        assert answer.status_code == 202
        await made.fleet.take_in(made.said.events)
        await made.fleet.play()
        await made.fleet.awaiting("waits", deployment="two")
        yield made


async def get(stand: Stand, path: str, role: Role = Role.VIEWER, **params: Any) -> Any:
    async with stand.client(role) as client:
        answer = await client.get(f"/api/v1{path}", params=params or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def post(stand: Stand, body: Any, role: Role = Role.VIEWER) -> Any:
    async with stand.client(role) as client:
        return await client.post("/api/v1/what-if", json=body)


async def log(stand: Stand) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await get(stand, "/events", limit=200))["items"]
    return found


def roots(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in events if one["causation"] is None]


async def test_an_event_stands_between_its_causes_and_what_it_led_to(stand: Stand) -> None:
    events = await log(stand)
    by_id = {one["id"]: one for one in events}
    for event in events:
        found = await get(stand, f"/events/{event['id']}/causes")
        depths = {one["id"]: one["depth"] for one in found["items"]}
        assert (found["causes_cut"], found["effects_cut"]) == (False, False)
        assert depths[event["id"]] == 0
        up, cause = [], event["causation"]
        while cause in by_id:
            up.append(cause)
            cause = by_id[cause]["causation"]
        assert [one for one, depth in depths.items() if depth < 0] == up[::-1]
        led_to = {event["id"]}
        while more := {
            one["id"] for one in events if one["causation"] in led_to and one["id"] not in led_to
        }:
            led_to |= more
        assert {one for one, depth in depths.items() if depth >= 0} == led_to
    assert any(one["causation"] in by_id for one in events)


async def test_a_tree_that_is_too_large_says_that_it_was_cut(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = await log(stand)
    first = max(roots(events), key=lambda one: sum(e["causation"] == one["id"] for e in events))
    monkeypatch.setattr(causes, "MOST", 1)
    found = await get(stand, f"/events/{first['id']}/causes")
    assert [one["depth"] for one in found["items"]] == [0, 1]
    assert found["effects_cut"]


async def test_no_event_and_an_event_of_others_are_told_alike(stand: Stand) -> None:
    event = (await log(stand))[0]["id"]
    async with stand.client(tenant="globex") as client:
        is_problem(await client.get(f"/api/v1/events/{event}/causes"), 404)
    async with stand.client() as client:
        is_problem(await client.get("/api/v1/events/nothing/causes"), 404)


async def states(stand: Stand, **params: Any) -> dict[str, list[str]]:
    path, found = "/replay", dict[str, list[str]]()
    while path:
        page = await get(stand, path, **params)
        found |= {
            one["deployment"]: [step["state"] for step in one["steps"]] for one in page["items"]
        }
        path, params = (page["next"] or "").removeprefix("/api/v1"), {}
    return found


async def test_a_replay_tells_how_each_change_stood_after_each_event(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await states(stand)
    order = list(dict.fromkeys(found["one"]))
    assert order == [
        "proposed",
        "voting",
        "awaiting_approval",
        "approved",
        "executing",
        "completed",
    ]
    assert found["two"][-1] == "awaiting_approval"
    assert await states(stand, limit=1) == found
    monkeypatch.setattr(replays, "MOST_EVENTS", 1)
    assert await states(stand) == found


async def test_a_replay_ends_where_the_range_does_and_leaves_out_what_was_over(
    stand: Stand,
) -> None:
    events = await log(stand)
    begun = next(one for one in events if one["kind"] == "execution.requested")
    early = await states(stand, until=begun["at"])
    assert list(early) == ["one"]
    assert "executing" not in early["one"]
    last = events[-1]["at"]
    assert list(await states(stand, since=last)) == ["two"]
    (only,) = (await get(stand, "/replay", change=begun["chain"]))["items"]
    assert only["change"] == begun["chain"]
    step = next(one for one in only["steps"] if one["state"] == "executing")
    assert step["position"] <= begun["position"]


async def test_another_policy_is_tried_without_a_trace(stand: Stand) -> None:
    before = await log(stand)
    answer = await post(stand, {"policy": ALL})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["changes"], found["events"]) == (2, len(before))
    assert {one["deployment"] for one in found["differences"]} == {"one", "two"}
    assert all(one["why"] for one in found["differences"])
    same = (await post(stand, {"policy": {}})).json()
    assert same["differences"] == []
    assert await log(stand) == before
    rows = (await get(stand, "/audit", Role.ADMIN))["items"]
    assert [row["action"] for row in rows] == ["recommendation.approve"]


async def test_a_policy_that_is_wrong_and_a_range_that_is_too_long_are_refused(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = is_problem(await post(stand, {"policy": {"nmae": "typo"}}), 400)
    assert "nmae" in wrong["detail"]
    old = datetime.now(UTC) - timedelta(days=400)
    long = is_problem(await post(stand, {"policy": {}, "since": old.isoformat()}), 400)
    assert "92 days" in long["detail"]
    monkeypatch.setattr(hindsight, "MOST_EVENTS", 3)
    many = is_problem(await post(stand, {"policy": {}}), 400)
    assert "later time" in many["hint"]


async def test_the_export_of_the_api_proves_itself(stand: Stand) -> None:
    async with stand.client(Role.OPERATOR) as client:
        answer = await client.get("/api/v1/audit/export")
        assert answer.status_code == 200
        assert "attachment" in answer.headers["content-disposition"]
        lines = answer.content.splitlines(keepends=True)
        found = checked(lines)
        assert found.ok
        assert (found.events, found.audit_rows) == (len(await log(stand)), 1)
    async with stand.client(Role.VIEWER) as client:
        is_problem(await client.get("/api/v1/audit/export"), 403)
