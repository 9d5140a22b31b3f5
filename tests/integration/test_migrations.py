"""Migrations make the tables that the models describe."""

from __future__ import annotations

import asyncio

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from optiinfra.storage.postgres.database import open_database, sqlalchemy_url
from optiinfra.storage.postgres.journal import require_journal
from optiinfra.storage.postgres.migrate import upgrade
from optiinfra.storage.postgres.tables import Table


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), Table.metadata))


async def test_the_newest_migration_makes_what_the_models_describe(database: str) -> None:
    engine = create_async_engine(sqlalchemy_url(database))
    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


async def test_migrating_again_and_at_once_does_no_harm(database: str) -> None:
    await asyncio.gather(upgrade(database), upgrade(database))
    async with open_database(database) as opened:
        await require_journal(opened)
