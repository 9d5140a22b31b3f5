"""How a message gets out: what every way has in common, and what an HTTP answer means."""

from __future__ import annotations

from typing import Protocol

import httpx

from optiinfra.portal_api.notifications.message import Message
from optiinfra.schemas.errors import Rejected, Unavailable

TIMEOUT_S = 10.0
_LATER = {408, 425, 429}
_LONGEST_WAIT_S = 3_600.0


class Sender(Protocol):
    """One target. `send` raises `Unavailable` for "try again", `Rejected` for "never"."""

    async def send(self, message: Message) -> None: ...


async def posted(
    http: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str], *, to: str
) -> None:
    """Posts JSON. Errors name the target `to`, never the URL: it may be a secret."""
    try:
        answer = await http.post(
            url,
            content=body,
            headers={"Content-Type": "application/json", **headers},
            timeout=TIMEOUT_S,
            follow_redirects=False,
        )
    except httpx.HTTPError as failed:
        raise Unavailable(f"{to} cannot be reached: {type(failed).__name__}") from None
    if answer.is_success:
        return
    said = f"{to} answered {answer.status_code}"
    if answer.status_code in _LATER or answer.is_server_error:
        raise Unavailable(said, retry_after_s=_wait_s(answer))
    raise Rejected(
        said, hint="check the target's URL and secret; `optiinfra dlq retry` sends again"
    )


def _wait_s(answer: httpx.Response) -> float:
    """What the receiver asks for in seconds; dates and nonsense count as one second."""
    asked = answer.headers.get("retry-after", "")
    return min(_LONGEST_WAIT_S, float(asked)) if asked.isdigit() else 1.0
