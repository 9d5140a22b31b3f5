"""What people look at now and then: of one tenant, a page at a time, by SQLAlchemy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.postgres.database import LOST_CONNECTION, Database
from optiinfra.storage.postgres.reading import AuditFilter, Page
from optiinfra.storage.postgres.tables import AuditRow, DeploymentRow, SwitchRow

Row = dict[str, Any]
"""One row by column names; times are aware, JSON is decoded."""


class Queries:
    """Reads for the pages and the command line. All raise `Unavailable` without server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def deployments(self, tenant: str, page: Page) -> list[Row]:
        """Deployments by id; sort key (id)."""
        query = select(*_columns(DeploymentRow)).where(DeploymentRow.tenant == tenant)
        if page.after:
            query = query.where(DeploymentRow.id > page.after[0])
        return await self._rows(query.order_by(DeploymentRow.id).limit(page.limit))

    async def audit(self, tenant: str, want: AuditFilter, page: Page) -> list[Row]:
        """Who did or tried what, the latest first; sort key (position)."""
        query = select(*_columns(AuditRow)).where(AuditRow.tenant == tenant)
        for column, value in (
            (AuditRow.allowed, want.allowed),
            (AuditRow.actor, want.actor),
            (AuditRow.target, want.target),
        ):
            if value is not None:
                query = query.where(column == value)
        if want.since is not None:
            query = query.where(AuditRow.at >= want.since)
        if page.after:
            query = query.where(AuditRow.position < page.after[0])
        return await self._rows(query.order_by(AuditRow.position.desc()).limit(page.limit))

    async def switch(self, tenant: str) -> Row | None:
        """How the stop switch stands; None when it was never turned."""
        rows = await self._rows(select(*_columns(SwitchRow)).where(SwitchRow.tenant == tenant))
        return rows[0] if rows else None

    async def logged(self, event_ids: Iterable[str]) -> set[str]:
        """Which of these events are in the log."""
        wanted = list(event_ids)
        if not wanted:
            return set()
        async with self._database.connection() as connection:
            return {row[0] for row in await connection.fetch(_LOGGED, wanted)}

    async def ready(self) -> None:
        """Raises `Unavailable` when the database or its tables are not there."""
        rows = await self._rows(select(func.to_regclass("event_log").label("found")))
        if rows[0]["found"] is None:
            raise Unavailable("the database has no tables", hint="run `optiinfra migrate`")

    async def _rows(self, query: Select[*tuple[Any, ...]]) -> list[Row]:
        async with _reading(self._database) as session:
            return [dict(row) for row in (await session.execute(query)).mappings()]


@asynccontextmanager
async def _reading(database: Database) -> AsyncIterator[AsyncSession]:
    """A session whose lost server shows as `Unavailable`."""
    try:
        async with database.session() as session:
            yield session
    except (*LOST_CONNECTION, OperationalError, InterfaceError, PoolTimeoutError) as lost:
        raise Unavailable(f"PostgreSQL cannot be reached: {lost}") from lost
    except DBAPIError as failed:
        if failed.connection_invalidated or isinstance(failed.orig, LOST_CONNECTION):
            raise Unavailable(f"PostgreSQL cannot be reached: {failed.orig}") from failed
        raise


def _columns(table: type[Any]) -> list[ColumnElement[Any]]:
    return [getattr(table, name) for name in table.__table__.columns.keys()]  # noqa: SIM118


_LOGGED = "SELECT event_id FROM event_log WHERE event_id = ANY($1::text[])"
