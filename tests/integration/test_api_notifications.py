"""What the API tells of notifications, on a real database, and the test of a target."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from optiinfra.events import facts as f
from optiinfra.portal_api.notifications.declared import Declared
from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.notifications.notifier import consumer_of
from optiinfra.portal_api.notifications.senders import Sender
from optiinfra.portal_api.notifications.webhook import WebhookSender, secret_key
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.notification import Notifications
from optiinfra.schemas.recommendation import Risk
from optiinfra.schemas.tenant import Role
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.inbox import PostgresInbox
from tests.factories import AT
from tests.integration.api_stand import Stand, is_problem, standing
from tests.integration.test_notifier import KEY, Receiver, http, receiver

__all__ = ["http", "receiver"]
SECRETS = ("https://hooks.example", "slack.url", "signing.secret", "smtp.password", "mail.example")
WANTED: dict[str, Any] = {
    "targets": [
        {"name": "ops", "kind": "slack", "url_file": "slack.url",
         "signing_secret_file": "signing.secret", "people": {"U1": "ann@acme.example"}},
        {"name": "pager", "kind": "webhook", "url": "https://hooks.example/secret-path",
         "secret_file": "hook.secret"},
        {"name": "finance", "kind": "email", "host": "mail.example", "sender": "a@acme.example",
         "to": ["cfo@acme.example"], "username": "u", "password_file": "smtp.password"},
    ],
    "rules": [
        {"notices": ["approval.requested"], "min_risk": "high", "targets": ["ops"]},
        {"notices": ["switch.turned", "approval.requested"], "targets": ["pager", "finance"]},
    ],
}  # fmt: skip


class Failing:
    """A way to a target that takes nothing."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    async def send(self, message: Message) -> None:
        raise self._failure


@pytest.fixture
async def stand(postgres: Database, receiver: Receiver, http: Any) -> AsyncIterator[Stand]:
    key = secret_key(KEY, of="pager")
    senders: dict[str, Sender] = {
        "ops": Failing(Unavailable("Slack target ops cannot be reached: ConnectError")),
        "pager": WebhookSender("pager", receiver.url, key, http, lambda: AT),
        "finance": Failing(Rejected("mail target finance: refused (550)")),
    }
    wanted = Notifications.model_validate(WANTED)
    declared = Declared("acme", wanted, senders, lambda: "7" * 32, lambda: AT)
    async with standing(postgres, notifications=declared) as made:
        yield made


async def seen(stand: Stand, role: Role = Role.OPERATOR, tenant: str = "acme") -> Any:
    async with stand.client(role, tenant=tenant) as client:
        answer = await client.get("/api/v1/notifications")
    assert answer.status_code == 200, answer.text
    assert not [secret for secret in SECRETS if secret in answer.text]
    return answer.json()


async def test_targets_and_rules_are_told_and_no_secret(stand: Stand) -> None:
    told = await seen(stand)
    assert [(one["name"], one["kind"], one["decides"]) for one in told["targets"]] == [
        ("ops", "slack", True), ("pager", "webhook", False), ("finance", "email", False)
    ]  # fmt: skip
    assert told["targets"][1]["notices"] == ["approval.requested", "switch.turned"]
    assert told["targets"][0]["waiting"] is None
    assert "how far consumers are" in told["targets"][0]["reason"]
    assert told["rules"][0]["min_risk"] == "high"
    assert (told["buried_as"], told["give_up_after_s"]) == ("notifier", 86_400)


async def test_nothing_is_told_to_a_viewer_nor_to_another_tenant(stand: Stand) -> None:
    async with stand.client(Role.VIEWER) as client:
        is_problem(await client.get("/api/v1/notifications"), 403)
    told = await seen(stand, tenant="globex")
    assert (told["targets"], told["rules"]) == ([], [])
    assert "no notifications file" in told["reason"]


async def logged(postgres: Database) -> list[str]:
    """The ids of all events, in the order of the log."""
    async with postgres.connection() as connection:
        rows = await connection.fetch("SELECT event_id FROM event_log ORDER BY position")
    return [row["event_id"] for row in rows]


async def told_of(stand: Stand, target: str) -> list[tuple[str, str | None]]:
    (found,) = [one for one in (await seen(stand))["targets"] if one["name"] == target]
    return [(one["notice"], one["title"]) for one in found["told"]]


async def test_what_a_target_took_is_told_the_latest_first_and_only_what_a_rule_sends(
    stand: Stand, postgres: Database
) -> None:
    proposal = await stand.fleet.awaiting("low", risk=Risk.LOW, title="a small move")
    turned = f.SwitchTurned(tenant="acme", stopped=True, by="person:x", reason="r", at=AT)
    await stand.fleet.hear(turned)
    inbox = PostgresInbox(postgres)
    for one in await logged(postgres):
        for target in ("ops", "pager"):
            await inbox.mark(consumer_of("acme", target), one)
    assert await told_of(stand, "pager") == [
        ("switch.turned", None), ("approval.requested", proposal.title)
    ]  # fmt: skip
    assert await told_of(stand, "ops") == []  # its rule begins at a high risk
    assert await told_of(stand, "finance") == []  # it has taken nothing


async def try_out(stand: Stand, target: str, role: Role = Role.OPERATOR) -> Any:
    async with stand.client(role) as client:
        return await client.post(f"/api/v1/notifications/{target}/test")


async def test_a_test_goes_through_the_targets_own_sender_and_is_audited(
    stand: Stand, receiver: Receiver
) -> None:
    answer = await try_out(stand, "pager")
    assert answer.json() == {"target": "pager", "sent": True, "reason": None}
    ((headers, body),) = receiver.came
    assert b'"type": "notification.test"' in body
    assert b"operator-ana has asked for it" in body
    assert headers["webhook-signature"].startswith("v1,")
    for target, why in (("ops", "cannot be reached"), ("finance", "refused (550)")):
        told = (await try_out(stand, target)).json()
        assert (told["sent"], why in told["reason"]) == (False, True)
    async with stand.client() as admin:
        rows = (await admin.get("/api/v1/audit")).json()["items"]
    assert [(row["action"], row["target"], row["detail"]["sent"]) for row in rows] == [
        ("notification.test", "finance", False),
        ("notification.test", "ops", False),
        ("notification.test", "pager", True),
    ]


async def test_only_an_operator_tests_and_only_what_is_declared(
    stand: Stand, receiver: Receiver
) -> None:
    is_problem(await try_out(stand, "pager", Role.VIEWER), 403)
    assert "no such notification target" in is_problem(await try_out(stand, "other"), 404)["detail"]
    async with stand.client(tenant="globex") as client:
        is_problem(await client.post("/api/v1/notifications/pager/test"), 404)
    assert receiver.came == []
