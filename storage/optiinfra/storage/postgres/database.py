"""Connections to PostgreSQL: an asyncpg pool for the hot path, SQLAlchemy for the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from optiinfra.schemas.errors import Unavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]
else:
    Connection = Any

LOST_CONNECTION = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DiskFullError,
    asyncpg.InternalClientError,
)
"""What means "the database cannot be reached now", as against "the statement is wrong"."""
_ACQUIRE_S = 10.0
_SESSION = {"jit": "off", "timezone": "UTC"}
"""Our statements are short: compiling one costs more than it ever saves. The zone is that of the
times in JSON that PostgreSQL writes."""
_WARM = 2
"""Connections that are kept open, so that no request waits for one to be made."""


def sqlalchemy_url(url: str) -> str:
    """A `postgresql://` URL in SQLAlchemy's asyncpg form."""
    scheme, rest = url.split("://", 1)
    return url if "+" in scheme else f"postgresql+asyncpg://{rest}"


class Database:
    """One pool and one engine over the same server; made with `open_database`."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], engine: AsyncEngine) -> None:
        self._pool = pool
        self.engine = engine

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A pooled connection; losing the server shows as `Unavailable`."""
        try:
            async with asyncio.timeout(_ACQUIRE_S):
                held = await self._pool.acquire()
            try:
                yield held
            finally:
                await self._pool.release(held)
        except LOST_CONNECTION as lost:
            raise Unavailable(f"PostgreSQL cannot be reached: {lost}") from lost

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A SQLAlchemy session for reads and rare writes; commit is the caller's."""
        async with AsyncSession(self.engine, expire_on_commit=False) as session:
            yield session

    async def close(self) -> None:
        await self._pool.close()
        await self.engine.dispose()


async def _as_it_is(_connection: object) -> None:
    """Spares the round trip that clears a session: nobody here sets, listens or locks beyond a
    transaction, and the pool itself rolls back what is left open.
    """


@asynccontextmanager
async def open_database(url: str, *, connections: int = 8) -> AsyncIterator[Database]:
    """Connects; raises `Unavailable` naming the server (without its password)."""
    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=min(_WARM, connections),
            max_size=connections,
            timeout=10,
            server_settings=_SESSION,
            reset=_as_it_is,
        )
    except (*LOST_CONNECTION, asyncpg.PostgresError) as failed:
        parts = urlsplit(url)
        where = f"{parts.hostname or 'local socket'}:{parts.port or 5432}{parts.path}"
        raise Unavailable(
            f"cannot connect to PostgreSQL at {where}: {failed}",
            hint="check postgres_url and that the server runs",
        ) from failed
    engine = create_async_engine(
        sqlalchemy_url(url),
        pool_size=connections,
        max_overflow=0,
        pool_use_lifo=True,
        connect_args={"server_settings": _SESSION},
    )
    database = Database(pool, engine)
    try:
        yield database
    finally:
        await database.close()
