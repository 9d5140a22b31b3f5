"""Keeps the routes on disk, so that a killed gateway comes back with them."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from pydantic import Field, ValidationError

from optiinfra.gateway.routes import RouteKey, Routes
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Conflict, Rejected, Unavailable
from optiinfra.schemas.ids import DeploymentId, TenantId
from optiinfra.schemas.routing import RouteTable


class RetiredRoutes(Value):
    """The last version of a removed table."""

    tenant: TenantId
    deployment: DeploymentId
    version: int = Field(ge=1)


class RouteFile(Value):
    """What stands in `routes.json`."""

    format: Literal[1] = 1
    tables: tuple[RouteTable, ...] = ()
    retired: tuple[RetiredRoutes, ...] = ()


class RouteStore:
    """One directory that one gateway process owns (it holds a lock on it)."""

    def __init__(self, state_dir: Path, clock: Callable[[], datetime]) -> None:
        self._dir = state_dir
        self._path = state_dir / "routes.json"
        self._clock = clock
        self._lock: IO[str] | None = None

    def open(self) -> None:
        """Take the directory; `Conflict` when another gateway has it, `Rejected` if unusable."""
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            lock = (self._dir / "gateway.lock").open("w")
        except OSError as error:
            raise Rejected(
                f"state directory {self._dir} cannot be used: {error.strerror}",
                hint="set state_dir to a directory that this user may write",
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise Conflict(
                f"another gateway uses the state directory {self._dir}",
                hint="stop it, or give this one its own state_dir",
            ) from error
        self._lock = lock

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self, *, reset: bool) -> Routes:
        """The routes on disk, none when there is no file.

        An unreadable file raises `Rejected`; with `reset` it is moved aside and none are loaded.
        """
        try:
            return self._read()
        except FileNotFoundError:
            return Routes()
        except (OSError, ValidationError, Rejected) as error:
            if reset:
                aside = f"routes.json.corrupt-{self._clock():%Y%m%dT%H%M%S%fZ}"
                self._path.rename(self._dir / aside)
                return Routes()
            raise Rejected(
                f"{self._path} does not hold readable routes: {_first_line(error)}",
                hint="restore the file, or start with --reset-routes to move it aside",
            ) from error

    def _read(self) -> Routes:
        state = RouteFile.model_validate_json(self._path.read_bytes())
        retired = {RouteKey(row.tenant, row.deployment): row.version for row in state.retired}
        return Routes(state.tables, retired)

    def save(self, routes: Routes) -> None:
        """Write atomically and durably; `Unavailable` when the disk refuses."""
        retired = tuple(
            RetiredRoutes(tenant=key.tenant, deployment=key.deployment, version=version)
            for key, version in routes.retired.items()
        )
        text = RouteFile(tables=routes.tables, retired=retired).model_dump_json(indent=1)
        try:
            self._replace(text.encode())
        except OSError as error:
            raise Unavailable(
                f"routes cannot be written to {self._path}: {error.strerror}",
                hint="free the disk or fix the rights of the state directory",
            ) from error

    def _replace(self, content: bytes) -> None:
        fresh = self._path.with_suffix(".json.new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._dir, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RouteBook:
    """The routes in force: writers one after another, on disk before in force."""

    def __init__(self, store: RouteStore) -> None:
        self._store = store
        self._writing = asyncio.Lock()
        self.routes = Routes()

    def load(self, *, reset: bool) -> None:
        """Take the routes from disk; `Rejected` when unreadable and not `reset`."""
        self.routes = self._store.load(reset=reset)

    async def put(self, table: RouteTable) -> None:
        """Bring `table` into force; `StaleRoutes`, `Rejected` or `Unavailable` change nothing."""
        async with self._writing:
            await self._commit(self.routes.replaced(table))

    async def remove(self, key: RouteKey, expected_version: int | None = None) -> None:
        """Remove a table; in-flight requests go on. Raises as `Routes.removed`."""
        async with self._writing:
            await self._commit(self.routes.removed(key, expected_version))

    async def _commit(self, routes: Routes) -> None:
        await asyncio.to_thread(self._store.save, routes)
        self.routes = routes


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
