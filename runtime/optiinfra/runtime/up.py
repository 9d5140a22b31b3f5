"""`optiinfra up`: everything in one process on embedded stores, with the gateway beside it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.agents.memory import OutcomeMemory
from optiinfra.events import topology
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.server import serve
from optiinfra.runtime.control import collector, coordinator, remembering
from optiinfra.runtime.fleet import Fleet, load_fleet
from optiinfra.runtime.gateway_process import GatewayProcess, write_private
from optiinfra.runtime.logs import configure_logs
from optiinfra.runtime.routes import seed_routes
from optiinfra.runtime.session import Session, read_session
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.shelf import QdrantShelf
from optiinfra.runtime.stores import Stores, new_id, open_stores
from optiinfra.runtime.wiring import WholeFleet, Wiring
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.schemas.tenant import Role
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.embedded.servers import Addresses, EmbeddedServers
from optiinfra.storage.postgres.access import AccessTokens
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.postgres.setup import declare

log = structlog.get_logger()

_SESSION_S = 30 * 86_400.0
_RESTART_FIRST_S, _RESTART_MOST_S = 0.5, 10.0
_SEED_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Front:
    """The gateway as everybody else reaches it."""

    url: str
    admin_url: str
    admin_token: str


def run(settings: Settings) -> int:
    """Runs until SIGTERM or Ctrl-C; 0 after an orderly stop.

    Raises `Rejected` for a bad config, `Conflict` when the home is in use, `Unavailable` when
    something needed does not answer.
    """
    configure_logs(settings)
    if settings.config is None:
        raise Rejected("no fleet file is given", hint="optiinfra up --config fleet.yaml")
    fleet = load_fleet(settings.config)
    home = settings.home.expanduser().absolute()
    with ExitStack() as stack:
        addresses = _addresses(settings, home, stack)
        _write_pid(home, stack)
        asyncio.run(_Up(settings, fleet, home, addresses).run())
    return 0


def stop(settings: Settings) -> int:
    """Stops what `up` has started in this home, also what a crash left; 0 when nothing is left."""
    home = settings.home.expanduser().absolute()
    process = running(home)
    if process is not None:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    left = asyncio.run(_gateway(settings, home, 0.0).stop())
    return 0 if process is not None or left else 3


def running(home: Path) -> psutil.Process | None:
    """The `up` process of a home, None when there is none."""
    try:
        pid, started = (home / "up.pid").read_text().split()
        process = psutil.Process(int(pid))
        return process if abs(process.create_time() - float(started)) < 1.0 else None
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None


def _write_pid(home: Path, stack: ExitStack) -> None:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "up.pid"
    path.write_text(f"{os.getpid()} {psutil.Process().create_time()}")
    stack.callback(path.unlink, missing_ok=True)


def _addresses(settings: Settings, home: Path, stack: ExitStack) -> Addresses:
    """The embedded servers' addresses, each replaced by the URL that the settings give."""
    given = {
        name: url
        for name in ("nats_url", "postgres_url", "clickhouse_url", "qdrant_url", "redis_url")
        if (url := getattr(settings, name))
    }
    if len(given) == len(Addresses.__dataclass_fields__):
        return Addresses(**given)
    servers = EmbeddedServers(home)
    embedded = servers.start()
    stack.callback(servers.stop)
    return Addresses(
        **{
            name: given.get(name, getattr(embedded, name))
            for name in Addresses.__dataclass_fields__
        }
    )


def _gateway(settings: Settings, home: Path, sample_fraction: float) -> GatewayProcess:
    return GatewayProcess(
        home,
        host=settings.gateway_host,
        port=settings.gateway_port,
        sample_fraction=sample_fraction,
    )


