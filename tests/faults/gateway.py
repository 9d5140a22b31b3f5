"""The gateway as a process, with a mechanism switched off:
`python -m tests.faults.gateway FOLDER PORT ADMIN_PORT ADMIN_TOKEN disk|versions|""`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from pydantic import SecretStr

from optiinfra.gateway.app import Gateway, GatewayConfig, serve, utc_now
from optiinfra.gateway.routes import RouteKey, Routes
from optiinfra.gateway.store import RouteBook, RouteStore
from optiinfra.schemas.routing import RouteTable


class Lazy(RouteStore):
    """Writes the routes down at its end, if it comes to that."""

    _routes = Routes()

    def save(self, routes: Routes) -> None:
        self._routes = routes

    def close(self) -> None:
        super().save(self._routes)
        super().close()


class Unversioned(RouteBook):
    """Whoever writes last is right, whatever he has read before."""

    async def put(self, table: RouteTable) -> None:
        standing = self.routes.version(RouteKey(table.tenant, table.deployment))
        await super().put(table.model_copy(update={"version": standing + 1}))


async def route(folder: str, port: str, admin_port: str, token: str, without: str) -> None:
    config = GatewayConfig(
        state_dir=Path(folder),
        admin_token=SecretStr(token),
        port=int(port),
        admin_port=int(admin_port),
    )
    gateway = Gateway(config, None)
    store = (Lazy if without == "disk" else RouteStore)(config.state_dir, utc_now)
    gateway._store = store
    gateway._book = (Unversioned if without == "versions" else RouteBook)(store)
    await serve(gateway, lambda _gateway: None)


if __name__ == "__main__":
    asyncio.run(route(*sys.argv[1:]))
