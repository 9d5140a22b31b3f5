"""The API as a process of its own, which a test may kill: `api_process DATABASE NATS PORT`."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from uuid import uuid4

from optiinfra.events.bus import Bus
from optiinfra.events.publish import Publisher
from optiinfra.portal_api.app import create_app
from optiinfra.portal_api.ports import api_ports
from optiinfra.portal_api.server import serve
from optiinfra.storage.postgres.database import open_database


async def main(database_url: str, nats_url: str, port: int) -> None:
    bus = await Bus.connect(nats_url, name="portal-api")
    publisher = Publisher(bus, "portal-api", lambda: datetime.now(UTC), lambda: uuid4().hex)
    async with open_database(database_url) as database:
        app = create_app(api_ports(database, bus, publisher))
        await serve(app, "127.0.0.1", port)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
