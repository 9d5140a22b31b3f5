"""What people look at: lists by page and single things, always of one tenant, by SQLAlchemy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, cast, func, select, tuple_
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession

from optiinfra.schemas.errors import NotFound, Unavailable
from optiinfra.storage.postgres.database import LOST_CONNECTION, Database
from optiinfra.storage.postgres.tables import (
    AgentRow,
    ApprovalRow,
    AuditRow,
    DeploymentRow,
    EventRow,
    ExecutionRow,
    RecommendationRow,
    SagaRow,
    SwitchRow,
    VoteRow,
)

Row = dict[str, Any]
"""One row by column names; times are aware, JSON is decoded."""

_SHOWN_OF_SAGA = ("phase", "paused_by", "waiting", "rollback_reason", "end_reason", "step")
TIMELINE_LIMIT = 5_000
"""More events than any change has; a page of a change never grows without bound."""


@dataclass(frozen=True, slots=True)
class Page:
    """`after` is the sort key of the last row seen, `limit` how many rows are wanted."""

    limit: int
    after: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events; None means "any". `types` are tags as `vote.cast`."""

    change: str | None = None
    kind: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    state: str | None = None
    deployment: str | None = None
    kind: str | None = None


class Queries:
    """Reads for the pages and the command line. All raise `Unavailable` without server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def agents(self, tenant: str) -> list[Row]:
        """The instances of all agents, by name; `silent_s` is how long each has been silent."""
        silent_s = func.extract("epoch", func.clock_timestamp() - AgentRow.last_seen_at)
        return await self._rows(
            select(*_columns(AgentRow), silent_s.label("silent_s"))
            .where(AgentRow.tenant == tenant)
            .order_by(AgentRow.agent, AgentRow.instance)
        )

    async def deployments(self, tenant: str, page: Page) -> list[Row]:
        """Deployments by id; sort key (id)."""
        query = select(*_columns(DeploymentRow)).where(DeploymentRow.tenant == tenant)
        if page.after:
            query = query.where(DeploymentRow.id > page.after[0])
        return await self._rows(query.order_by(DeploymentRow.id).limit(page.limit))

    async def recommendations(self, tenant: str, want: ChangeFilter, page: Page) -> list[Row]:
        """Recommendations with their change's state, newest first; sort key (proposed_at, id)."""
        key = (RecommendationRow.proposed_at, RecommendationRow.id)
        query = _recommendations(tenant).where(*_matching(want))
        if page.after:
            query = query.where(tuple_(*key) < page.after)
        return await self._rows(query.order_by(*(k.desc() for k in key)).limit(page.limit))

    async def recommendation(self, tenant: str, change: str) -> Row:
        """Raises `NotFound`, also for what belongs to another tenant."""
        query = _recommendations(tenant).where(RecommendationRow.id == change)
        return await self._one(query, f"there is no recommendation {change}")

    async def changes(self, tenant: str, want: ChangeFilter, page: Page) -> list[Row]:
        """Changes, the latest moved first; sort key (updated_at, id)."""
        key = (SagaRow.updated_at, SagaRow.change_id)
        query = _changes(tenant).where(*_matching(want))
        if page.after:
            query = query.where(tuple_(*key) < page.after)
        rows = await self._rows(query.order_by(*(k.desc() for k in key)).limit(page.limit))
        return [_with_saga(row) for row in rows]

    async def change(self, tenant: str, change: str) -> Row:
        """One change with its saga as `body`. Raises `NotFound`."""
        query = _changes(tenant).where(SagaRow.change_id == change)
        return _with_saga(await self._one(query, f"there is no change {change}"))

    async def votes(self, change: str) -> list[Row]:
        """Of a change that was looked up for its tenant before; so are the next three."""
        return await self._rows(
            select(*_columns(VoteRow))
            .where(VoteRow.change_id == change)
            .order_by(VoteRow.round, VoteRow.agent, VoteRow.cast_at)
        )

    async def approvals(self, change: str) -> list[Row]:
        return await self._rows(
            select(*_columns(ApprovalRow))
            .where(ApprovalRow.change_id == change)
            .order_by(ApprovalRow.at)
        )

    async def executions(self, change: str) -> list[Row]:
        return await self._rows(
            select(*_columns(ExecutionRow))
            .where(ExecutionRow.change_id == change)
            .order_by(ExecutionRow.begun_at, ExecutionRow.fence)
        )

    async def timeline(self, change: str) -> list[Row]:
        """All events of a change in the order in which they were taken in."""
        return await self._rows(
            select(*_columns(EventRow))
            .where(EventRow.chain == change)
            .order_by(EventRow.version)
            .limit(TIMELINE_LIMIT)
        )

    async def events(self, tenant: str, want: EventFilter, page: Page) -> list[Row]:
        """The tenant's log, oldest first; sort key (position)."""
        query = select(*_columns(EventRow)).where(EventRow.tenant == tenant, *_wanted(want))
        if page.after:
            query = query.where(EventRow.position > page.after[0])
        return await self._rows(query.order_by(EventRow.position).limit(page.limit))

    async def audit(self, tenant: str, page: Page) -> list[Row]:
        """Who did or tried what, the latest first; sort key (position)."""
        query = select(*_columns(AuditRow)).where(AuditRow.tenant == tenant)
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
        rows = await self._rows(select(EventRow.event_id).where(EventRow.event_id.in_(wanted)))
        return {row["event_id"] for row in rows}

    async def ready(self) -> None:
        """Raises `Unavailable` when the database or its tables are not there."""
        rows = await self._rows(select(func.to_regclass("event_log").label("found")))
        if rows[0]["found"] is None:
            raise Unavailable("the database has no tables", hint="run `optiinfra migrate`")

    async def _rows(self, query: Select[*tuple[Any, ...]]) -> list[Row]:
        async with _reading(self._database) as session:
            return [dict(row) for row in (await session.execute(query)).mappings()]

    async def _one(self, query: Select[*tuple[Any, ...]], missing: str) -> Row:
        rows = await self._rows(query.limit(1))
        if not rows:
            raise NotFound(missing)
        return rows[0]


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


