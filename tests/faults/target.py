"""A target of changes that survives every kill and counts whatever is done to it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optiinfra.agents.actuators.port import Launched, LaunchSpec
from optiinfra.schemas.deployment import Market, Replica, ReplicaState
from optiinfra.schemas.errors import Conflict
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.routing import Backend, RouteStatus, RouteTable
from tests.cost_stand import machine


class Target:
    """Machines and routes in one SQLite file, for any number of processes.

    Both the actuator's and the traffic's port. Each thing that is done leaves a row in `acts`, in
    the transaction in which it is done, so that doing it twice cannot hide.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as db:
            for table in _TABLES:
                db.execute(table)

    def add(self, deployment: str) -> None:
        """A deployment with one on-demand machine that carries all its traffic."""
        one = machine(1, id=f"{deployment}-1", deployment=deployment, url="http://127.0.0.1:9/")
        table = RouteTable(
            tenant="acme",
            deployment=deployment,
            model="m",
            backends=(Backend(replica=one.id, url=str(one.url), weight=1.0),),
        )
        with self._open() as db:
            _put_machine(db, one)
            _put_table(db, table)

    def acts(self, deployment: str) -> list[tuple[str, str]]:
        """What was done to a deployment, in order: what, and the details."""
        with self._open() as db:
            rows = db.execute(
                "SELECT what, detail FROM acts WHERE deployment = ? ORDER BY number", (deployment,)
            )
            return [(what, detail) for what, detail in rows]

    def asked(self, deployment: str) -> int:
        """How often a launch was asked for, also in vain."""
        with self._open() as db:
            [(count,)] = db.execute(
                "SELECT count(*) FROM asked WHERE deployment = ?", (deployment,)
            )
        return int(count)

    def note_asked(self, deployment: str) -> None:
        with self._open() as db:
            db.execute("INSERT INTO asked VALUES (?)", (deployment,))

    # The actuator's port.

    async def replicas(self, tenant: str, deployment: str) -> Sequence[Replica]:
        with self._open() as db:
            return _machines(db, deployment)

    async def launch(self, spec: LaunchSpec) -> Launched:
        with self._open() as db:
            for one in _machines(db, spec.deployment):
                if one.launch_token == spec.token:
                    return Launched(one, False, one.instance.market)
            name = f"{spec.deployment}-{derived_id(spec.token)[:8]}"
            born = machine(
                2, id=name, deployment=spec.deployment, launch_token=spec.token,
                state=ReplicaState.SERVING, url="http://127.0.0.1:9/",
            )  # fmt: skip
            placed = born.instance.model_copy(update={"market": Market.SPOT, "id": f"i-{name}"})
            one = born.model_copy(update={"instance": placed})
            _put_machine(db, one)
            _note(db, "launch", spec.deployment, spec.token)
        return Launched(one, True, Market.SPOT)

    async def replica(self, tenant: str, deployment: str, replica_id: str) -> Replica | None:
        with self._open() as db:
            found = [one for one in _machines(db, deployment) if one.id == replica_id]
        return found[0] if found else None

    async def terminate(self, tenant: str, deployment: str, replica_id: str) -> bool:
        with self._open() as db:
            gone = db.execute("DELETE FROM machines WHERE id = ?", (replica_id,)).rowcount > 0
            if gone:
                _note(db, "terminate", deployment, replica_id)
        return gone

    # The traffic's port.

    async def status(self, tenant: str, deployment: str) -> RouteStatus:
        with self._open() as db:
            return RouteStatus(table=_table(db, deployment))

    async def put(self, table: RouteTable) -> RouteStatus:
        with self._open() as db:
            standing = _table(db, table.deployment)
            if table.version != standing.version + 1:
                raise Conflict(f"version {table.version} does not follow {standing.version}")
            _put_table(db, table)
            shares = {one.replica: (one.weight, one.state.value) for one in table.backends}
            _note(db, "route", table.deployment, json.dumps(shares, sort_keys=True))
        return RouteStatus(table=table)

    async def set_backends(
        self, tenant: str, deployment: str, backends: Sequence[Backend]
    ) -> RouteStatus:
        standing = (await self.status(tenant, deployment)).table
        fresh = {"version": standing.version + 1, "backends": tuple(backends)}
        return await self.put(standing.model_copy(update=fresh))

    async def await_drained(
        self, tenant: str, deployment: str, replica: str, timeout_s: float
    ) -> bool:
        return True

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()


def _machines(db: sqlite3.Connection, deployment: str) -> list[Replica]:
    rows = db.execute("SELECT body FROM machines WHERE deployment = ? ORDER BY id", (deployment,))
    return [Replica.model_validate_json(body) for (body,) in rows]


def _put_machine(db: sqlite3.Connection, one: Replica) -> None:
    row = (one.id, one.deployment, one.model_dump_json())
    db.execute("INSERT INTO machines VALUES (?, ?, ?)", row)


def _table(db: sqlite3.Connection, deployment: str) -> RouteTable:
    [(body,)] = db.execute("SELECT body FROM routes WHERE deployment = ?", (deployment,))
    return RouteTable.model_validate_json(body)


def _put_table(db: sqlite3.Connection, table: RouteTable) -> None:
    row = (table.deployment, table.model_dump_json())
    db.execute("INSERT OR REPLACE INTO routes VALUES (?, ?)", row)


def _note(db: sqlite3.Connection, what: str, deployment: str, detail: str) -> None:
    row = (what, deployment, detail)
    db.execute("INSERT INTO acts (what, deployment, detail) VALUES (?, ?, ?)", row)


_TABLES = (
    "CREATE TABLE IF NOT EXISTS machines (id TEXT PRIMARY KEY, deployment TEXT, body TEXT)",
    "CREATE TABLE IF NOT EXISTS routes (deployment TEXT PRIMARY KEY, body TEXT)",
    "CREATE TABLE IF NOT EXISTS asked (deployment TEXT)",
    """CREATE TABLE IF NOT EXISTS acts (number INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT,
    deployment TEXT, detail TEXT)""",
)
