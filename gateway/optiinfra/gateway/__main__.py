"""Runs the gateway alone: `python -m optiinfra.gateway --state-dir DIR --token-file FILE`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from pydantic import SecretStr

from optiinfra.gateway.app import Gateway, GatewayConfig, serve
from optiinfra.schemas.errors import OptiInfraError, Rejected


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM; 0 after a graceful stop, 1 when it cannot start."""
    options = _parser().parse_args(arguments)
    try:
        gateway = Gateway(_config(options), sink=None)
        asyncio.run(serve(gateway, _announce))
    except OptiInfraError as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="optiinfra.gateway", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="keeps the routes")
    parser.add_argument("--token-file", type=Path, required=True, help="holds the admin token")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--admin-host", default="127.0.0.1")
    parser.add_argument("--admin-port", type=int, default=8081)
    parser.add_argument("--grace-s", type=float, default=30.0)
    parser.add_argument(
        "--reset-routes", action="store_true", help="move an unreadable routes.json aside"
    )
    return parser


def _config(options: argparse.Namespace) -> GatewayConfig:
    settings = dict(vars(options))
    token_file: Path = settings.pop("token_file")
    try:
        token = token_file.read_text().strip()
    except OSError as error:
        raise Rejected(
            f"the token file {token_file} cannot be read: {error.strerror}",
            hint="write a long random secret into it",
        ) from error
    return GatewayConfig(admin_token=SecretStr(token), **settings)


def _announce(gateway: Gateway) -> None:
    sys.stdout.write(json.dumps({"url": gateway.url, "admin_url": gateway.admin_url}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
