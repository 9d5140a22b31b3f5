"""Notifications on a real bus, to servers that check what they are sent."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from optiinfra.events import facts as f
from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.notifications.notifier import Notifier, NotifierPorts
from optiinfra.portal_api.notifications.senders import Sender
from optiinfra.portal_api.notifications.slack import SlackSender
from optiinfra.portal_api.notifications.webhook import WebhookSender, secret_key
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.notification import Notice, Notifications
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.storage.embedded.nats import NatsServer
from tests.bus_stand import MemoryInbox, Stand, now, stand, until
from tests.factories import AT, recommendation

KEY = "whsec_" + base64.b64encode(bytes(range(32))).decode()
PROPOSAL = recommendation("told")


@dataclass
class Receiver:
    """An HTTP endpoint that answers what it is told to, and keeps what came."""

    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    async def take(self, request: web.BaseRequest) -> web.Response:
        self.came.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers=self.headers)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    runner = web.ServerRunner(web.Server(receiver.take))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture
async def bus(nats_server: Callable[[], NatsServer]) -> AsyncIterator[Stand]:
    async with stand(nats_server().url) as made:
        yield made


@dataclass
class Known:
    """The one proposal that there is; `asleep` once somebody has put it off."""

    asleep: bool = False

    async def is_asleep(self, tenant: str, change: str) -> bool:
        return self.asleep and (tenant, change) == (PROPOSAL.tenant, PROPOSAL.id)

    async def proposal(self, tenant: str, change: str) -> Recommendation | None:
        return PROPOSAL if (tenant, change) == (PROPOSAL.tenant, PROPOSAL.id) else None


def rules(**changes: Any) -> Notifications:
    hook = {"name": "hook", "kind": "webhook", "url": "https://x.example", "secret_file": "k"}
    return Notifications.model_validate(
        {"targets": [hook], "rules": [{"targets": ["hook"]}], **changes}
    )


def notifier(
    bus: Stand, sender: Sender, wanted: Notifications | None = None, known: Known | None = None
) -> Notifier:
    ports = NotifierPorts(
        bus=bus.bus, publisher=bus.publisher, inbox=MemoryInbox(), proposals=known or Known(),
        clock=now, jitter=lambda: 1.0,
    )  # fmt: skip
    return Notifier("acme", "hook", wanted or rules(), sender, ports)


def webhook(receiver: Receiver, http: httpx.AsyncClient) -> WebhookSender:
    return WebhookSender("hook", receiver.url, secret_key(KEY, of="hook"), http, now)


@asynccontextmanager
async def telling(*made: Notifier, bus: Stand) -> AsyncIterator[None]:
    """The notifiers at work, once the broker knows their consumers."""
    tasks = [asyncio.create_task(one.run()) for one in made]
    try:
        async with asyncio.timeout(20):
            for one in made:
                while one.name not in await consumers(bus):  # noqa: ASYNC110 - the broker tells nobody
                    await asyncio.sleep(0.02)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def consumers(bus: Stand) -> set[str]:
    return {info.name for info in await bus.bus.js.consumers_info("CHANGES")}


async def say(bus: Stand, fact: f.Fact, tenant: str = "acme") -> str:
    event = bus.publisher.event(fact, tenant=tenant)
    await bus.publisher.publish(event)
    return event.id


def rolled_back(reason: str = "too slow") -> f.ChangeRolledBack:
    return f.ChangeRolledBack(change=PROPOSAL.id, reason=reason)


async def test_a_receiver_can_check_who_has_sent_it(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    async with telling(notifier(bus, webhook(receiver, http)), bus=bus):
        name = await say(bus, rolled_back())
        await until(lambda: len(receiver.came) == 1)
    headers, body = receiver.came[0]
    told = Webhook(KEY).verify(body, headers)
    assert told["type"] == "change.rolled_back"
    assert told["data"]["title"] == f"Rolled back: chat: {PROPOSAL.title}"
    assert told["data"]["change"] == PROPOSAL.id
    assert headers["webhook-id"] == told["data"]["event"] == name
    with pytest.raises(WebhookVerificationError):
        Webhook(KEY).verify(body + b" ", headers)


async def test_a_receiver_that_is_away_is_told_when_it_is_back_once(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    receiver.statuses = [503, 429, 500]
    async with telling(notifier(bus, webhook(receiver, http)), bus=bus):
        await say(bus, rolled_back())
        await until(lambda: len(receiver.came) == 4, timeout_s=60)
        await say(bus, rolled_back("once more"))
        await until(lambda: len(receiver.came) == 5)
    ids = [headers["webhook-id"] for headers, _ in receiver.came]
    assert len(set(ids[:4])) == 1
    assert not await bus.dead_letters()


def two_targets() -> Notifications:
    """Both are told everything."""
    names = ("hook", "other")
    targets = [
        {"name": name, "kind": "webhook", "url": "https://x.example", "secret_file": "k"}
        for name in names
    ]
    return Notifications.model_validate({"targets": targets, "rules": [{"targets": names}]})


async def test_one_that_waits_does_not_hold_up_another(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    class Never:
        async def send(self, message: Message) -> None:
            raise Unavailable("it is away")

    both = two_targets()
    well = notifier(bus, webhook(receiver, http), both)
    away = Notifier("acme", "other", both, Never(), well._ports)
    async with telling(well, away, bus=bus):
        for number in range(3):
            await say(bus, rolled_back(str(number)))
        await until(lambda: len(receiver.came) == 3)


async def test_what_is_refused_for_good_is_a_dead_letter_without_the_secret(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    receiver.statuses = [404]
    sender = SlackSender("ops", receiver.url, http)
    async with telling(notifier(bus, sender), bus=bus):
        await say(bus, rolled_back())
        await until(lambda: len(receiver.came) == 1)
        async with asyncio.timeout(20):
            while not (letters := await bus.dead_letters()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert letters[0].consumer == "notifier"
    assert "Slack target ops answered 404" in letters[0].error
    assert receiver.url not in letters[0].model_dump_json()


async def test_two_targets_that_refuse_the_same_have_a_dead_letter_each(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    receiver.statuses = [404, 404]
    both = two_targets()
    ports = notifier(bus, webhook(receiver, http))._ports
    made = [
        Notifier("acme", name, both, SlackSender(name, receiver.url, http), ports)
        for name in ("hook", "other")
    ]
    async with telling(*made, bus=bus):
        await say(bus, rolled_back())
        async with asyncio.timeout(20):
            while len(letters := await bus.dead_letters()) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    said = sorted(letter.error.partition(" answered")[0] for letter in letters)
    assert said == ["Slack target hook", "Slack target other"]


async def test_what_could_not_be_told_for_too_long_is_a_dead_letter(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    receiver.statuses = [503] * 50
    made = notifier(bus, webhook(receiver, http), rules(give_up_after_s=60))
    old = bus.publisher.event(rolled_back(), tenant="acme")
    old = old.model_copy(update={"time": datetime.now(UTC) - timedelta(minutes=2)})
    with pytest.raises(Rejected, match="not told within 0:01:00: webhook hook answered 503"):
        await made.tell(old)


async def test_only_what_the_rules_send_is_sent_and_only_of_the_own_tenant(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    only = rules(
        rules=[
            {"targets": ["hook"], "notices": ["agent.lost", "change.rolled_back"],
             "min_risk": "high"},
        ]
    )  # fmt: skip
    async with telling(notifier(bus, webhook(receiver, http), only), bus=bus):
        await say(bus, rolled_back())  # its risk is low
        await say(bus, lost("evil"), tenant="evil")
        await say(bus, lost("acme"))
        await until(lambda: len(receiver.came) == 1)
    assert json.loads(receiver.came[0][1])["type"] == "agent.lost"


async def test_for_what_sleeps_nobody_is_asked_and_the_rest_is_told(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    known = Known(asleep=True)
    made = notifier(bus, webhook(receiver, http), known=known)
    asked = f.ApprovalRequested(
        change=PROPOSAL.id, version_hash=PROPOSAL.version_hash, risk=PROPOSAL.risk, expires_at=AT
    )
    for fact in (asked, rolled_back()):
        await made.tell(bus.publisher.event(fact, tenant="acme"))
    known.asleep = False
    await made.tell(bus.publisher.event(asked, tenant="acme"))
    told = [json.loads(body)["type"] for _, body in receiver.came]
    assert told == ["change.rolled_back", "approval.requested"]


def lost(tenant: str) -> f.AgentLost:
    return f.AgentLost(tenant=tenant, agent="cost", instance="one", last_seen_at=AT)


async def test_a_new_target_is_not_told_the_past(
    bus: Stand, receiver: Receiver, http: httpx.AsyncClient
) -> None:
    await say(bus, rolled_back("long ago"))
    made = notifier(bus, webhook(receiver, http))
    async with telling(made, bus=bus):
        await say(bus, rolled_back("now"))
        await until(lambda: len(receiver.came) == 1)
    await say(bus, rolled_back("while it was down"))
    async with telling(made, bus=bus):
        await until(lambda: len(receiver.came) == 2)
    reasons = [json.loads(body)["data"]["lines"][0] for _, body in receiver.came]
    assert reasons == ["now", "while it was down"]


async def test_slack_is_sent_blocks(receiver: Receiver, http: httpx.AsyncClient) -> None:
    await SlackSender("ops", receiver.url, http).send(message())
    told = json.loads(receiver.came[0][1])
    assert told["text"] == "Completed"
    assert [block["type"] for block in told["blocks"]] == ["section", "section"]


async def test_a_receiver_says_when_to_come_again(
    receiver: Receiver, http: httpx.AsyncClient
) -> None:
    receiver.statuses, receiver.headers = [429, 429], {"Retry-After": "17"}
    with pytest.raises(Unavailable) as busy:
        await webhook(receiver, http).send(message())
    assert busy.value.retry_after_s == 17
    receiver.headers = {"Retry-After": "Fri, 27 Nov 2026 00:00:00 GMT"}
    with pytest.raises(Unavailable) as busy:
        await webhook(receiver, http).send(message())
    assert busy.value.retry_after_s == 1


async def test_a_redirect_is_not_followed(receiver: Receiver, http: httpx.AsyncClient) -> None:
    receiver.statuses, receiver.headers = [302], {"Location": receiver.url}
    with pytest.raises(Rejected, match="answered 302"):
        await webhook(receiver, http).send(message())
    assert len(receiver.came) == 1


async def test_one_that_nobody_reaches_is_tried_again(http: httpx.AsyncClient) -> None:
    sender = SlackSender("ops", f"http://127.0.0.1:{free_port()}/secret-path", http)
    with pytest.raises(Unavailable, match="Slack target ops cannot be reached") as away:
        await sender.send(message())
    assert "secret-path" not in str(away.value)


def message() -> Message:
    return Message(
        id="e" * 32, notice=Notice.COMPLETED, tenant="acme", at=AT, title="Completed",
        lines=("all of it",),
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
