"""Which backend a unit of traffic goes to, and which table may replace which; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import urlsplit

from optiinfra.schemas.errors import Conflict, NotFound, Rejected
from optiinfra.schemas.ids import DeploymentId, TenantId
from optiinfra.schemas.routing import Backend, BackendState, RouteTable


class RouteKey(NamedTuple):
    """Whose routes they are."""

    tenant: TenantId
    deployment: DeploymentId


class StaleRoutes(Conflict):
    """The writer's version does not follow the one in force, `current_version`."""

    def __init__(self, key: RouteKey, offered: int, current_version: int) -> None:
        super().__init__(
            f"routes of {key.tenant}/{key.deployment} are at version {current_version}; "
            f"version {offered} does not follow it",
            hint=f"read the routes again and write version {current_version + 1}",
        )
        self.current_version = current_version


def hash_fraction(unit: str, *, key: bytes, person: bytes) -> float:
    """A number in (0, 1), uniform over units, that the same three inputs always give."""
    digest = blake2b(unit.encode(errors="surrogatepass"), digest_size=8, key=key, person=person)
    return ((int.from_bytes(digest.digest(), "big") >> 12) + 0.5) / (1 << 52)


class Route:
    """One table, made ready for choosing."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self.key = RouteKey(table.tenant, table.deployment)
        self._eligible = tuple(
            (backend, backend.replica.encode())
            for backend in table.backends
            if backend.state is BackendState.ACTIVE and backend.weight > 0
        )

    def ranked(self, unit: str) -> list[Backend]:
        """Backends that may take a new request of `unit`, the one it belongs to first.

        Weighted rendezvous hashing: the highest `weight / -ln(u)` wins, with u uniform per unit and
        replica, so that shares follow the weights and a change of weights moves only the units
        that it must (Schindelhauer & Schomaker 2005, "Weighted distributed hash tables").
        """
        if len(self._eligible) == 1:
            return [self._eligible[0][0]]
        scored = [
            (backend.weight / -math.log(hash_fraction(unit, key=seed, person=b"arm")), backend)
            for backend, seed in self._eligible
        ]
        scored.sort(key=lambda pair: pair[0], reverse=True)
        return [backend for _, backend in scored]


class Routes:
    """All tables in force; immutable, so that a request sees one state from start to end.

    `retired` keeps the last version of removed tables, so that a late writer of an old
    version can never revive one.
    """

    def __init__(
        self, tables: Iterable[RouteTable] = (), retired: Mapping[RouteKey, int] | None = None
    ) -> None:
        """Raise `Rejected` when a table is invalid or two deployments claim one model."""
        self._routes: dict[RouteKey, Route] = {}
        self._models: dict[str, Route] = {}
        self.retired: Mapping[RouteKey, int] = dict(retired or {})
        for table in tables:
            self._add(table)

    def _add(self, table: RouteTable) -> None:
        _check_urls(table)
        route = Route(table)
        other = self._models.setdefault(table.model, route)
        if other is not route or route.key in self._routes:
            raise Rejected(
                f"model {table.model!r} is already routed by deployment "
                f"{other.key.tenant}/{other.key.deployment}",
                hint="give each deployment its own served model name",
            )
        self._routes[route.key] = route

    @property
    def tables(self) -> tuple[RouteTable, ...]:
        return tuple(route.table for route in self._routes.values())

    @property
    def models(self) -> tuple[str, ...]:
        """Names that clients may ask for, sorted."""
        return tuple(sorted(self._models))

    def get(self, key: RouteKey) -> Route | None:
        return self._routes.get(key)

    def by_model(self, model: str) -> Route | None:
        return self._models.get(model)

    def by_name(self, name: str) -> Route | None:
        """The route of `deployment` or `tenant/deployment`; `Rejected` when ambiguous."""
        tenant, _, deployment = name.rpartition("/")
        found = [
            route
            for key, route in self._routes.items()
            if key.deployment == deployment and tenant in ("", key.tenant)
        ]
        if len(found) > 1:
            raise Rejected(
                f"deployment {deployment!r} exists for several tenants",
                hint="name it as tenant/deployment",
            )
        return found[0] if found else None

    def version(self, key: RouteKey) -> int:
        """The version in force (or at removal); 0 when there never was a table."""
        route = self._routes.get(key)
        return route.table.version if route else self.retired.get(key, 0)

    def replaced(self, table: RouteTable) -> Routes:
        """The routes with `table` in force; `StaleRoutes` unless its version is the next one."""
        key = RouteKey(table.tenant, table.deployment)
        current = self.version(key)
        if table.version != current + 1:
            raise StaleRoutes(key, table.version, current)
        others = [other for other in self.tables if (other.tenant, other.deployment) != key]
        retired = {name: version for name, version in self.retired.items() if name != key}
        return Routes([*others, table], retired)

    def removed(self, key: RouteKey, expected_version: int | None = None) -> Routes:
        """The routes without `key`; `NotFound`, or `StaleRoutes` when it is at another version."""
        current = self.version(key)
        if key not in self._routes:
            raise NotFound(f"there are no routes of {key.tenant}/{key.deployment}")
        if expected_version is not None and expected_version != current:
            raise StaleRoutes(key, expected_version + 1, current)
        others = [other for other in self.tables if (other.tenant, other.deployment) != key]
        return Routes(others, {**self.retired, key: current + 1})


def _check_urls(table: RouteTable) -> None:
    for backend in table.backends:
        try:
            parts = urlsplit(backend.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname)
            usable = usable and parts.port != 0
        except ValueError:
            usable = False
        if not usable or parts.query or parts.fragment or parts.username is not None:
            raise Rejected(
                f"backend {backend.replica} has no usable url",
                hint="give scheme, host and port only, like http://10.0.0.7:8000",
            )
