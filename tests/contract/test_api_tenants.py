"""Every route of the description, walked by another tenant and by a viewer: nothing leaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from pydantic import HttpUrl
from websockets.asyncio.client import connect

from optiinfra.coordinator.hindsight import LogHindsight
from optiinfra.events import facts as f
from optiinfra.events.envelope import Event
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.measures import SPEND
from optiinfra.portal_api.notifications.declared import Declared
from optiinfra.portal_api.notifications.message import Message
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.server import running_api
from optiinfra.schemas.answers import ANSWER_SCORE
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import Deployment
from optiinfra.schemas.money import Interval
from optiinfra.schemas.notification import Notifications
from optiinfra.schemas.outcome import Outcome
from optiinfra.schemas.recommendation import Recommendation
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.telemetry import Unit, Unknown, UnknownReason
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.letters import Letters
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.database import Database, open_database
from optiinfra.storage.postgres.setup import declare
from tests import bus_stand
from tests.factories import AT, recommendation
from tests.integration.api_stand import Fleet
from tests.measured import just_now, metric_store, price, record, sample

PATIENCE_S = 20.0
SAFE = ("get", "head")
_NOTHING: Any = None
OPERATIONS: dict[str, tuple[str, str]] = {
    operation["operationId"]: (method, path)
    for path, operations in create_app(_NOTHING).openapi()["paths"].items()
    for method, operation in operations.items()
}
"""Name → method and path."""
OPEN = {
    "healthz": "says whether the process lives",
    "readyz": "says whether the process can work",
    "providers": "what a sign-in page shows",
    "sign_in": "takes a one-time token alone",
    "sign_in_browser": "takes a one-time token alone",
    "open_sign_in_link": "takes a one-time token alone",
    "refresh": "takes a refresh token alone",
    "begin_sign_in": "goes to a provider",
    "end_sign_in": "comes from a provider",
    "pressed": "comes from Slack, which signs it",
}
"""Operations for which nobody has to be signed in, and why."""
LEAVES = {"sign_out", "sign_out_everywhere"}
"""After these nobody is signed in: they come last."""
ONES_OWN = {*LEAVES, "end_session", "link", "ticket", "check_policy", "what_if"}
"""What a viewer may do that is no GET: it is about the viewer's own session, or writes nothing."""
WITHOUT_NAMES = {"audit_verify", "metrics", "gates", "sessions"}
"""Answers in which nothing of a tenant is named."""
LINES = {"audit_export"}
"""Answers that are lines of JSON, and name whose they are."""
TOLD_AS_NONE = {"current_policy"}
"""What is 404 for a tenant that has none, though no id is named."""
QUERIES: dict[str, dict[str, str]] = {"series": {"deployment": "acme-chat", "metric": SPEND}}
"""What an operation wants in its query, by its name."""
REASON = {"reason": "walked"}
BODIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("approve", "reject", "wake", "retry_letter", "drop_letter"), REASON),
    "snooze": {"until": "2100-01-01T09:00:00Z", **REASON},
    **dict.fromkeys(("pause", "resume", "promote", "abort", "rollback"), REASON),
    "turn": {"stopped": True, **REASON},
    "add_user": {"email": "walker@globex.example", "name": "walker"},
    "change_user": {"role": "viewer"},
    "make_key": {"label": "walker"},
    **{name: {"policy": {"name": "walker"}} for name in ("check_policy", "what_if")},
}


