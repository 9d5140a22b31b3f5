"""The API and the gateway without what makes their word count once, killed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from optiinfra.agents.actuators.traffic import GatewayTraffic, RoutesMoved
from optiinfra.events.envelope import Event
from optiinfra.schemas.errors import NotFound, OptiInfraError, Unavailable
from optiinfra.schemas.routing import Backend, RouteTable
from optiinfra.schemas.tenant import Role
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.ports import free_ports
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.database import Connection, Database
from optiinfra.storage.postgres.decisions import Decision, Decisions
from tests.coordinator_stand import RULES, Stand, opened
from tests.factories import recommendation
from tests.faults.child import ADMIN_TOKEN
from tests.faults.processes import Program, supervised, until_up

Killed = Callable[[], Awaitable[None]]
ANA = Principal("ana", "acme", "ana", Role.APPROVER, None)


class WithoutOutbox(Database):
    """What is to be said is not kept: the decision stands alone."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with super().transaction() as connection:
            yield connection
            await connection.execute("DELETE FROM outbox WHERE event IS NOT NULL")


class Unheard:
    """The bus of an API that dies before its broker is back."""

    async def publish_many(self, events: Sequence[Event]) -> list[int | OptiInfraError]:
        return [Unavailable("the broker is away")] * len(events)


@pytest.fixture
async def stand(nats_server: Callable[[], NatsServer], database: str) -> AsyncIterator[Stand]:
    async with opened(nats_server().url, database) as made:
        yield made


@pytest.mark.parametrize("kept", [True, False])
async def test_a_decision_without_the_outbox_is_taken_and_never_said(
    stand: Stand,
    kept: bool,  # noqa: FBT001
) -> None:
    await stand.coordinator(rules=RULES.model_copy(update={"approvals": ()}))
    await stand.cast()
    asked = recommendation()
    await stand.propose(asked)
    await stand.until("SELECT count(*) = 1 FROM sagas WHERE state = 'awaiting_approval'")
    keeping = Database if kept else WithoutOutbox
    api = Decisions(keeping(stand.database._pool, stand.database.engine), Unheard())
    yes = Decision(asked.id, True, asked.version_hash, "looks right")
    assert not (await api.decide(ANA, yes)).repeated
    if kept:
        await stand.until_completed([asked], within_s=30)
        return
    with pytest.raises(AssertionError, match="awaiting_approval"):
        await stand.until_completed([asked], within_s=5)
    [audited] = await stand.fetch("SELECT action, allowed FROM audit")
    assert audited == {"action": "recommendation.approve", "allowed": True}


@asynccontextmanager
async def routing(folder: Path, without: str) -> AsyncIterator[tuple[GatewayTraffic, Killed]]:
    """A gateway without a mechanism ("": with all of them), which routes all to the old machine;
    and what kills it and waits until it is back."""
    port, admin = free_ports(2)
    arguments = (str(folder / "routes"), str(port), str(admin), ADMIN_TOKEN, without)
    log = folder / "gateway.log"
    gateway = Program(log=log, arguments=("-m", "tests.faults.gateway", *arguments))
    url = f"http://127.0.0.1:{admin}"

    async def killed() -> None:
        gateway.kill()
        await gateway.ended()
        await until_up(url)

    async with supervised([gateway]), GatewayTraffic(url, ADMIN_TOKEN) as traffic:
        await until_up(url)
        await traffic.put(table(1, "old"))
        yield traffic, killed


def table(version: int, replica: str) -> RouteTable:
    backends = (Backend(replica=replica, url="http://127.0.0.1:9/", weight=1.0),)
    return RouteTable(
        tenant="acme", deployment="chat", model="m", version=version, backends=backends
    )


@pytest.mark.parametrize("without", ["", "disk"])
async def test_routes_that_are_not_on_disk_before_they_are_acknowledged_die_with_the_gateway(
    tmp_path: Path, without: str
) -> None:
    async with routing(tmp_path, without) as (traffic, killed):
        moved = await traffic.put(table(2, "new"))
        await killed()
        if without:
            with pytest.raises(NotFound):
                await traffic.status("acme", "chat")
        else:
            assert (await traffic.status("acme", "chat")).table == moved.table


@pytest.mark.parametrize("without", ["", "versions"])
async def test_without_versions_a_writer_who_comes_late_takes_a_change_of_routes_back(
    tmp_path: Path, without: str
) -> None:
    """An executor was dead while another one moved the traffic on; what it says is old."""
    async with routing(tmp_path, without) as (traffic, _):
        moved = await traffic.put(table(2, "new"))
        late = table(2, "old")
        if without:
            assert (await traffic.put(late)).table.backends == late.backends
        else:
            with pytest.raises(RoutesMoved):
                await traffic.put(late)
            assert (await traffic.status("acme", "chat")).table == moved.table