def _recommendations(tenant: str) -> Select[*tuple[Any, ...]]:
    return (
        select(*_columns(RecommendationRow), SagaRow.state, SagaRow.updated_at)
        .join(SagaRow, SagaRow.change_id == RecommendationRow.id)
        .where(RecommendationRow.tenant == tenant)
    )


def _changes(tenant: str) -> Select[*tuple[Any, ...]]:
    recommendation = cast(RecommendationRow.body, JSONB)
    return (
        select(
            SagaRow.change_id.label("id"),
            SagaRow.deployment,
            SagaRow.state,
            SagaRow.version,
            SagaRow.opened_at,
            SagaRow.updated_at,
            SagaRow.moving_since,
            RecommendationRow.kind,
            RecommendationRow.risk,
            RecommendationRow.proposer,
            recommendation["title"].astext.label("title"),
            SagaRow.body,
        )
        .join(RecommendationRow, RecommendationRow.id == SagaRow.change_id)
        .where(SagaRow.tenant == tenant)
    )


def _with_saga(row: Row) -> Row:
    """The row with its saga decoded, and beside it what lists show of it."""
    saga = json.loads(row["body"])
    return row | {name: saga[name] for name in _SHOWN_OF_SAGA} | {"body": saga}


def _matching(want: ChangeFilter) -> list[ColumnElement[bool]]:
    given = (
        (SagaRow.state, want.state),
        (RecommendationRow.deployment, want.deployment),
        (RecommendationRow.kind, want.kind),
    )
    return [column == value for column, value in given if value is not None]


def _wanted(want: EventFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if want.change is not None:
        found.append(EventRow.chain == want.change)
    if want.kind is not None:
        found.append(EventRow.type.like(f"optiinfra.{want.kind}.v%"))
    if want.since is not None:
        found.append(EventRow.at >= want.since)
    if want.until is not None:
        found.append(EventRow.at < want.until)
    return found
