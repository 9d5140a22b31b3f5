"""Brings a database to the newest schema (Alembic)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from optiinfra.storage.postgres.database import sqlalchemy_url

_LOCK = 0x6F707469
"""Key of the advisory lock that lets one process migrate at a time."""


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return made


async def upgrade(url: str) -> None:
    """Applies what is missing; repeating it, also from two processes at once, does no harm."""
    engine = create_async_engine(sqlalchemy_url(url))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    with_connection = config()
    with_connection.attributes["connection"] = connection
    command.upgrade(with_connection, "head")
