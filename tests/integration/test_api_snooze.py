"""Putting a decision off, through the API, the log, the tables and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from optiinfra.coordinator.rebuild import rebuild
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.proposals import Proposals
from optiinfra.storage.postgres.reports import Reports
from tests.integration.api_stand import Stand, is_problem, standing


@pytest.fixture
async def stand(postgres: Database) -> AsyncIterator[Stand]:
    async with standing(postgres) as made:
        yield made


def hence(**span: float) -> str:
    return (datetime.now(UTC) + timedelta(**span)).isoformat()


async def say(
    client: httpx.AsyncClient, verb: str, proposal: Recommendation, key: str = "", **body: Any
) -> httpx.Response:
    """A person's word on the version that stands."""
    headers = {"If-Match": f'"{proposal.version_hash}"'}
    if key:
        headers["Idempotency-Key"] = key
    path = f"/api/v1/recommendations/{proposal.id}/{verb}"
    return await client.post(path, json=body, headers=headers)


async def told(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.get(f"/api/v1{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def asleep(client: httpx.AsyncClient) -> list[str]:
    """Which are listed as put off; the others are listed apart."""
    listed = {}
    for snoozed in ("true", "false"):
        found = await told(client, f"/recommendations?snoozed={snoozed}")
        listed[snoozed] = [one["id"] for one in found["items"]]
    everything = [one["id"] for one in (await told(client, "/recommendations"))["items"]]
    assert sorted(listed["true"] + listed["false"]) == sorted(everything)
    return listed["true"]


async def test_what_is_put_off_is_out_of_the_way_until_it_is_woken(
    stand: Stand, postgres: Database
) -> None:
    proposal, other = (
        await stand.fleet.awaiting("a"),
        await stand.fleet.awaiting("b", deployment="b"),
    )
    until = hence(hours=4)
    async with stand.client(Role.APPROVER) as client:
        answer = await say(client, "snooze", proposal, until=until, reason="peak hours")
        assert (answer.status_code, answer.json()["repeated"]) == (202, False)
        await stand.fleet.take_in(stand.said.events)
        assert await asleep(client) == [proposal.id]
        shown = await told(client, f"/recommendations/{proposal.id}")
        assert shown["state"] == "awaiting_approval"
        assert shown["snoozed"]["by"] == "person:approver-ana"
        assert shown["snoozed"]["reason"] == "peak hours"
        assert datetime.fromisoformat(shown["snoozed"]["until"]) == datetime.fromisoformat(until)
        card = await told(client, f"/recommendations/{proposal.id}/card")
        assert card["decision"]["snoozed"] == shown["snoozed"]
        pending = (await Reports(postgres).overview("acme"))["pending"]
        assert (pending["count"], pending["snoozed"]) == (1, 1)
        assert [one["id"] for one in pending["items"]] == [other.id]
        assert await Proposals(postgres).is_asleep("acme", proposal.id)
        refused = is_problem(await say(client, "approve", proposal, reason="x"), 409)
        assert "person:approver-ana has put it off" in refused["detail"]
        assert "wake it first" in refused["hint"]
        assert (await rebuild(postgres, check=True)).differences == ()

        assert (await say(client, "wake", proposal)).status_code == 202
        await stand.fleet.take_in(stand.said.events)
        assert await asleep(client) == []
        assert not await Proposals(postgres).is_asleep("acme", proposal.id)
        assert (await rebuild(postgres, check=True)).differences == ()
        assert (await say(client, "approve", proposal, reason="x")).status_code == 202
        await stand.fleet.take_in(stand.said.events)
        timeline = (await told(client, f"/changes/{proposal.id}"))["timeline"]
    kinds = [one["kind"] for one in timeline if one["source"] == "portal-api"]
    assert kinds == ["recommendation.snoozed", "recommendation.woken", "approval.granted"]


async def test_a_sleep_that_is_over_needs_nobody_to_end_it(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as client:
        until = hence(seconds=1)
        assert (await say(client, "snooze", proposal, until=until)).status_code == 202
        await stand.fleet.take_in(stand.said.events)
        async with stand.fleet.database.connection() as connection:
            await connection.execute("SELECT pg_sleep_until($1)", datetime.fromisoformat(until))
        assert await asleep(client) == []
        assert (await say(client, "approve", proposal, reason="")).status_code == 202


async def test_it_may_be_rejected_in_its_sleep(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as client:
        await say(client, "snooze", proposal, until=hence(hours=1))
        await stand.fleet.take_in(stand.said.events)
        assert (await say(client, "reject", proposal, reason="no")).status_code == 202
        await stand.fleet.take_in(stand.said.events)
        assert (await told(client, f"/recommendations/{proposal.id}"))["state"] == "rejected"
        is_problem(await say(client, "snooze", proposal, until=hence(hours=1)), 409)


@pytest.mark.parametrize(
    ("until", "status", "words"),
    [
        (hence(hours=-1), 400, "is past"),
        (hence(days=30), 400, "when it expires"),
        ("2100-01-01T09:00:00", 400, "timezone"),
        ("tomorrow", 400, "until"),
        (None, 400, "until"),
    ],
    ids=["past", "after its expiry", "without a zone", "no time", "none"],
)
async def test_a_time_that_cannot_be_is_refused(
    stand: Stand, until: str | None, status: int, words: str
) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.APPROVER) as client:
        answer = await say(client, "snooze", proposal, **({"until": until} if until else {}))
        assert words in is_problem(answer, status)["detail"]
        assert "nothing to wake" in is_problem(await say(client, "wake", proposal), 409)["detail"]
    assert stand.said.events == []


async def test_a_word_on_its_sleep_names_the_version_and_may_be_repeated(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    path, until = f"/api/v1/recommendations/{proposal.id}/snooze", hence(hours=1)
    async with stand.client(Role.APPROVER) as client:
        is_problem(await client.post(path, json={"until": until}), 428)
        stale = {"If-Match": f'"{"0" * 16}"'}
        is_problem(await client.post(path, json={"until": until}, headers=stale), 412)
        for repeated in (False, True):
            answer = await say(client, "snooze", proposal, "one", until=until)
            assert answer.json()["repeated"] is repeated
        other = await say(client, "snooze", proposal, "one", until=hence(hours=2))
        assert "another request" in is_problem(other, 409)["detail"]
    assert len(stand.said.events) == 1
    async with stand.client() as admin:
        (row,) = (await told(admin, "/audit"))["items"]
    assert (row["actor"], row["action"]) == ("person:approver-ana", "recommendation.snooze")
    assert (row["target"], row["detail"]["until"]) == (proposal.id, until)


async def test_who_may_not_reject_may_not_put_off_and_the_attempt_is_audited(stand: Stand) -> None:
    proposal = await stand.fleet.awaiting("a")
    async with stand.client(Role.OPERATOR) as client:
        for verb, body in (("snooze", {"until": hence(hours=1)}), ("wake", {})):
            is_problem(await say(client, verb, proposal, **body), 403)
    async with stand.client(Role.APPROVER, tenant="globex") as client:
        is_problem(await say(client, "snooze", proposal, until=hence(hours=1)), 404)
    async with stand.client() as admin:
        rows = (await told(admin, "/audit?allowed=false"))["items"]
    assert [row["target"].rpartition("/")[2] for row in rows] == ["wake", "snooze"]
