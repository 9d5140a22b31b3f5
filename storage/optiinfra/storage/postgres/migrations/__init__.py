"""Alembic migrations; `optiinfra.storage.postgres.migrate` runs them."""
