"""One role as a process of its own: how OptiInfra runs in production."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from optiinfra.events import topology as streams
from optiinfra.events.bus import Bus
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.fleet_file import load_fleet, load_governed, watched_policy
from optiinfra.runtime.health import HealthServer
from optiinfra.runtime.logs import configure_logs
from optiinfra.runtime.loop import run, settle_heap
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.stores import Stores, new_id, open_stores, required_addresses
from optiinfra.runtime.supervision import cancelled, first_error
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.embedded.servers import Addresses
from optiinfra.storage.letters import Letters

log = structlog.get_logger()

ROLES = ("coordinator", "collector", "gateway", "portal-api", "notifier")


def run_role(role: str, settings: Settings) -> int:
    """Runs one role until SIGTERM. Raises `Rejected` when its settings are not complete."""
    configure_logs(settings)
    makers: dict[str, Callable[[Settings], Coroutine[Any, Any, None]]] = {
        "coordinator": _coordinator,
        "collector": _collector,
        "gateway": _gateway,
        "portal-api": _portal_api,
        "notifier": _notifier,
    }
    run(makers[role](settings))
    return 0


def run_agent(name: str, settings: Settings) -> int:
    """Runs one agent until SIGTERM."""
    configure_logs(settings)
    run(_agent(AgentName(name), settings))
    return 0


def migrate(settings: Settings) -> int:
    """Brings PostgreSQL and ClickHouse to the newest schema, and writes down what the fleet file
    declares, if one is given."""
    configure_logs(settings)
    asyncio.run(_migrate(_addresses(settings), _fleet(settings) if settings.config else None))
    return 0


async def _migrate(addresses: Addresses, fleet: Fleet | None) -> None:
    from optiinfra.storage.clickhouse import MetricStore
    from optiinfra.storage.postgres.database import open_database
    from optiinfra.storage.postgres.migrate import upgrade
    from optiinfra.storage.postgres.setup import declare

    await upgrade(addresses.postgres_url)
    metrics = MetricStore(addresses.clickhouse_url)
    try:
        await metrics.migrate()
    finally:
        await metrics.aclose()
    if fleet is not None and fleet.gateway is not None:
        deployments = fleet.declared(str(fleet.gateway.url))
        async with open_database(addresses.postgres_url, connections=1) as database:
            await declare(database, fleet.tenant, tuple(deployments.values()))


def topology(settings: Settings, *, apply: bool, update: bool = False) -> int:
    """Shows how the streams differ from the table, or creates what is missing.

    0 when nothing differs (any more), 5 when something does.
    """
    configure_logs(settings)

    async def work() -> list[streams.Difference]:
        if not settings.nats_url:
            raise Rejected("no address for nats_url", hint="set OPTIINFRA_NATS_URL")
        bus = await Bus.connect(settings.nats_url, name="topology")
        try:
            if apply:
                return await streams.apply(bus, allow_update=update)
            return await streams.diff(bus)
        finally:
            await bus.close()

    differences = asyncio.run(work())
    for difference in differences:
        sys.stdout.write(f"{difference}\n")
    return 0 if apply or not differences else 5


def _addresses(settings: Settings) -> Addresses:
    return required_addresses(
        nats_url=settings.nats_url,
        postgres_url=settings.postgres_url,
        clickhouse_url=settings.clickhouse_url,
        qdrant_url=settings.qdrant_url,
        redis_url=settings.redis_url,
    )


def require_config(settings: Settings) -> Path:
    """The fleet file. Raises `Rejected` when none is given."""
    if settings.config is None:
        raise Rejected("no fleet file is given", hint="set OPTIINFRA_CONFIG or --config")
    return settings.config


def _fleet(settings: Settings) -> Fleet:
    return load_fleet(require_config(settings))


async def _coordinator(settings: Settings) -> None:
    from optiinfra.runtime.control import coordinator

    path = require_config(settings)
    fleet = load_governed(path, settings.policy)

    async def work(stores: Stores) -> None:
        made = coordinator(fleet, stores, watched_policy(path, fleet))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, made.reload)
        await made.run()

    await _with_stores(settings, "coordinator", work)


async def _collector(settings: Settings) -> None:
    from optiinfra.agents.memory import OutcomeMemory
    from optiinfra.runtime.control import collector, remembering
    from optiinfra.runtime.shelf import QdrantShelf

    async def work(stores: Stores) -> None:
        shelf = QdrantShelf(stores.addresses.qdrant_url)
        await stores.metrics.ping()
        settle_heap()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(collector(stores).run())
                group.create_task(remembering(stores, OutcomeMemory(shelf)).run())
        finally:
            await shelf.aclose()

    await _with_stores(settings, "collector", work)


async def _portal_api(settings: Settings) -> None:
    from optiinfra.coordinator.hindsight import LogHindsight
    from optiinfra.portal_api.app import create_app
    from optiinfra.portal_api.ports import api_ports
    from optiinfra.portal_api.server import serve
    from optiinfra.runtime.notifications import declared, slack_desk
    from optiinfra.runtime.session import LOCAL_OPERATOR, sign_in_url
    from optiinfra.runtime.sign_in import providers, rates
    from optiinfra.storage.postgres.access import issue_one_time_token

    async def work(stores: Stores) -> None:
        fleet = _fleet(settings) if settings.config is not None else None
        tenant = fleet.tenant if fleet is not None else None
        async with AsyncExitStack() as stack:
            ports = api_ports(
                stores.database,
                stores.bus,
                stores.publisher("portal-api"),
                letters=await stack.enter_async_context(_operators_letters(settings, stores)),
                providers=await providers(settings, tenant, stack),
                rates=rates(stores.addresses.redis_url, stack),
                slack=await slack_desk(fleet, stack) if fleet is not None else None,
                notifications=await declared(fleet, stack) if fleet is not None else None,
                metrics=stores.metrics,
                cache=stores.cache,
                hindsight=LogHindsight(),
            )
            once: str | None = None
            if tenant is not None:
                once = await issue_one_time_token(ports.access, tenant, LOCAL_OPERATOR)

            def started(url: str) -> None:
                log.info("portal_api.ready", url=url)
                if once is not None:
                    link = sign_in_url(settings.public_url or url, once)
                    sys.stdout.write(f"open the pages signed in, once, within 15 minutes: {link}\n")
                    sys.stdout.flush()

            await serve(
                create_app(ports, new_id=new_id),
                settings.portal_host,
                settings.portal_port,
                beyond_loopback=settings.portal_allow_remote,
                started=started,
            )

    await _with_stores(settings, "portal-api", work)


async def _notifier(settings: Settings) -> None:
    from optiinfra.runtime.notifications import notifiers

    fleet = _fleet(settings)
    if fleet.notifications is None:
        raise Rejected(
            "the fleet file names no notifications file",
            hint="add `notifications: notifications.yaml`; docs/notifications.md shows one",
        )

    async def work(stores: Stores) -> None:
        async with notifiers(fleet, stores) as made, asyncio.TaskGroup() as group:
            for notifier in made:
                group.create_task(notifier.run(), name=notifier.name)

    await _with_stores(settings, "notifier", work)


@asynccontextmanager
async def _operators_letters(settings: Settings, stores: Stores) -> AsyncIterator[Letters | None]:
    """The dead letters as an operator handles them, if the API is given that credential."""
    if settings.operator_nats_url is None:
        yield None
        return
    bus = await Bus.connect(settings.operator_nats_url, name="portal-api-operator")
    try:
        yield replace(stores, bus=bus).letters()
    finally:
        await bus.close()


async def _gateway(settings: Settings) -> None:
    from optiinfra.runtime.gateway_main import run

    options = Namespace(announce=None, state_dir=None, host=None, port=None, sample_fraction=None)
    await run(settings, options)


async def _agent(name: AgentName, settings: Settings) -> None:
    from optiinfra.agents.actuators.traffic import GatewayTraffic
    from optiinfra.runtime.wiring import Wiring

    fleet = _fleet(settings)
    if fleet.gateway is None or settings.gateway_admin_token is None:
        raise Rejected(
            "an agent needs the gateway's address and admin token",
            hint="set `gateway` in the fleet file and OPTIINFRA_GATEWAY_ADMIN_TOKEN",
        )
    admin_url = str(fleet.gateway.admin_url)
    token = settings.gateway_admin_token.get_secret_value()
    gateway_url = str(fleet.gateway.url)

    async def work(stores: Stores) -> None:
        async with AsyncExitStack() as stack:
            traffic = await stack.enter_async_context(GatewayTraffic(admin_url, token))
            wiring = Wiring(
                fleet,
                stores,
                stack,
                state_dir=settings.home,
                gateway_url=gateway_url,
                traffic=traffic,
            )
            host = await wiring.host(name)
            await host.run()

    await _with_stores(settings, f"agent-{name}", work)


async def _with_stores(
    settings: Settings, name: str, work: Callable[[Stores], Awaitable[None]]
) -> None:
    """Opens the stores, answers health checks, and works until SIGTERM or until it fails."""
    task = asyncio.create_task(_work(settings, name, work), name=name)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        await cancelled({task})
    if not task.cancelled() and (failed := task.exception()) is not None:
        raise first_error(failed) if isinstance(failed, BaseExceptionGroup) else failed
    log.info("role.stopped", role=name)


async def _work(settings: Settings, name: str, work: Callable[[Stores], Awaitable[None]]) -> None:
    async with (
        open_stores(_addresses(settings), name=name) as stores,
        HealthServer(settings.health_port, lambda: stores.bus.is_connected),
    ):
        await streams.require(stores.bus)
        log.info("role.started", role=name)
        await work(stores)