class _Up:
    """One run of `up`."""

    def __init__(self, settings: Settings, fleet: Fleet, home: Path, addresses: Addresses) -> None:
        self._settings = settings
        self._fleet = fleet
        self._home = home
        self._addresses = addresses
        self._stop = asyncio.Event()
        self._own_gateway = _gateway(settings, home, fleet.sample_fraction)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        await upgrade(self._addresses.postgres_url)
        async with AsyncExitStack() as stack:
            stores = await stack.enter_async_context(open_stores(self._addresses, name="up"))
            await topology.apply(stores.bus, allow_update=True)
            await stores.metrics.migrate()
            front = await self._front(stack)
            traffic = GatewayTraffic(front.admin_url, front.admin_token)
            stack.push_async_callback(traffic.close)
            shelf = QdrantShelf(self._addresses.qdrant_url)
            stack.push_async_callback(shelf.aclose)
            memory = OutcomeMemory(shelf)
            wiring = Wiring(
                self._fleet,
                stores,
                stack,
                state_dir=self._home,
                gateway_url=front.url,
                traffic=traffic,
                memory=memory,
            )
            await declare(stores.database, self._fleet.tenant, tuple(wiring.deployments.values()))
            await self._run_roles(stores, wiring, traffic, memory, front)

    async def _front(self, stack: AsyncExitStack) -> Front:
        named = self._fleet.gateway
        if named is not None:
            token = self._settings.gateway_admin_token
            if token is None:
                raise Rejected(
                    "the fleet file names a gateway, but there is no admin token for it",
                    hint="set OPTIINFRA_GATEWAY_ADMIN_TOKEN",
                )
            return Front(str(named.url), str(named.admin_url), token.get_secret_value())
        record = await self._own_gateway.ensure(self._addresses.nats_url)
        stack.push_async_callback(self._own_gateway.stop)
        return Front(record.url, record.admin_url, record.admin_token)

    async def _run_roles(
        self,
        stores: Stores,
        wiring: Wiring,
        traffic: GatewayTraffic,
        memory: OutcomeMemory,
        front: Front,
    ) -> None:
        roles: dict[str, Callable[[], Awaitable[None]]] = {
            "coordinator": lambda: coordinator(self._fleet, stores).run(),
            "collector": lambda: collector(stores).run(),
            "memory": lambda: remembering(stores, memory).run(),
            "routes": lambda: self._seed(wiring, traffic),
            "api": lambda: self._api(stores, front),
        }
        for name in AgentName:
            host = await wiring.host(name)
            roles[name.value] = host.run
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_supervised(name, role), name=name)
                for name, role in roles.items()
            ]
            await self._stop.wait()
            log.info("up.stopping")
            for task in tasks:
                task.cancel()

    async def _seed(self, wiring: Wiring, traffic: GatewayTraffic) -> None:
        """Waits until every deployment has routes; later ones are the agents' matter."""
        clouds = await wiring.clouds()
        source = WholeFleet(clouds.actuators)
        left = list(wiring.deployments.values())
        while left:
            left = [one for one in left if not await seed_routes(one, source, traffic)]
            await asyncio.sleep(_SEED_EVERY_S if left else 0)
        await asyncio.Event().wait()

    async def _api(self, stores: Stores, front: Front) -> None:
        tokens = AccessTokens(stores.database)
        token = await self._session_token(tokens)

        def ready(url: str) -> None:
            session = Session(
                url=url,
                token=token,
                gateway_url=front.url,
                gateway_admin_url=front.admin_url,
                gateway_admin_token=front.admin_token,
            )
            write_private(self._home / "session.json", session.model_dump_json())
            log.info("up.ready", api=url, gateway=front.url, mode=self._fleet.mode)

        ports = api_ports(stores.database, stores.bus, stores.publisher("portal-api"))
        await serve(
            create_app(ports, new_id=new_id),
            self._settings.portal_host,
            self._settings.portal_port,
            started=ready,
        )

    async def _session_token(self, tokens: AccessTokens) -> str:
        """The token of this home: the one that stands, while it is good, else a new one."""
        known = read_session(self._home)
        if known is not None and await tokens.principal(known.token) is not None:
            return known.token
        return await tokens.issue(
            self._fleet.tenant, "local operator", Role.ADMIN, lasts_s=_SESSION_S
        )


async def _supervised(name: str, role: Callable[[], Awaitable[None]]) -> None:
    """Runs a role for ever: what ends for want of something outside is started again.

    A broken promise of our own (any other exception) ends the process.
    """
    wait_s = _RESTART_FIRST_S
    while True:
        began = asyncio.get_running_loop().time()
        try:
            await role()
            log.warning("role.ended", role=name)
        except* OptiInfraError as failed:
            reason = "; ".join(str(error) for error in _leaves(failed))
            log.warning("role.failed", role=name, reason=reason, again_in_s=wait_s)
        if asyncio.get_running_loop().time() - began > _RESTART_MOST_S:
            wait_s = _RESTART_FIRST_S
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _RESTART_MOST_S)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
