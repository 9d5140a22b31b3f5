"""The API over a real database, as tests use it: tenants, tokens, and changes in any state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import FastAPI

from optiinfra.coordinator.hindsight import LogHindsight
from optiinfra.coordinator.runner import Runner
from optiinfra.coordinator.timekeeping import sweep_timers
from optiinfra.events import commands as c
from optiinfra.events import facts as f
from optiinfra.events.bus import Bus
from optiinfra.events.envelope import Event
from optiinfra.events.feed import Delivered, StreamState
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.hindsight import Reading
from optiinfra.portal_api.live.hub import Hub
from optiinfra.portal_api.live.settled import Settled
from optiinfra.portal_api.notifications.declared import Declared
from optiinfra.portal_api.notifications.slack_desk import SlackDesk, closed_desk
from optiinfra.portal_api.ports import ApiPorts, Consumers, people_in
from optiinfra.portal_api.providers.port import Providers
from optiinfra.portal_api.remembered import RememberedSeries
from optiinfra.schemas.errors import OptiInfraError, Unavailable
from optiinfra.schemas.recommendation import Recommendation, Risk
from optiinfra.schemas.rollout import GateVerdict
from optiinfra.schemas.rules import Rules
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.vote import VOTERS
from optiinfra.storage.clickhouse import MetricStore
from optiinfra.storage.letters import Letters
from optiinfra.storage.postgres.access import AccessTokens, Grant, Purpose
from optiinfra.storage.postgres.database import Database
from optiinfra.storage.postgres.decisions import Decisions
from optiinfra.storage.postgres.documents import Documents
from optiinfra.storage.postgres.proposals import Proposals
from optiinfra.storage.postgres.queries import Queries
from optiinfra.storage.rates import Rates
from optiinfra.storage.redis import RegistryCache
from tests.factories import event, gate_answer, recommendation, step_result, vote


class SilentFeed:
    """A stream on which only what is put into `said` is said; `down` makes it unreachable."""

    def __init__(self) -> None:
        self.down = False
        self.said: asyncio.Queue[Delivered] = asyncio.Queue()

    async def state(self) -> StreamState:
        if self.down:
            raise Unavailable("the bus is down")
        return StreamState("2026-01-05T12:00:00+00:00", 0, 0)

    async def follow(self, after: int) -> AsyncGenerator[Delivered, None]:
        while True:
            one = await self.said.get()
            if one.sequence > after:
                yield one


class SaidOnBus:
    """Keeps what is published; `down` makes it refuse."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.down = False

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        if self.down:
            return [Unavailable("the bus is down") for _ in events]
        known = {event.id for event in self.events}
        self.events.extend(event for event in events if event.id not in known)
        return list(range(1, len(events) + 1))

    def said(self, kind: str) -> list[Any]:
        return [event.fact for event in self.events if event.fact.kind == kind]


@dataclass
class Fleet:
    """Plays coordinator and agents into the database."""

    database: Database
    bus: SaidOnBus = field(default_factory=SaidOnBus)
    verdict: GateVerdict = GateVerdict.PASS
    evidence: dict[str, Any] = field(default_factory=dict)
    """What answers of gates say beside their verdict."""

    def __post_init__(self) -> None:
        self.runner = Runner(self.database, self.bus, Rules)
        self._answered: set[str] = set()

    async def hear(self, *facts: f.Fact, tenant: str = "acme") -> None:
        failures = await self.runner.handle([event(fact, tenant=tenant) for fact in facts])
        assert failures == [None] * len(facts)

    async def awaiting(
        self, name: str, *, tenant: str = "acme", risk: Risk = Risk.HIGH, **values: Any
    ) -> Recommendation:
        """A recommendation that all agents approve of and a person is asked about."""
        proposal = recommendation(name, tenant=tenant, risk=risk, **values)
        votes = [vote(proposal.id, agent) for agent in sorted(VOTERS)]
        await self.hear(f.RecommendationProposed(recommendation=proposal), *votes, tenant=tenant)
        return proposal

    async def take_in(self, events: Sequence[Event]) -> None:
        assert await self.runner.handle(events) == [None] * len(events)

    async def play(self) -> None:
        """Until nobody has anything to answer and no timer is due."""
        while True:
            asked = [e for e in self.bus.events if e.id not in self._answered]
            self._answered.update(e.id for e in asked)
            for one in asked:
                await self.hear(*self._answers(one.fact), tenant=one.tenant)
            if not asked and not await sweep_timers(self.database, self.runner.handle):
                return

    def _answers(self, fact: f.Fact) -> list[f.Fact]:
        match fact:
            case c.ExecutionRequested():
                done = step_result(fact.step, fact.fence)
                return [f.ExecutionStaged(change=fact.change, result=done)]
            case c.GateRequested():
                return [self._gate(fact, assessor) for assessor in fact.assessors]
            case c.RollbackRequested():
                return [
                    f.RollbackCompleted(
                        change=fact.change, fence=fact.fence, proved=True, detail="as it was"
                    )
                ]
            case _:
                return []

    def _gate(self, fact: c.GateRequested, assessor: Any) -> f.GateAnswered:
        answer = gate_answer(
            fact.change, assessor, stage=fact.stage, look=fact.look, verdict=self.verdict
        )
        return f.GateAnswered(answer=answer.model_copy(update=self.evidence))


