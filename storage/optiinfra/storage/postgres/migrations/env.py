"""Alembic's entry: migrates over the connection that the caller has opened."""

from alembic import context

from optiinfra.storage.postgres.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    transactional_ddl=True,
)
context.run_migrations()