@dataclass
class World:
    """An API over real servers in which acme has something of everything, globex nothing."""

    url: str
    bus: bus_stand.Stand
    database: Database
    ids: dict[str, str]
    version: str
    tested: list[Message]
    """What was sent to acme's notification target."""

    @asynccontextmanager
    async def client(self, tenant: str, role: Role) -> AsyncIterator[httpx.AsyncClient]:
        headers = {
            "Authorization": f"Bearer {await self.token(tenant, role)}",
            "If-Match": f'"{self.version}"',
        }
        async with httpx.AsyncClient(
            base_url=self.url, headers=headers, trust_env=False, timeout=PATIENCE_S
        ) as client:
            yield client

    async def token(self, tenant: str, role: Role) -> str:
        access = AccessTokens(self.database)
        return await access.issue(tenant, f"{role}-of-{tenant}", role, lasts_s=600)

    async def call(self, client: httpx.AsyncClient, name: str) -> httpx.Response:
        """An operation on acme's things."""
        method, path = OPERATIONS[name]
        return await client.request(
            method, path.format(**self.ids), params=QUERIES.get(name), json=BODIES.get(name)
        )

    async def count(self, query: str, *arguments: object) -> int:
        async with self.database.connection() as connection:
            return int(await connection.fetchval(query, *arguments))

    async def first_event(self, tenant: str) -> str:
        query = "SELECT event_id FROM event_log WHERE tenant = $1 ORDER BY position LIMIT 1"
        async with self.database.connection() as connection:
            return str(await connection.fetchval(query, tenant))

    async def audited(self, tenant: str, *, allowed: bool) -> int:
        query = "SELECT count(*) FROM audit WHERE tenant = $1 AND allowed = $2"
        return await self.count(query, tenant, allowed)


@pytest.fixture
async def store(servers: Addresses) -> AsyncIterator[MetricStore]:
    async with metric_store(servers.clickhouse_url) as made:
        yield made


@pytest.fixture
async def world(
    database: str, nats_server: Callable[[], NatsServer], store: MetricStore
) -> AsyncIterator[World]:
    async with bus_stand.stand(nats_server().url) as bus, open_database(database) as postgres:
        letters = Letters(bus.bus, postgres, bus.publisher)
        tested: list[Message] = []
        ports = api_ports(
            postgres, bus.bus, bus.publisher, letters=letters, metrics=store,
            notifications=acmes_targets(tested), hindsight=LogHindsight(),
        )  # fmt: skip
        async with running_api(create_app(ports), "127.0.0.1", 0) as url:
            made = World(url, bus, postgres, {}, "", tested)
            await furnish(made)
            await measure(store)
            yield made


class Kept:
    """A way to a target that keeps what is sent."""

    def __init__(self, sent: list[Message]) -> None:
        self._sent = sent

    async def send(self, message: Message) -> None:
        self._sent.append(message)


def acmes_targets(sent: list[Message]) -> Declared:
    """One webhook, `hook`."""
    hook = {"name": "hook", "kind": "webhook", "url": "https://x", "secret_file": "key"}
    wanted = Notifications.model_validate(
        {"targets": [hook], "rules": [{"targets": ["hook"]}], "portal_url": "https://acme.example"}
    )
    return Declared("acme", wanted, {"hook": Kept(sent)}, lambda: "1" * 32, lambda: AT)


async def measure(store: MetricStore) -> None:
    """What acme's deployment costs and answers."""
    now = just_now()
    answer = sample(
        ANSWER_SCORE, 1.0, at=now, unit=Unit.SCORE, replica="acme-1", source="live", ok="true",
        stratum="live",
    )  # fmt: skip
    prices = [price(2.0, at=now), price(2.0, at=now, replica="acme-1")]
    await record(store, [*prices, answer], deployment="acme-chat")


async def furnish(world: World) -> None:
    """Gives acme one of each thing that the API can show."""
    fleet = Fleet(world.database)
    proposal = await fleet.awaiting("acme-move", title="acme's plan")
    rival = recommendation("acme-rival", proposer=AgentName.PERFORMANCE, title="acme's other plan")
    done = await fleet.awaiting("acme-done", deployment="acme-chat", title="acme's last plan")
    registered = f.AgentRegistered(
        tenant="acme",
        agent="cost",
        instance="acme-cost-1",
        version="1",
        capabilities=("propose",),
        at=AT,
    )
    await fleet.hear(registered, f.RecommendationProposed(recommendation=rival))
    gateway = HttpUrl("http://acme.example")
    chat = Deployment(id="acme-chat", tenant="acme", model="acme-model", gateway_url=gateway)
    await declare(world.database, "acme", (chat,))
    await world.bus.say(1, by="person:acme")
    letter = await bus_stand.letter_of(world.bus.bus, 1)
    publisher = world.bus.publisher
    await publisher.publish(publisher.event(letter, tenant="acme"))
    async with world.client("acme", Role.ADMIN) as admin:
        body = {"email": "ann@acme.example", "name": "ann", "role": "viewer"}
        user = (await admin.post("/api/v1/users", json=body)).json()["id"]
        key = (await admin.post("/api/v1/keys", json={"label": "acme's"})).json()["id"]
        (session,) = (await admin.get("/api/v1/sessions")).json()["items"]
        await carry_out(world, fleet, admin, done)
    await fleet.hear(
        f.SwitchTurned(tenant="acme", stopped=True, by="person:acme", reason="acme's", at=AT)
    )
    world.version = proposal.version_hash
    world.ids = {
        "change": proposal.id,
        "number": "1",
        "user": user,
        "key": key,
        "session": session["id"],
        "provider": "google",
        "deployment": "acme-chat",
        "target": "hook",
        "event": await world.first_event("acme"),
    }