@dataclass
class Stand:
    """An API with its parts; `client` calls as somebody."""

    app: FastAPI
    access: AccessTokens
    fleet: Fleet
    said: SaidOnBus
    feed: SilentFeed

    async def token(self, role: Role, *, tenant: str = "acme", lasts_s: float = 600.0) -> str:
        return await self.access.issue(tenant, f"{role.value}-ana", role, lasts_s=lasts_s)

    async def user(self, name: str, role: Role) -> dict[str, Any]:
        """Somebody new at acme, as the API has them."""
        async with self.client() as admin:
            body = {"email": f"{name}@Acme.example", "name": name, "role": role.value}
            answer = await admin.post("/api/v1/users", json=body)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    async def user_token(self, user: dict[str, Any], role: Role) -> str:
        """A session of somebody whom the API has as a user."""
        grant = Grant("acme", user["email"], role, user_id=user["id"])
        async with self.fleet.database.transaction() as connection:
            return await self.access.write(connection, grant, Purpose.SESSION, lasts_s=600.0)

    @asynccontextmanager
    async def client(
        self, role: Role | None = Role.ADMIN, *, tenant: str = "acme"
    ) -> AsyncIterator[httpx.AsyncClient]:
        headers = {}
        if role is not None:
            headers["Authorization"] = f"Bearer {await self.token(role, tenant=tenant)}"
        async with self.bearing(headers) as client:
            yield client

    def bearing(self, headers: dict[str, str], url: str = "http://api") -> httpx.AsyncClient:
        """A client that sends these headers with each request."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=url, headers=headers)

    async def socket_closed(self, headers: dict[str, str]) -> int | None:
        """The code with which the API closes a WebSocket of these headers; None if it stays."""
        told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        heard.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "path": "/api/v1/stream",
            "raw_path": b"/api/v1/stream",
            "root_path": "",
            "scheme": "ws",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": [],
            "client": ("127.0.0.1", 1),
            "server": ("api", 80),
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "state": {},
        }
        serving = asyncio.create_task(self.app(scope, heard.get, told.put))  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(10):
                assert (await told.get())["type"] == "websocket.accept"
                message = await told.get()
        finally:
            heard.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await serving
        return int(message["code"]) if message["type"] == "websocket.close" else None

    def with_token(self, token: str) -> httpx.AsyncClient:
        return self.bearing({"Authorization": f"Bearer {token}"})


async def got(stand: Stand, path: str, *, tenant: str = "acme", status: int = 200) -> Any:
    """What a viewer of the tenant is answered."""
    async with stand.client(Role.VIEWER, tenant=tenant) as client:
        answer = await client.get(f"/api/v1{path}")
    assert answer.status_code == status, answer.text
    return answer.json()


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of an answer, which must be one with this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert {"type", "title", "detail", "instance", "request_id"} <= set(body)
    return body


@asynccontextmanager
async def standing(
    database: Database,
    letters: Letters | None = None,
    providers: Providers | None = None,
    rates: Rates | None = None,
    slack: SlackDesk | None = None,
    *,
    notifications: Declared | None = None,
    metrics: MetricStore | None = None,
    cache: RegistryCache | None = None,
    bus: Bus | None = None,
) -> AsyncIterator[Stand]:
    """The API with a silent stream and a bus that keeps what is said."""
    nowhere: Any = None
    access = AccessTokens(database)
    queries, said, feed = Queries(database), SaidOnBus(), SilentFeed()
    hub = Hub(feed)
    ports = ApiPorts(
        database=database,
        queries=queries,
        documents=Documents(database),
        access=access,
        people=people_in(database, access),
        decisions=Decisions(database, said),
        proposals=Proposals(database),
        hub=hub,
        settled=Settled(hub, queries),
        letters=letters or Letters(nowhere, database, None),
        providers=providers or Providers(),
        rates=rates or Rates(),
        slack=slack or closed_desk(),
        notifications=notifications,
        metric_store=metrics,
        consumers=Consumers(bus) if bus else None,
        series=RememberedSeries(cache),
        hindsight=Reading(LogHindsight()),
    )
    app = create_app(ports)
    async with app.router.lifespan_context(app):
        yield Stand(app, ports.access, Fleet(database), said, feed)
