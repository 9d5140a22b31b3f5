"""A fresh migrated PostgreSQL database for each test, copied from one template."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg


class Databases:
    """Databases on the server of `admin_url`, whose user may create some."""

    def __init__(self, admin_url: str, migrate: Callable[[str], Awaitable[None]]) -> None:
        self._admin_url = admin_url
        self._migrate = migrate
        self._template: str | None = None
        self._making = asyncio.Lock()

    @asynccontextmanager
    async def fresh(self) -> AsyncIterator[str]:
        """The URL of a migrated, empty database that is dropped afterwards."""
        template = await self._migrated_template()
        name = f"test_{uuid4().hex}"
        await self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self._url_of(name)
        finally:
            await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def aclose(self) -> None:
        """Drop the template."""
        if self._template is not None:
            await self._execute(f'DROP DATABASE "{self._template}" WITH (FORCE)')
            self._template = None

    async def _migrated_template(self) -> str:
        async with self._making:
            if self._template is None:
                name = f"template_{uuid4().hex}"
                await self._execute(f'CREATE DATABASE "{name}"')
                await self._migrate(self._url_of(name))
                self._template = name
            return self._template

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self._admin_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _url_of(self, database: str) -> str:
        return urlsplit(self._admin_url)._replace(path=f"/{database}").geturl()
