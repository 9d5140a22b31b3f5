"""Writes down who the tenant is and which deployments it has declared."""

from __future__ import annotations

from collections.abc import Sequence

from optiinfra.schemas.deployment import Deployment
from optiinfra.storage.postgres.database import Database


async def declare(database: Database, tenant: str, deployments: Sequence[Deployment]) -> None:
    """Makes the tables say what the fleet file says; what it no longer names is removed."""
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO tenants (id, name) VALUES ($1, $1) ON CONFLICT DO NOTHING", tenant
        )
        await connection.execute(
            "DELETE FROM deployments WHERE tenant = $1 AND NOT id = ANY($2)",
            tenant,
            [deployment.id for deployment in deployments],
        )
        await connection.executemany(
            "INSERT INTO deployments (tenant, id, body) VALUES ($1, $2, $3::text::jsonb)"
            " ON CONFLICT (tenant, id) DO UPDATE SET body = $3::text::jsonb, updated_at = now()",
            [(tenant, d.id, d.model_dump_json()) for d in deployments],
        )
