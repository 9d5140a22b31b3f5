"""Decisions in Slack, signed as Slack signs them, and who may not make them."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from optiinfra.events import facts as f
from optiinfra.portal_api.notifications.slack_desk import Door, SlackDesk
from optiinfra.runtime.stores import now
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import Database
from tests.integration.api_stand import Stand, is_problem, standing
from tests.integration.test_notifier import Receiver, receiving

SECRET = b"8f742231b10e8888abcd99yyyzzz85a5"


@pytest.fixture
async def channel() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def stand(postgres: Database, channel: Receiver) -> AsyncIterator[Stand]:
    host = httpx.URL(channel.url).netloc.decode()
    people = {"UANN": "Ann@acme.example", "UVIC": "vic@acme.example", "UGONE": "gone@acme.example"}
    async with httpx.AsyncClient(trust_env=False) as http:
        desk = SlackDesk([Door("ops", "acme", SECRET, people, host)], http, now)
        async with standing(postgres, slack=desk) as made:
            await made.user("ann", Role.APPROVER)
            await made.user("vic", Role.VIEWER)
            yield made


def form(
    channel: Receiver, proposal: Recommendation, member: str, verb: str, **changes: Any
) -> bytes:
    payload = {
        "type": "block_actions",
        "user": {"id": member},
        "actions": [
            {
                "action_id": f"optiinfra.{verb}",
                "value": f"{proposal.id}.{proposal.version_hash}",
            }
        ],
        "response_url": channel.url,
        **changes,
    }
    return urlencode({"payload": json.dumps(payload)}).encode()


def signed(body: bytes, *, secret: bytes = SECRET, ago_s: float = 0) -> dict[str, str]:
    at = str(int(time.time() - ago_s))
    digest = hmac.new(secret, b"v0:" + at.encode() + b":" + body, hashlib.sha256).hexdigest()
    return {
        "X-Slack-Request-Timestamp": at,
        "X-Slack-Signature": f"v0={digest}",
        "Content-Type": "application/x-www-form-urlencoded",
    }


async def press(stand: Stand, body: bytes, **how: Any) -> httpx.Response:
    async with stand.bearing(signed(body, **how)) as client:
        return await client.post("/api/v1/slack/actions", content=body)


def answered(channel: Receiver) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(channel.came[-1][1])
    return told


async def denied(postgres: Database) -> list[tuple[str, str]]:
    async with postgres.connection() as connection:
        rows = await connection.fetch(
            "SELECT actor, detail ->> 'why' AS why FROM audit WHERE NOT allowed ORDER BY position"
        )
    return [(row["actor"], row["why"]) for row in rows]


async def test_an_approver_approves_in_the_channel_in_the_own_name(
    stand: Stand, channel: Receiver
) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    answer = await press(stand, form(channel, proposal, "UANN", "approve"))
    assert answer.status_code == 200
    (granted,) = [e.fact for e in stand.said.events if isinstance(e.fact, f.ApprovalGranted)]
    assert str(granted.approval.by) == "person:ann@acme.example"
    assert granted.approval.version_hash == proposal.version_hash
    told = answered(channel)
    assert told["replace_original"] is True
    assert told["text"] == f"Approved by ann@acme.example: change {proposal.id[:8]}"


async def test_a_rejection_has_a_reason(stand: Stand, channel: Receiver) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    await press(stand, form(channel, proposal, "UANN", "reject"))
    (said,) = [e.fact for e in stand.said.events if isinstance(e.fact, f.ApprovalDenied)]
    assert said.approval.reason == "rejected in Slack"


@pytest.mark.parametrize(
    ("member", "who", "why"),
    [
        ("UVIC", "person:vic@acme.example", "may not decide"),
        ("UGONE", "person:slack:UGONE", "nobody here goes by this Slack account"),
        ("UEVE", "person:slack:UEVE", "nobody here goes by this Slack account"),
    ],
)
async def test_who_may_not_decide_is_told_so_alone_and_audited(
    stand: Stand, channel: Receiver, postgres: Database, member: str, who: str, why: str
) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    assert (await press(stand, form(channel, proposal, member, "approve"))).status_code == 200
    assert not stand.said.events
    told = answered(channel)
    assert told["response_type"] == "ephemeral"
    assert told["replace_original"] is False
    assert why in told["text"]
    ((actor, said),) = await denied(postgres)
    assert actor == who
    assert why in said


async def test_a_person_who_was_shut_out_decides_nothing(
    stand: Stand, channel: Receiver, postgres: Database
) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    async with postgres.connection() as connection:
        await connection.execute("UPDATE users SET disabled_at = now() WHERE email LIKE 'ann%'")
    await press(stand, form(channel, proposal, "UANN", "approve"))
    assert not stand.said.events
    assert len(await denied(postgres)) == 1


async def test_a_high_risk_is_not_decided_in_a_channel(
    stand: Stand, channel: Receiver, postgres: Database
) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.HIGH)
    await press(stand, form(channel, proposal, "UANN", "approve"))
    assert not stand.said.events
    assert "not decided in Slack" in answered(channel)["text"]
    assert len(await denied(postgres)) == 1


async def test_a_stale_button_says_that_it_is(stand: Stand, channel: Receiver) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    old = {"action_id": "optiinfra.approve", "value": f"{proposal.id}.0123456789abcdef"}
    await press(stand, form(channel, proposal, "UANN", "approve", actions=[old]))
    assert not stand.said.events
    assert "this changed, review again" in answered(channel)["text"]
    gone = {"action_id": "optiinfra.approve", "value": f"{'f' * 32}.0123456789abcdef"}
    await press(stand, form(channel, proposal, "UANN", "approve", actions=[gone]))
    assert "there is no recommendation" in answered(channel)["text"]


async def test_another_tenants_change_is_none(stand: Stand, channel: Receiver) -> None:
    proposal = await stand.fleet.awaiting("a", tenant="evil", risk=Risk.MEDIUM)
    await press(stand, form(channel, proposal, "UANN", "approve"))
    assert not stand.said.events
    assert "there is no recommendation" in answered(channel)["text"]


@pytest.mark.parametrize("how", [{"secret": b"another"}, {"ago_s": 301}, {"ago_s": -301}])
async def test_what_slack_has_not_signed_just_now_does_nothing(
    stand: Stand, channel: Receiver, how: dict[str, Any]
) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    is_problem(await press(stand, form(channel, proposal, "UANN", "approve"), **how), 401)
    assert not stand.said.events
    assert not channel.came


async def test_without_a_signature_nothing_is_read(stand: Stand) -> None:
    async with stand.bearing({}) as client:
        is_problem(await client.post("/api/v1/slack/actions", content=b"payload=x"), 401)
        at = {"X-Slack-Request-Timestamp": "soon", "X-Slack-Signature": "v0=\xff"}
        raw = {name.encode(): value.encode("latin-1") for name, value in at.items()}
        answer = await client.post("/api/v1/slack/actions", content=b"payload=x", headers=raw)
        is_problem(answer, 401)


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": []},
        {"actions": [{"action_id": "other", "value": "x"}]},
        {"actions": [{"action_id": "optiinfra.approve", "value": "x"}]},
        {"response_url": "https://evil.example/"},
        {"user": None},
    ],
)
async def test_what_is_signed_and_no_button_of_ours_is_refused(
    stand: Stand, channel: Receiver, changes: dict[str, Any]
) -> None:
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    is_problem(await press(stand, form(channel, proposal, "UANN", "approve", **changes)), 400)
    assert not stand.said.events


async def test_a_body_that_is_no_form_is_refused(stand: Stand) -> None:
    for body in (b"", b"\xff\xfe", b"payload=" + b"[" * 100_000):
        is_problem(await press(stand, body), 400)


async def test_a_decision_stands_when_slack_cannot_be_told(stand: Stand, channel: Receiver) -> None:
    channel.statuses = [500]
    proposal = await stand.fleet.awaiting("a", risk=Risk.MEDIUM)
    answer = await press(stand, form(channel, proposal, "UANN", "approve"))
    assert answer.status_code == 200
    assert len(stand.said.events) == 1
