"""Root runs PostgreSQL as another user, who needs a name and a place that he can reach."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import asyncpg
import psutil
import pytest

from optiinfra.schemas.errors import Unavailable
from optiinfra.storage.embedded import cluster, places
from optiinfra.storage.embedded.postgres import PostgresServer
from tests.embedded_stand import home

__all__ = ["home"]


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL refuses root only")
class TestRoot:
    """Root needs a place that PostgreSQL's user can reach."""

    async def test_a_closed_home_keeps_its_cluster_in_an_open_place(
        self, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(places, "PERSISTENT_ROOT", home / "places")
        (tmp_path / "postgres").mkdir()
        server = PostgresServer(tmp_path / "postgres", durable=False)
        place = places.place_for_another_user(tmp_path / "postgres")
        connection = await asyncpg.connect(server.start())
        await connection.execute("CREATE TABLE kept ()")
        await connection.close()
        server.stop()
        again = PostgresServer(tmp_path / "postgres", durable=False)
        connection = await asyncpg.connect(again.start())
        assert await connection.fetchval("SELECT count(*) FROM kept") == 0
        await connection.close()
        again.stop()
        assert list(place.rglob("PG_VERSION"))
        assert not places.reachable_by_others(tmp_path)

    def test_a_tree_that_others_cannot_read_is_copied_whole_and_once(
        self, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(places, "PERSISTENT_ROOT", home / "places")
        tool = tmp_path / "tree" / "bin" / "tool"
        tool.parent.mkdir(parents=True)
        tool.write_text("first")
        tool.chmod(0o700)
        assert not places.readable_by_others(tmp_path / "tree")
        copy = places.copied_tree({"a/tree": tmp_path / "tree"}, "copy")
        assert places.readable_by_others(copy)
        assert (copy / "a/tree/bin/tool").stat().st_mode & 0o777 == 0o755
        tool.write_text("second")
        assert places.copied_tree({"a/tree": tmp_path / "tree"}, "copy") == copy
        assert (copy / "a/tree/bin/tool").read_text() == "first"

    def test_postgres_runs_from_a_copy_where_its_user_cannot_read_the_original(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(places, "PERSISTENT_ROOT", home / "places")
        monkeypatch.setattr(cluster, "readable_by_others", lambda tree: False)
        server = PostgresServer(home / "postgres", durable=False)
        server.start()
        assert server.pid is not None
        assert psutil.Process(server.pid).exe().startswith(str(home / "places"))
        server.stop()

    def test_a_place_that_belongs_to_somebody_else_is_not_used(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (home / "taken").mkdir()
        os.chown(home / "taken", 65533, 65533)
        monkeypatch.setattr(places, "PERSISTENT_ROOT", home / "taken")
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(home / "temporary"))
        assert places.open_place("x").is_relative_to(home / "temporary")
        shutil.rmtree(home / "temporary")
        (home / "temporary").write_text("not a folder")
        with pytest.raises(Unavailable, match="another user than root"):
            places.open_place("x")


def test_a_user_without_a_name_is_told_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = PostgresServer(home / "postgres", durable=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(Unavailable, match=r"no name on this system .*/etc/passwd"):
        server.start()
