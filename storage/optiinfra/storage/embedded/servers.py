"""Everything the product needs beneath it, started with one call in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from optiinfra.events.bus_roles import BusRole
from optiinfra.storage.embedded.nats import NatsServer
from optiinfra.storage.embedded.places import make_private_folder
from optiinfra.storage.embedded.postgres import PostgresServer
from optiinfra.storage.folder_lock import FolderLock


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Where each part answers; passwords are inside the URLs, and out of the repr."""

    nats_url: str = field(repr=False)
    postgres_url: str = field(repr=False)
    clickhouse_url: str
    qdrant_url: str
    redis_url: str
    nats_role_urls: Mapping[BusRole, str] = field(default_factory=dict, repr=False)
    """The bus as each role signs in there; empty where there is one address for all."""

    def nats_url_for(self, role: BusRole) -> str:
        """Where `role` connects."""
        return self.nats_role_urls.get(role, self.nats_url)


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """One part as `status` shows it: `where` has no password in it."""

    name: str
    healthy: bool
    where: str
    pid: int | None


class EmbeddedServers:
    """The local servers of one home folder; a second process on the same home is refused.

    NATS and PostgreSQL are child processes that die with this one, whatever kills it. ClickHouse
    (chdb), Qdrant (local mode) and Redis (in memory) run in whichever process opens their address;
    chdb and Qdrant allow one such process.
    """

    def __init__(self, home: Path, *, durable: bool = True) -> None:
        self.home = home.expanduser().absolute()
        self.nats = NatsServer(self.home / "nats")
        self.postgres = PostgresServer(self.home / "postgres", durable=durable)
        self._lock = FolderLock(self.home)

    def start(self) -> Addresses:
        """Start all and wait until they answer. `Conflict` when the home is in use.

        It blocks for a second at the first start: call it before the event loop, or in a thread.
        """
        make_private_folder(self.home)
        self._lock.acquire()
        try:
            return Addresses(
                nats_url=self.nats.start(),
                postgres_url=self.postgres.start(),
                clickhouse_url=f"chdb://{quote(str(self.home / 'clickhouse'))}",
                qdrant_url=f"local://{quote(str(self.home / 'qdrant'))}",
                redis_url="memory://",
                nats_role_urls={role: self.nats.url_for(role) for role in BusRole},
            )
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all in order, at once and within two seconds unless one hangs. Idempotent."""
        self.nats.request_stop()
        self.postgres.request_stop()
        self.nats.stop()
        self.postgres.stop()
        self._lock.release()

    def status(self) -> list[PartStatus]:
        """The child processes as they are now."""
        return [
            PartStatus(
                name=name, healthy=part.healthy(), where=_without_password(part.url), pid=part.pid
            )
            for name, part in (("nats", self.nats), ("postgres", self.postgres))
        ]

    def __enter__(self) -> Addresses:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
