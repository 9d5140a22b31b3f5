"""Attempts that were denied go into the audit trail."""

from __future__ import annotations

from typing import Any

from fastapi.requests import HTTPConnection

from optiinfra.portal_api.ports import ports_of
from optiinfra.storage.postgres.access import Principal
from optiinfra.storage.postgres.audit import Attempt


def remember(connection: HTTPConnection, **what: Any) -> None:
    """Keeps `who` asks and what was `asked` for, until the answer is known."""
    connection.scope.setdefault("state", {}).update(what)


async def note_denial(connection: HTTPConnection, why: str) -> None:
    """Audits the attempt of whoever is known to have asked."""
    state = connection.scope.get("state", {})
    who: Principal | None = state.get("who")
    if who is None:
        return
    detail = {"method": connection.scope.get("method", "GET"), "why": why}
    attempt = Attempt(state.get("asked", "session"), connection.url.path, detail)
    await ports_of(connection).decisions.note(who, attempt, allowed=False)
