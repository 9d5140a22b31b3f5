"""`optiinfra up`: everything in one process on embedded stores, with the gateway beside it."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
import structlog

from optiinfra.agents.actuators.traffic import GatewayTraffic
from optiinfra.agents.memory import OutcomeMemory
from optiinfra.coordinator.hindsight import LogHindsight
from optiinfra.events import topology
from optiinfra.events.bus_roles import AGENTS, BusRole
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.server import running_api
from optiinfra.runtime import up_record
from optiinfra.runtime.clouds import SplitTraffic, WholeFleet, engines_dir
from optiinfra.runtime.control import collector, coordinator, remembering
from optiinfra.runtime.engine_file import declared_engines
from optiinfra.runtime.engines import end_engines, start_first
from optiinfra.runtime.fleet import Fleet
from optiinfra.runtime.fleet_file import load_governed, watched_policy
from optiinfra.runtime.gateway_process import GatewayProcess, write_private
from optiinfra.runtime.logs import configure_logs
from optiinfra.runtime.notifications import declared, notifiers, slack_desk
from optiinfra.runtime.plans import RolloutsInPostgres
from optiinfra.runtime.preflight import (
    about,
    gateway_token,
    require_clouds,
    require_gateway,
    require_golden,
)
from optiinfra.runtime.routes import seed_routes
from optiinfra.runtime.session import FILE as SESSION
from optiinfra.runtime.session import LOCAL_OPERATOR, Session, read_session, sign_in_url
from optiinfra.runtime.settings import Settings
from optiinfra.runtime.shelf import QdrantShelf
from optiinfra.runtime.sign_in import providers, rates
from optiinfra.runtime.stores import Stores, new_id, open_stores
from optiinfra.runtime.supervision import Role, first_error, run_roles
from optiinfra.runtime.wiring import Wiring
from optiinfra.schemas.deployment import Provider
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.tenant import Role as Right
from optiinfra.schemas.vote import AgentName
from optiinfra.storage.embedded.servers import Addresses, EmbeddedServers
from optiinfra.storage.folder_lock import FolderLock
from optiinfra.storage.postgres.access import AccessTokens, issue_one_time_token
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.postgres.setup import declare

log = structlog.get_logger()

_ROLES = (
    BusRole.COORDINATOR,
    *AGENTS,
    BusRole.COLLECTOR,
    BusRole.PORTAL_API,
    BusRole.NOTIFIER,
    BusRole.OPERATOR,
)
_URLS = ("nats_url", "postgres_url", "clickhouse_url", "qdrant_url", "redis_url")
_SESSION_S = 30 * 86_400.0
_SEED_EVERY_S, _SEED_AT_LEAST_EVERY_S = 2.0, 15.0
_STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Front:
    """The gateway as everybody else reaches it; `own` when `up` runs it."""

    url: str
    admin_url: str
    admin_token: str
    own: bool


def run(settings: Settings) -> int:
    """Runs until SIGTERM or Ctrl-C; 0 after an orderly stop.

    Raises `Rejected` for a bad config, `Conflict` when the home is in use, `Unavailable` when
    something needed does not answer.
    """
    configure_logs(settings)
    if settings.config is None:
        raise Rejected("no fleet file is given", hint="optiinfra up --config fleet.yaml")
    fleet = load_governed(settings.config, settings.policy)
    require_golden(fleet)
    token = gateway_token(fleet, settings)
    home = settings.home.expanduser().absolute()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with ExitStack() as stack:
        addresses = _addresses(settings, home, stack)
        up_record.write(home)
        stack.callback(up_record.forget, home)
        asyncio.run(_Up(settings, fleet, home, addresses).run(token))
    return 0


def stop(settings: Settings) -> int:
    """Stops what `up` has started in this home, also what a crash left.

    0 when something was stopped, 3 when nothing ran.
    """
    home = settings.home.expanduser().absolute()
    process = up_record.running(home)
    if process is not None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except psutil.TimeoutExpired:
            log.warning("up.killed", pid=process.pid)
            process.kill()
            process.wait(_STOP_S)
    left = asyncio.run(_end_leftovers(settings, home))
    return 0 if process is not None or left else 3


def status(settings: Settings, as_json: bool) -> int:  # noqa: FBT001 - the flag of the command line
    """Says what runs from this home; 0 when `up` runs there, else 3."""
    home = settings.home.expanduser().absolute()
    process, session = up_record.running(home), read_session(home)
    told = {
        "home": str(home),
        "running": process is not None,
        "pid": process.pid if process else None,
        "api": session.url if process and session else None,
        "gateway": session.gateway_url if process and session else None,
    }
    if as_json:
        sys.stdout.write(json.dumps(told) + "\n")
    elif process is None:
        sys.stdout.write(f"nothing runs from {home}\n")
    else:
        sys.stdout.write("".join(f"{name:<8} {value}\n" for name, value in told.items()))
    return 0 if process is not None else 3


async def _end_leftovers(settings: Settings, home: Path) -> bool:
    stopped = await _gateway(settings, home, 0.0).stop()
    return await end_engines(engines_dir(home)) > 0 or stopped


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """A stop that is asked for before the event loop runs."""
    raise SystemExit(0)


def _addresses(settings: Settings, home: Path, stack: ExitStack) -> Addresses:
    """The embedded servers' addresses, each replaced by the URL that the settings give.

    Either way the home is ours until the stack closes; `Conflict` naming the process that has it.
    """
    given = {name: url for name in _URLS if (url := getattr(settings, name))}
    if len(given) == len(_URLS):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FolderLock(home)
        lock.acquire()
        stack.callback(lock.release)
        return Addresses(**given)
    servers = EmbeddedServers(home)
    embedded = servers.start()
    stack.callback(servers.stop)
    return replace(embedded, **given, nats_role_urls=_role_urls(embedded, given))


def _role_urls(embedded: Addresses, given: Mapping[str, str]) -> Mapping[BusRole, str]:
    """A broker that is given has one address, for all."""
    return {} if "nats_url" in given else embedded.nats_role_urls


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
        self._stopping = False
        self._own_gateway = _gateway(settings, home, fleet.sample_fraction)

    async def run(self, gateway_token: str | None) -> None:
        """Works until a signal; `gateway_token` is that of a gateway which the file names."""
        work = asyncio.create_task(self._work(gateway_token))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, work)
        try:
            await work
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        except BaseExceptionGroup as failed:
            raise first_error(failed) from failed

    def _end(self, work: asyncio.Task[None]) -> None:
        """Only once: a second signal must not cut the orderly stop short."""
        if not self._stopping:
            self._stopping = True
            log.info("up.stopping")
            work.cancel()

    async def _work(self, gateway_token: str | None) -> None:
        await upgrade(self._addresses.postgres_url)
        async with AsyncExitStack() as stack:
            stores = await stack.enter_async_context(
                open_stores(self._addresses, name="up", roles=_ROLES)
            )
            await topology.apply(stores.bus, allow_update=not self._settings.nats_url)
            await stores.metrics.migrate()
            front = await self._front(gateway_token, stack)
            traffic = await stack.enter_async_context(
                GatewayTraffic(front.admin_url, front.admin_token)
            )
            await require_gateway(traffic)
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
            await self._prepare(stores, wiring)
            roles = await self._roles(stores, wiring, traffic, memory)
            for told in await stack.enter_async_context(notifiers(self._fleet, stores)):
                roles[told.name] = told.run
            await self._announce(stores, front, stack)
            if self._stopping:
                raise asyncio.CancelledError  # a driver has swallowed the first one
            await run_roles(roles)

    async def _front(self, token: str | None, stack: AsyncExitStack) -> Front:
        named = self._fleet.gateway
        if named is not None and token is not None:
            return Front(str(named.url), str(named.admin_url), token, own=False)
        local = self._fleet.clouds.local
        if local is None or not local.keep_running:
            stack.push_async_callback(end_engines, engines_dir(self._home))
        record = await self._own_gateway.ensure(self._addresses.nats_url_for(BusRole.GATEWAY))
        stack.push_async_callback(self._own_gateway.stop)
        return Front(record.url, record.admin_url, record.admin_token, own=True)

    async def _prepare(self, stores: Stores, wiring: Wiring) -> None:
        """Asks the clouds, starts the first engines, and writes down what is declared."""
        fleet, actuators = self._fleet, (await wiring.clouds()).actuators
        await require_clouds(fleet, actuators)
        engines = declared_engines(fleet)
        for deployment in fleet.deployments:
            local = deployment.provider is Provider.LOCAL
            with about("clouds.local.command" if local else f"clouds.{deployment.provider}"):
                await start_first(
                    fleet.tenant,
                    deployment,
                    actuators[deployment.provider],
                    acting=fleet.mode == "act",
                    engine=engines.get(deployment.id),
                )
        await declare(stores.database, fleet.tenant, tuple(wiring.deployments.values()))

    async def _roles(
        self, stores: Stores, wiring: Wiring, traffic: GatewayTraffic, memory: OutcomeMemory
    ) -> dict[str, Role]:
        assert self._settings.config is not None
        policy = watched_policy(self._settings.config, self._fleet)
        roles: dict[str, Role] = {
            "coordinator": lambda: coordinator(self._fleet, stores, policy).run(),
            "collector": lambda: collector(stores).run(),
            "memory": lambda: remembering(stores, memory).run(),
            "routes": lambda: self._seed(wiring, traffic, RolloutsInPostgres(stores)),
        }
        for name in AgentName:
            host = await wiring.host(name)
            roles[name.value] = host.run
        return roles

    async def _seed(
        self, wiring: Wiring, traffic: GatewayTraffic, rollouts: RolloutsInPostgres
    ) -> None:
        """Gives every replica a route as it comes to serve; later ones are the agents' matter."""
        clouds = await wiring.clouds()
        source, split = WholeFleet(clouds.actuators), SplitTraffic(traffic, clouds.traffic)
        left, rest_s = list(wiring.deployments.values()), _SEED_EVERY_S
        while left:
            left = [one for one in left if not await seed_routes(one, source, split, rollouts)]
            await asyncio.sleep(rest_s)
            rest_s = min(1.2 * rest_s, _SEED_AT_LEAST_EVERY_S)
        await asyncio.Event().wait()

    async def _announce(self, stores: Stores, front: Front, stack: AsyncExitStack) -> None:
        """Opens the API, and leaves word of it for the command line and for the person here."""
        tokens = AccessTokens(stores.database)
        token = await self._session_token(tokens)
        (self._home / SESSION).unlink(missing_ok=True)
        portal = stores.acting_as(BusRole.PORTAL_API)
        ports = api_ports(
            stores.database,
            portal.bus,
            portal.publisher("portal-api"),
            letters=stores.acting_as(BusRole.OPERATOR).letters(),
            providers=await providers(self._settings, self._fleet.tenant, stack),
            rates=rates(stores.addresses.redis_url, stack),
            slack=await slack_desk(self._fleet, stack),
            notifications=await declared(self._fleet, stack),
            metrics=stores.metrics,
            cache=stores.cache,
            hindsight=LogHindsight(),
        )
        url = await stack.enter_async_context(
            running_api(
                create_app(ports, new_id=new_id),
                self._settings.portal_host,
                self._settings.portal_port,
                beyond_loopback=self._settings.portal_allow_remote,
            )
        )
        once = await issue_one_time_token(tokens, self._fleet.tenant, LOCAL_OPERATOR)
        session = Session(
            url=url,
            token=token,
            sign_in_url=sign_in_url(url, once),
            gateway_url=front.url,
            gateway_admin_url=front.admin_url,
            gateway_admin_token=front.admin_token,
            nats_url=stores.addresses.nats_url_for(BusRole.OPERATOR),
            postgres_url=stores.addresses.postgres_url,
        )
        write_private(self._home / SESSION, session.model_dump_json())
        log.info("up.ready", api=url, gateway=front.url, mode=self._fleet.mode)
        sys.stdout.write(
            f"OptiInfra is ready ({self._fleet.mode}): API {url}, gateway {front.url}\n"
            f"open its pages signed in, once, within 15 minutes: {session.sign_in_url}\n"
        )
        sys.stdout.flush()
        gc.collect()
        gc.freeze()  # what was loaded stays: looking at it again only costs time

    async def _session_token(self, tokens: AccessTokens) -> str:
        """The token of this home: the one that stands, while it is good, else a new one."""
        known = read_session(self._home)
        if known is not None and await tokens.principal(known.token) is not None:
            return known.token
        return await tokens.issue(
            self._fleet.tenant, LOCAL_OPERATOR, Right.ADMIN, lasts_s=_SESSION_S
        )
