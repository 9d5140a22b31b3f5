"""The API on a real PostgreSQL: who may do what, and what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from optiinfra.events.facts import SwitchTurned
from optiinfra.schemas.rollout import GateVerdict
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.access import (
    REMEMBERED_S,
    AccessTokens,
    issue_one_time_token,
)
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.outbox import unsent
from tests.factories import AT, recommendation
from tests.integration.api_stand import Stand, is_problem, standing


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    async with standing(postgres) as made:
        yield made


async def approve(client: httpx.AsyncClient, proposal: Any, **headers: str) -> httpx.Response:
    return await client.post(
        f"/api/v1/recommendations/{proposal.id}/approve",
        json={"reason": "looks right"},
        headers={"If-Match": f'"{proposal.version_hash}"', **headers},
    )


async def test_an_approval_is_audited_written_and_said(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as client:
        answer = await approve(client, proposal)
        assert answer.status_code == 202
        (said,) = stand.said.said("approval.granted")
        assert said.approval.version_hash == proposal.version_hash
        assert str(said.approval.by) == "person:approver-ana"
        await stand.fleet.take_in(stand.said.events)
        await stand.fleet.play()
        shown = (await client.get(f"/api/v1/changes/{proposal.id}")).json()
    assert shown["state"] == "completed"
    assert [stage["status"] for stage in shown["stages"]] == ["passed"] * 3
    assert [vote["verdict"] for vote in shown["votes"]] == ["approve"] * 3
    assert shown["approvals"][0]["reason"] == "looks right"
    async with stand.client(Role.OPERATOR) as client:
        (row,) = (await client.get("/api/v1/audit")).json()["items"]
    assert (row["actor"], row["action"]) == ("person:approver-ana", "recommendation.approve")
    assert (row["target"], row["allowed"]) == (proposal.id, True)


async def test_a_rejection_ends_the_change_with_its_reason(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as client:
        answer = await client.post(
            f"/api/v1/recommendations/{proposal.id}/reject",
            json={"reason": "not this week"},
            headers={"If-Match": f'"{proposal.version_hash}"'},
        )
        assert answer.status_code == 202
        await stand.fleet.take_in(stand.said.events)
        shown = (await client.get(f"/api/v1/changes/{proposal.id}")).json()
    assert shown["state"] == "rejected"
    assert shown["timeline"][-1]["fact"]["reason"] == "not this week"


async def test_a_viewer_cannot_approve_and_the_attempt_is_audited(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.VIEWER) as client:
        body = is_problem(await approve(client, proposal), 403)
    assert "approver" in body["hint"]
    assert stand.said.events == []
    async with stand.client(Role.OPERATOR) as client:
        (row,) = (await client.get("/api/v1/audit")).json()["items"]
    assert (row["actor"], row["allowed"]) == ("person:viewer-ana", False)


async def test_a_decision_without_if_match_is_refused(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client() as client:
        path = f"/api/v1/recommendations/{proposal.id}/approve"
        is_problem(await client.post(path, json={}), 428)
        is_problem(await client.post(path, json={}, headers={"If-Match": "*"}), 400)


async def test_a_decision_on_another_version_is_refused(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client() as client:
        answer = await approve(client, proposal, **{"If-Match": '"0123456789abcdef"'})
    assert is_problem(answer, 412)["detail"] == "this changed, review again"
    assert stand.said.events == []


async def test_a_decision_that_nobody_awaits_is_a_conflict(stand: Stand) -> None:
    from optiinfra.events.facts import RecommendationProposed

    proposal = recommendation("a")
    await stand.fleet.hear(RecommendationProposed(recommendation=proposal))
    async with stand.client() as client:
        body = is_problem(await approve(client, proposal), 409)
    assert "voting" in body["detail"]


async def test_repeating_a_decision_changes_nothing(stand: Stand, postgres: Database) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as client:
        first = (await approve(client, proposal)).json()
        again = (await approve(client, proposal)).json()
    assert (first["repeated"], again["repeated"]) == (False, True)
    assert first["event_id"] == again["event_id"]
    assert len(stand.said.events) == 1
    async with postgres.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM audit") == 1


async def test_two_people_may_give_their_words_at_once(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as ana, stand.client(Role.ADMIN) as ben:
        answers = await asyncio.gather(approve(ana, proposal), approve(ben, proposal))
    assert [answer.status_code for answer in answers] == [202, 202]
    words = {str(event.fact.approval.by) for event in stand.said.events}  # type: ignore[union-attr]
    assert words == {"person:approver-ana", "person:admin-ana"}


async def test_a_person_cannot_take_a_word_back(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as ana, stand.client(Role.ADMIN) as ben:
        assert (await approve(ana, proposal)).status_code == 202
        path = f"/api/v1/recommendations/{proposal.id}/reject"
        answers = [
            await client.post(
                path,
                json={"reason": "no"},
                headers={"If-Match": f'"{proposal.version_hash}"'},
            )
            for client in (ana, ben)
        ]
    assert "approved by person:approver-ana already" in is_problem(answers[0], 409)["detail"]
    assert answers[1].status_code == 202


async def test_a_decision_outlives_a_bus_that_is_down(stand: Stand, postgres: Database) -> None:
    proposal = await stand.fleet.awaiting("a")
    stand.said.down = True
    async with stand.client() as client:
        answer = await approve(client, proposal)
    assert answer.status_code == 202
    async with unsent(postgres, limit=10, older_than_s=0) as (waiting, _):
        pass
    assert [event.id for event in waiting if event.source == "portal-api"] == [
        answer.json()["event_id"]
    ]


async def test_two_tenants_do_not_see_each_other(stand: Stand) -> None:
    mine = await stand.fleet.awaiting("mine")
    theirs = await stand.fleet.awaiting("theirs", tenant="globex")
    async with stand.client(Role.ADMIN, tenant="globex") as client:
        listed = (await client.get("/api/v1/recommendations")).json()["items"]
        assert [item["id"] for item in listed] == [theirs.id]
        changes = (await client.get("/api/v1/changes")).json()["items"]
        assert [item["id"] for item in changes] == [theirs.id]
        events = (await client.get("/api/v1/events")).json()["items"]
        assert {item["chain"] for item in events} == {theirs.id}
        for path in ("recommendations", "changes"):
            is_problem(await client.get(f"/api/v1/{path}/{mine.id}"), 404)
        is_problem(await approve(client, mine), 404)
        paused = await client.post(f"/api/v1/changes/{mine.id}/pause", json={})
        is_problem(paused, 404)
        assert (await client.get("/api/v1/events", params={"change": mine.id})).json()[
            "items"
        ] == []
    assert stand.said.events == []


@pytest.mark.parametrize("token", ["", "oi_s-1_x", "nonsense", "oi_s-0123456789abcdef_" + "a" * 43])
async def test_without_a_good_token_nothing_is_shown(stand: Stand, token: str) -> None:
    async with stand.client(None) as client:
        answer = await client.get("/api/v1/changes", headers={"Authorization": f"Bearer {token}"})
        is_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        is_problem(await client.get("/api/v1/changes"), 401)


async def test_an_expired_or_revoked_token_is_refused(stand: Stand) -> None:
    expired = await stand.token(Role.ADMIN, lasts_s=-1.0)
    async with stand.client(None) as client:
        is_problem(
            await client.get("/api/v1/agents", headers={"Authorization": f"Bearer {expired}"}), 401
        )
    async with stand.client() as client:
        assert (await client.get("/api/v1/session")).json()["role"] == "admin"
        assert (await client.delete("/api/v1/session")).status_code == 204
        is_problem(await client.get("/api/v1/session"), 401)


async def test_a_session_that_another_process_revokes_ends_within_seconds(
    stand: Stand, postgres: Database
) -> None:
    now = 0.0
    here = AccessTokens(postgres, clock=lambda: now)
    token = await here.issue("acme", "ana", Role.VIEWER, lasts_s=600.0)
    who = await here.principal(token)
    assert who is not None
    assert await stand.access.revoke("acme", who.token_id)
    now = REMEMBERED_S - 0.1
    assert await here.principal(token) == who
    assert await here.principal(token + "x") is None
    now = REMEMBERED_S
    assert await here.principal(token) is None


async def test_a_one_time_token_opens_one_session(stand: Stand) -> None:
    once = await issue_one_time_token(stand.access, "acme", "owner")
    async with stand.client(None) as client:
        headers = {"Authorization": f"Bearer {once}"}
        is_problem(await client.get("/api/v1/session", headers=headers), 401)
        opened = await client.post("/api/v1/session", headers=headers)
        assert opened.status_code == 201
        is_problem(await client.post("/api/v1/session", headers=headers), 401)
        me = await client.get(
            "/api/v1/session", headers={"Authorization": f"Bearer {opened.json()['token']}"}
        )
    assert me.json()["name"] == "owner"


async def test_controls_are_said_once_for_one_key(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.OPERATOR) as client:
        path, headers = f"/api/v1/changes/{proposal.id}/abort", {"Idempotency-Key": "k1"}
        body = {"reason": "stop it"}
        first = await client.post(path, json=body, headers=headers)
        again = await client.post(path, json=body, headers=headers)
        assert (first.status_code, again.json()["repeated"]) == (202, True)
        is_problem(await client.post(path, json={"reason": "other"}, headers=headers), 409)
        (said,) = stand.said.said("control.requested")
        assert (said.verb, said.by, said.reason) == ("abort", "person:operator-ana", "stop it")
        await stand.fleet.take_in(stand.said.events)
        state = (await client.get(f"/api/v1/changes/{proposal.id}")).json()["state"]
        assert state == "cancelled"
        is_problem(await client.post(path, json={}), 409)


@pytest.mark.parametrize(("verb", "why"), [("resume", "not paused"), ("promote", "no stage")])
async def test_what_a_change_cannot_do_now_is_refused_with_the_reason(
    stand: Stand, verb: str, why: str
) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client() as client:
        answer = await client.post(f"/api/v1/changes/{proposal.id}/{verb}", json={})
    assert why in is_problem(answer, 409)["detail"]


async def test_a_rolled_back_change_tells_why(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    stand.fleet.verdict = GateVerdict.ROLL_BACK
    async with stand.client() as client:
        await approve(client, proposal)
        await stand.fleet.take_in(stand.said.events)
        await stand.fleet.play()
        shown = (await client.get(f"/api/v1/changes/{proposal.id}")).json()
    assert shown["state"] == "rolled_back"
    assert [stage["status"] for stage in shown["stages"]] == ["failed", "pending", "pending"]
    (look,) = shown["stages"][0]["looks"]
    assert look["verdict"] == "roll_back"
    assert {answer["verdict"] for answer in look["answers"]} == {"roll_back"}


async def test_the_switch_is_turned_by_an_operator_and_shown(stand: Stand) -> None:
    async with stand.client(Role.VIEWER) as client:
        body = {"stopped": True, "reason": "incident"}
        is_problem(await client.post("/api/v1/switch", json=body), 403)
        assert (await client.get("/api/v1/switch")).json()["stopped"] is False
    async with stand.client(Role.OPERATOR) as client:
        assert (await client.post("/api/v1/switch", json=body)).status_code == 202
        (said,) = stand.said.said("switch.turned")
        assert (said.stopped, said.by) == (True, "person:operator-ana")
        await stand.fleet.take_in(stand.said.events)
        shown = (await client.get("/api/v1/switch")).json()
    assert (shown["stopped"], shown["reason"]) == (True, "incident")


async def test_pages_follow_each_other_without_gap_or_repeat(stand: Stand) -> None:
    made = {(await stand.fleet.awaiting(str(n), deployment=f"d{n}")).id for n in range(5)}
    async with stand.client(Role.VIEWER) as client:
        for path in ("recommendations", "changes"):
            seen, following = [], f"/api/v1/{path}?limit=2"
            while following:
                page = (await client.get(following)).json()
                seen += [item["id"] for item in page["items"]]
                following = page["next"]
            assert len(seen) == 5
            assert set(seen) == made
        found = (await client.get("/api/v1/changes", params={"deployment": "d3"})).json()
        assert [item["deployment"] for item in found["items"]] == ["d3"]
        everything = (await client.get("/api/v1/events?limit=200")).json()["items"]
        middle = everything[3]["position"]
        rest = (await client.get(f"/api/v1/events?limit=200&after={middle}")).json()["items"]
        assert rest == everything[4:]
        votes = (await client.get("/api/v1/events?kind=vote.cast")).json()["items"]
        assert len(votes) == 15
        late = (await client.get("/api/v1/events?since=2999-01-01T00:00:00Z")).json()["items"]
        assert late == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=201", "cursor=x", "cursor=W10", "cursor=WyIxIl0", "after=-1", "since=soon"],
)
async def test_a_bad_query_is_a_problem(stand: Stand, query: str) -> None:
    async with stand.client() as client:
        is_problem(await client.get(f"/api/v1/events?{query}"), 400)


async def test_what_is_not_there_is_a_problem(stand: Stand) -> None:
    async with stand.client() as client:
        is_problem(await client.get("/api/v2/changes"), 404)
        is_problem(await client.get("/api/nothing"), 404)
        is_problem(await client.get("/api/v1/changes/nonsense"), 400)
        is_problem(await client.get("/api/v1/changes/" + "0" * 32), 404)
        answer = await client.delete("/api/v1/changes")
        assert is_problem(answer, 405)
        assert "GET" in answer.headers["allow"]


async def test_bodies_are_bounded_and_checked(stand: Stand) -> None:
    async with stand.client() as client:
        large = b'{"reason": "' + b"x" * 1_000_001 + b'"}'
        headers = {"Content-Type": "application/json"}
        is_problem(await client.post("/api/v1/switch", content=large, headers=headers), 413)

        async def trickle() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 100_000

        is_problem(await client.post("/api/v1/switch", content=trickle(), headers=headers), 413)
        is_problem(await client.post("/api/v1/switch", content=b"{", headers=headers), 400)
        is_problem(await client.post("/api/v1/switch", json={"stopped": True, "x": 1}), 400)


async def test_an_unforeseen_error_is_a_problem_without_its_inside(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_tenant: str) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(type(stand.app.state.ports.documents), "agents", lambda _self, t: broken(t))
    async with stand.client() as client:
        body = is_problem(await client.get("/api/v1/agents"), 500)
    assert "secret" not in str(body)


async def test_every_answer_carries_security_headers(stand: Stand) -> None:
    async with stand.client() as client:
        for path in ("/healthz", "/api/v1/agents", "/api/nothing", "/"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-request-id"]


async def test_readiness_names_what_is_missing(stand: Stand) -> None:
    async with stand.client(None) as client:
        assert (await client.get("/healthz")).json()["status"] == "ok"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["bus"]) == (200, "ok")
        stand.feed.down = True
        away = await client.get("/readyz")
    assert (away.status_code, away.json()["checks"]["bus"]) == (503, "unavailable")


async def test_snapshots_name_the_sequence_to_go_on_from(stand: Stand) -> None:
    async with stand.client() as client:
        for path in ("agents", "deployments", "recommendations", "changes", "events", "switch"):
            assert (await client.get(f"/api/v1/{path}")).headers["x-event-seq"] == "0"


async def test_the_log_is_verified_and_a_forged_row_is_found(
    stand: Stand, postgres: Database
) -> None:
    proposal = await stand.fleet.awaiting("a")
    turned = SwitchTurned(tenant="acme", stopped=True, by="ana", reason="drill", at=AT)
    await stand.fleet.hear(turned)
    async with stand.client() as client:
        whole = (await client.get("/api/v1/audit/verify")).json()
        assert (whole["ok"], whole["chains"], whole["breaks"]) == (True, 2, [])
        async with postgres.connection() as connection:
            await connection.execute(
                "DELETE FROM event_log WHERE chain = $1 AND version ="
                " (SELECT max(version) FROM event_log WHERE chain = $1)",
                proposal.id,
            )
        cut = (await client.get("/api/v1/audit/verify")).json()
        assert not cut["ok"]
        assert cut["breaks"][0]["chain"] == proposal.id


async def test_the_description_is_openapi_3_1_with_one_shape_of_error(stand: Stand) -> None:
    async with stand.client(None) as client:
        described = (await client.get("/api/openapi.json")).json()
    assert described["openapi"].startswith("3.1")
    names = [
        operation["operationId"]
        for path in described["paths"].values()
        for operation in path.values()
    ]
    assert len(names) == len(set(names))
    for path in described["paths"].values():
        for operation in path.values():
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            assert "422" not in operation["responses"]
