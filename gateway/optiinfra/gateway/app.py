"""Puts the gateway together: two ports, one pool, one pump."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import structlog
from aiohttp import web
from pydantic import Field, SecretStr

from optiinfra.gateway.admin import Admin, AdminPorts
from optiinfra.gateway.exchange import Ports
from optiinfra.gateway.metrics import GatewayCollector, exposition
from optiinfra.gateway.proxy import Limits, Proxy, data_server
from optiinfra.gateway.store import RouteBook, RouteStore
from optiinfra.gateway.tally import Tallies
from optiinfra.gateway.tap import SampleSink, Tap, TapLimits
from optiinfra.gateway.upstream import Suspects, Upstream
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.ids import DeploymentId

log = structlog.get_logger(__name__)

_LINGER_S = 0.05
"""After the last request, time for one that is already on the wire."""
_FLUSH_S = 2.0

Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GatewayConfig(Value):
    """Everything that can be set; ports of 0 take a free one."""

    state_dir: Path
    admin_token: SecretStr
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    admin_host: str = "127.0.0.1"
    admin_port: int = Field(default=8081, ge=0, le=65535)
    body_limit_bytes: int = Field(default=8 << 20, ge=1024)
    body_timeout_s: Seconds = 60.0
    connect_timeout_s: Seconds = 2.0
    idle_timeout_s: Seconds = 600.0
    """Longest wait for the next bytes of a backend, the first ones too."""
    keepalive_s: Seconds = 3.0
    """Below the 5 s after which vLLM and uvicorn hang up on an idle connection."""
    suspect_s: Seconds = 2.0
    max_attempts: int = Field(default=3, ge=1)
    sample_fraction: Fraction = 0.05
    sample_fractions: dict[DeploymentId, Fraction] = Field(default_factory=dict)
    sample_text_bytes: int = Field(default=65536, ge=1)
    sample_queue: int = Field(default=2048, ge=1)
    window_slot_s: Seconds = 5.0
    window_slots: int = Field(default=720, ge=1)
    grace_s: Seconds = 30.0
    reset_routes: bool = False


def utc_now() -> datetime:
    return datetime.now(UTC)


class Gateway:
    """One gateway process: `start`, then `stop`; not to be started again."""

    def __init__(
        self,
        config: GatewayConfig,
        sink: SampleSink | None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Raise `Rejected` without an admin token; without a sink nothing is sampled."""
        if not config.admin_token.get_secret_value().strip():
            raise Rejected(
                "the gateway needs an admin token", hint="set admin_token to a long random secret"
            )
        self._config = config
        self._sink = sink
        self._clock = clock
        self._stopping = False
        self._store = RouteStore(config.state_dir, clock)
        self._book = RouteBook(self._store)
        self._runners: list[web.BaseRunner] = []
        self._pump: asyncio.Task[None] | None = None
        self.url = ""
        """Where clients send requests, without `/v1`; known once started."""
        self.admin_url = ""

    async def start(self) -> None:
        """Load the routes and open both ports.

        `Rejected` when the state cannot be read, `Conflict` when another gateway holds it,
        `Unavailable` when a port is taken; nothing is left open then.
        """
        self._store.open()
        try:
            self._book.load(reset=self._config.reset_routes)
            await self._open()
        except BaseException:
            await self._close(grace_s=0)
            raise
        log.info("gateway_started", url=self.url, admin_url=self.admin_url)

    async def _open(self) -> None:
        config = self._config
        self._tap = Tap(self._sink, _tap_limits(config))
        tallies = Tallies(self._clock, slot_s=config.window_slot_s, slots=config.window_slots)
        self._upstream = Upstream(
            connect_s=config.connect_timeout_s,
            idle_s=config.idle_timeout_s,
            keepalive_s=config.keepalive_s,
        )
        ports = self._ports(tallies)
        limits = Limits(config.body_limit_bytes, config.body_timeout_s)
        self._proxy = Proxy(ports, limits, ports.new_id)
        server = data_server(self._proxy, config.body_limit_bytes)
        self._runners.append(web.ServerRunner(server, shutdown_timeout=0.1))
        application = Admin(self._admin_ports(tallies)).application()
        self._runners.append(web.AppRunner(application, access_log=None, shutdown_timeout=1.0))
        self.url = await _listen(self._runners[0], config.host, config.port)
        self.admin_url = await _listen(self._runners[1], config.admin_host, config.admin_port)
        self._pump = asyncio.create_task(self._tap.pump(), name="gateway-samples")
        self._pump.add_done_callback(_report)

    def _ports(self, tallies: Tallies) -> Ports:
        config = self._config
        return Ports(
            routes=lambda: self._book.routes,
            upstream=self._upstream,
            suspects=Suspects(config.suspect_s, time.monotonic),
            tallies=tallies,
            tap=self._tap,
            new_id=lambda: uuid4().hex,
            clock=self._clock,
            monotonic=time.monotonic,
            stopping=lambda: self._stopping,
            max_attempts=config.max_attempts,
        )

    def _admin_ports(self, tallies: Tallies) -> AdminPorts:
        collector = GatewayCollector(tallies, self._tap, lambda: self._book.routes)
        return AdminPorts(
            book=self._book,
            tallies=tallies,
            tap=self._tap,
            metrics=exposition(collector),
            stopping=lambda: self._stopping,
            clock=self._clock,
            token=self._config.admin_token.get_secret_value(),
        )

    async def stop(self, grace_s: float | None = None) -> None:
        """Take no new connection, finish what runs (at most `grace_s`), deliver samples, close."""
        self._stopping = True
        grace_s = self._config.grace_s if grace_s is None else grace_s
        log.info("gateway_stopping", open_requests=self._proxy.open_requests, grace_s=grace_s)
        for site in list(self._runners[0].sites):
            await site.stop()
        try:
            async with asyncio.timeout(grace_s):
                await self._quiet()
        except TimeoutError:
            log.warning("gateway_grace_over", cut_requests=self._proxy.open_requests)
        await self._close(grace_s=_FLUSH_S)

    async def _quiet(self) -> None:
        """Wait until no request has been open for a moment."""
        while True:
            await self._proxy.wait_idle()
            await asyncio.sleep(_LINGER_S)
            if not self._proxy.open_requests:
                return

    async def _close(self, *, grace_s: float) -> None:
        for runner in self._runners[:1]:
            await runner.cleanup()
        if self._pump is not None:
            await self._proxy.wait_idle()
            await self._tap.flush(grace_s)
            self._pump.cancel()
            await asyncio.wait([self._pump])
        for runner in self._runners[1:]:
            await runner.cleanup()
        if hasattr(self, "_upstream"):
            await self._upstream.close()
        self._store.close()


async def serve(gateway: Gateway, ready: Callable[[Gateway], None]) -> None:
    """Run `gateway` until SIGTERM or SIGINT, then stop it gracefully; `ready` is told once up."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await gateway.start()
        ready(gateway)
        await stop.wait()
        await gateway.stop()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _tap_limits(config: GatewayConfig) -> TapLimits:
    return TapLimits(
        fraction=config.sample_fraction,
        fractions=config.sample_fractions,
        text_bytes=config.sample_text_bytes,
        queue_samples=config.sample_queue,
    )


def _report(pump: asyncio.Task[None]) -> None:
    if not pump.cancelled() and (error := pump.exception()) is not None:
        log.error("sample_pump_died", error=repr(error), exc_info=error)


async def _listen(runner: web.BaseRunner, host: str, port: int) -> str:
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="choose a free port"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{runner.addresses[0][1]}"
