"""The gateway as a process: starts also while the bus is away, since traffic matters more."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import structlog
from pydantic import SecretStr

from optiinfra.events.bus import Bus
from optiinfra.events.publish import Publisher
from optiinfra.gateway.app import Gateway, GatewayConfig, serve
from optiinfra.runtime import loop
from optiinfra.runtime.fleet_file import load_fleet
from optiinfra.runtime.logs import configure_logs
from optiinfra.runtime.samples import BusSampleSink
from optiinfra.runtime.settings import Settings, load_settings
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.schemas.sampling import AnswerSample

log = structlog.get_logger()


class LateSink:
    """Connects to the bus when there is first something to say."""

    def __init__(self, nats_url: str) -> None:
        self._nats_url = nats_url
        self._bus: Bus | None = None

    async def publish(self, samples: list[AnswerSample]) -> None:
        if self._bus is None:
            self._bus = await Bus.connect(self._nats_url, name="gateway")
        await BusSampleSink(Publisher(self._bus, "gateway", now, new_id)).publish(samples)

    async def close(self) -> None:
        if self._bus is not None:
            await self._bus.close()


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM; 0 after a graceful stop, 1 when it cannot start."""
    options = _parser().parse_args(arguments)
    settings = load_settings()
    configure_logs(settings)
    try:
        loop.run(run(settings, options))
    except OptiInfraError as error:
        log.error("gateway.failed", reason=str(error))
        return 1
    return 0


async def run(settings: Settings, options: argparse.Namespace) -> None:
    if settings.gateway_admin_token is None:
        raise Rejected("no admin token", hint="set OPTIINFRA_GATEWAY_ADMIN_TOKEN")
    sink = LateSink(settings.nats_url) if settings.nats_url else None
    config = GatewayConfig(
        state_dir=options.state_dir or settings.home / "gateway",
        admin_token=SecretStr(settings.gateway_admin_token.get_secret_value()),
        host=options.host or settings.gateway_host,
        port=settings.gateway_port if options.port is None else options.port,
        admin_host=settings.gateway_admin_host,
        admin_port=settings.gateway_admin_port,
        sample_fraction=_fraction(settings, options),
    )
    try:
        await serve(Gateway(config, sink), lambda gateway: _announce(gateway, options.announce))
    finally:
        if sink is not None:
            await sink.close()


def _fraction(settings: Settings, options: argparse.Namespace) -> float:
    """As the command line says, else as the fleet file says."""
    if options.sample_fraction is not None:
        return float(options.sample_fraction)
    return load_fleet(settings.config).sample_fraction if settings.config else 0.05


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optiinfra-gateway", description=__doc__)
    parser.add_argument("--announce", type=Path, help="write the addresses into this file")
    parser.add_argument("--state-dir", type=Path, help="keeps the routes")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--sample-fraction", type=float, default=None)
    return parser


def _announce(gateway: Gateway, path: Path | None) -> None:
    loop.settle_heap()
    told = json.dumps({"url": gateway.url, "admin_url": gateway.admin_url})
    if path is not None:
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(told)
        fresh.replace(path)
    sys.stdout.write(told + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
