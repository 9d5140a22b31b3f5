"""A name that one process holds at a time, against a real PostgreSQL."""

from __future__ import annotations

import pytest

from optiinfra.storage.postgres.database import open_database
from optiinfra.storage.postgres.exclusive import exclusive


async def test_one_holds_a_name_until_its_block_ends(database: str) -> None:
    async with (
        open_database(database, connections=2) as ours,
        open_database(database, connections=2) as theirs,
    ):
        async with exclusive(ours, "study:acme:chat") as first:
            async with exclusive(theirs, "study:acme:chat") as second:
                assert (first, second) == (True, False)
            async with exclusive(theirs, "study:acme:other") as other:
                assert other
        async with exclusive(theirs, "study:acme:chat") as later:
            assert later


async def test_a_failure_in_the_block_lets_go_of_the_name(database: str) -> None:
    async with open_database(database, connections=2) as ours:
        with pytest.raises(ValueError, match="amid"):
            async with exclusive(ours, "study"):
                raise ValueError("amid")
        async with exclusive(ours, "study") as again:
            assert again


async def test_a_holder_that_is_gone_holds_nothing(database: str) -> None:
    async with (
        open_database(database, connections=2) as theirs,
        open_database(database, connections=2) as ours,
    ):
        async with exclusive(ours, "study"), theirs.connection() as another:
            await another.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory'"
                " AND pid <> pg_backend_pid() AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            async with exclusive(theirs, "study") as taken:
                assert taken
        async with exclusive(ours, "study") as again:
            assert again, "what was lost does not keep the holder from its work"