async def carry_out(
    world: World, fleet: Fleet, admin: httpx.AsyncClient, proposal: Recommendation
) -> None:
    """Has a change approved and rolled out, past its gates, with what came of it."""
    answer = await admin.post(
        f"/api/v1/recommendations/{proposal.id}/approve",
        json={"reason": "acme's"},
        headers={"If-Match": f'"{proposal.version_hash}"'},
    )
    assert answer.status_code == 202, answer.text
    async with world.database.connection() as connection:
        rows = await connection.fetch("SELECT event FROM outbox WHERE event IS NOT NULL")
    await fleet.take_in([Event.model_validate_json(row["event"]) for row in rows])
    await fleet.play()
    unknown = Unknown(reason=UnknownReason.MISSING, detail="not measured")
    outcome = Outcome(
        change=proposal.id, deployment="acme-chat", kind="spot_migration",
        terminal=ChangeState.COMPLETED,
        predicted_usd_per_month=Interval(low=500.0, mid=700.0, high=900.0),
        realised_usd_per_month=unknown, usd_per_hour_before=unknown, usd_per_hour_after=unknown,
        ttft_p95_s=unknown, tpot_p95_s=unknown, quality_mean=unknown, features={}, at=AT,
    )  # fmt: skip
    rules = Rules(name="acme-rules")
    policy = f.PolicyChanged(
        tenant="acme", number=1, version=rules.version, sha256=rules.sha256,
        policy=rules.model_dump(mode="json"), by="file:acme.yaml", written_at=AT, at=AT,
    )  # fmt: skip
    await fleet.hear(f.OutcomeRecorded(outcome=outcome), policy)


def signed_in(*, safe: bool) -> list[str]:
    """Operations for which somebody is signed in; the stream never ends, and is watched apart."""
    return [
        name
        for name, (method, _) in OPERATIONS.items()
        if name not in OPEN | {"sse": ""} and (method in SAFE) is safe
    ]


async def test_acme_sees_what_the_others_must_not(world: World) -> None:
    """Without this, the walks below would prove nothing."""
    async with world.client("acme", Role.ADMIN) as client:
        for name in signed_in(safe=True):
            answer = await world.call(client, name)
            assert answer.status_code == 200, (name, answer.text)
            if name not in WITHOUT_NAMES:
                assert "acme" in answer.text, name
            if name not in WITHOUT_NAMES | LINES:
                assert answer.json().get("items") != [], name


async def test_another_tenant_sees_nothing_of_it(world: World) -> None:
    async with world.client("globex", Role.ADMIN) as client:
        for name in signed_in(safe=True):
            answer = await world.call(client, name)
            if "{" in OPERATIONS[name][1] or name in TOLD_AS_NONE:
                empty = answer.status_code == 200 and answer.json().get("items") == []
                assert answer.status_code == 404 or empty, (name, answer.text)
                said = answer.text.replace(answer.request.url.path, "")
                assert "acme" not in said.replace("acme-chat", ""), name
                continue
            if name == "series":
                assert answer.json()["series"] == [], answer.text
                continue
            if name in ("metrics", "sessions"):
                assert world.ids["session"] not in answer.text, name
                continue
            assert "acme" not in answer.text, name
            assert answer.status_code == 200, (name, answer.text)
            if name not in LINES:
                assert answer.json().get("items", []) == [], name
            for one in (world.ids["change"], world.ids["user"], world.ids["key"]):
                assert one not in answer.text, name
        verified = (await world.call(client, "audit_verify")).json()
        assert (verified["chains"], verified["events"]) == (0, 0)


