"""The story's view of a running OptiInfra: only what its public API and its gateway show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import AwareDatetime

from optiinfra.agents.actuators.traffic import TrafficCounters
from optiinfra.events.facts import FACT, Fact
from optiinfra.runtime.session import Session
from optiinfra.schemas.base import Value
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.errors import Denied, Rejected, Unavailable

_PAGE = 200


class LoggedEvent(Value):
    """One event of the log, in its order."""

    position: int
    id: str
    kind: str
    at: AwareDatetime
    fact: Fact


@dataclass(frozen=True, slots=True)
class Verified:
    """What walking the log's hash chains found."""

    ok: bool
    events: int


class PublicApi:
    """Calls the API as its user does; methods raise `Unavailable`, `Denied` and `Rejected`."""

    def __init__(self, session: Session, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._session = session
        self._http = httpx.AsyncClient(
            base_url=session.url,
            headers={"Authorization": f"Bearer {session.token}"},
            timeout=15.0,
            trust_env=False,
            transport=transport,
        )

    async def events(self, after: int) -> AsyncIterator[LoggedEvent]:
        """All events after a position that are in the log now."""
        path: str | None = f"/api/v1/events?after={after}&limit={_PAGE}"
        while path is not None:
            page = await self._get(path)
            for row in page["items"]:
                yield logged_event(row)
            path = page.get("next")

    async def decide(self, change: str, version_hash: str, *, approve: bool, reason: str) -> None:
        """A person's word on a recommendation, bound to the version that was shown."""
        verb = "approve" if approve else "reject"
        await self._call(
            "POST",
            f"/api/v1/recommendations/{change}/{verb}",
            headers={"If-Match": f'"{version_hash}"'},
            json={"reason": reason},
        )

    async def is_awaited(self, change: str) -> bool:
        """Whether a person's word on a recommendation is still waited for."""
        found = await self._get(f"/api/v1/recommendations/{change}")
        return bool(found["state"] == ChangeState.AWAITING_APPROVAL)

    async def verify(self) -> Verified:
        """Whether every chain of the log holds."""
        found = await self._get("/api/v1/audit/verify")
        return Verified(bool(found["ok"]), int(found["events"]))

    async def counters(self) -> TrafficCounters:
        """The gateway's counters since it began."""
        session = self._session
        token = session.gateway_admin_token or ""
        answer = await self._call(
            "GET",
            f"{(session.gateway_admin_url or '').rstrip('/')}/admin/counters",
            headers={"Authorization": f"Bearer {token}"},
        )
        return TrafficCounters.model_validate_json(answer.content)

    async def _get(self, path: str) -> dict[str, Any]:
        """Asked once more when no answer comes: a story of an hour does not end for one of them."""
        try:
            answer = await self._call("GET", path)
        except Unavailable:
            answer = await self._call("GET", path)
        found: dict[str, Any] = answer.json()
        return found

    async def _call(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, url, **options)
        except httpx.TransportError as error:
            raise Unavailable(f"{method} {url} did not get through: {error!r}") from error
        if answer.status_code in {401, 403}:
            raise Denied(f"{method} {url}: {answer.text[:300]}")
        if answer.status_code >= 500:
            raise Unavailable(f"{method} {url}: {answer.status_code} {answer.text[:300]}")
        if answer.status_code >= 400:
            raise Rejected(f"{method} {url}: {answer.status_code} {answer.text[:300]}")
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()


def logged_event(row: dict[str, Any]) -> LoggedEvent:
    """An item of the API's event list."""
    return LoggedEvent(
        position=row["position"],
        id=row["id"],
        kind=row["kind"],
        at=row["at"],
        fact=FACT.validate_python(row["fact"]),
    )