async def test_another_tenant_changes_nothing_of_it(world: World) -> None:
    before = await world.audited("acme", allowed=True)
    said = await world.count("SELECT count(*) FROM outbox WHERE event LIKE '%acme%'")
    async with world.client("globex", Role.ADMIN) as client:
        for name in signed_in(safe=False):
            if name in LEAVES:
                continue
            answer = await world.call(client, name)
            if "{" in OPERATIONS[name][1]:
                assert answer.status_code == 404, (name, answer.text)
            else:
                assert answer.is_success, (name, answer.text)
            assert "acme" not in answer.text, name
    for name in LEAVES:
        async with world.client("globex", Role.ADMIN) as client:
            assert (await world.call(client, name)).is_success
    assert await world.audited("acme", allowed=True) == before
    assert await world.count("SELECT count(*) FROM outbox WHERE event LIKE '%acme%'") == said
    async with world.client("acme", Role.ADMIN) as client:
        (user,) = (await world.call(client, "users")).json()["items"]
        assert user["role"] == "viewer"
        (key,) = (await world.call(client, "keys")).json()["items"]
        assert key["id"] == world.ids["key"]
        assert (await world.call(client, "switch")).json()["reason"] == "acme's"
        assert (await world.call(client, "dead_letter")).json()["state"] == "new"
    assert world.tested == []


async def test_a_viewer_changes_nothing_and_each_attempt_is_audited(world: World) -> None:
    async with world.client("acme", Role.VIEWER) as client:
        walked = [name for name in signed_in(safe=False) if name not in ONES_OWN]
        assert len(walked) >= len(BODIES.keys() - ONES_OWN)
        before = await world.audited("acme", allowed=True)
        for number, name in enumerate(walked, start=1):
            answer = await world.call(client, name)
            assert answer.status_code == 403, (name, answer.text)
            assert await world.audited("acme", allowed=False) == number, name
        assert await world.audited("acme", allowed=True) == before
    assert world.tested == []


async def test_nobody_gets_in_without_signing_in(world: World) -> None:
    async with httpx.AsyncClient(base_url=world.url, trust_env=False) as client:
        for name in (*signed_in(safe=True), *signed_in(safe=False), "sse"):
            answer = await world.call(client, name)
            assert answer.status_code == 401, (name, answer.text)
            assert "acme" not in answer.text.replace(answer.request.url.path, ""), name


async def test_both_streams_carry_ones_own_events_alone(world: World) -> None:
    """From the first event on, in which acme's come before globex's."""
    turned = f.SwitchTurned(tenant="globex", stopped=True, by="person:x", reason="ours", at=AT)
    publisher = world.bus.publisher
    await publisher.publish(publisher.event(turned, tenant="globex"))
    token = await world.token("globex", Role.VIEWER)
    async with asyncio.timeout(PATIENCE_S):
        for frames in (over_socket(world.url, token), over_sse(world.url, token)):
            async for text in frames:
                assert "acme" not in text
                frame = json.loads(text)
                if frame["kind"] == "event":
                    assert "globex" in text
                    break
            await frames.aclose()  # type: ignore[attr-defined]


async def over_socket(url: str, token: str) -> AsyncIterator[str]:
    address = url.replace("http", "ws", 1) + "/api/v1/stream?after=0"
    headers = {"Authorization": f"Bearer {token}"}
    async with connect(address, additional_headers=headers, proxy=None) as socket:
        async for text in socket:
            for line in str(text).split("\n"):
                yield line


async def over_sse(url: str, token: str) -> AsyncIterator[str]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client,
        client.stream("GET", "/api/v1/sse?after=0") as answer,
    ):
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield line.removeprefix("data: ")
