"""The command line's way to the API: a token, plain calls, and the live stream."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx

from optiinfra.runtime.session import read_session
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.errors import (
    Conflict,
    Denied,
    NotFound,
    OptiInfraError,
    Rejected,
    Unavailable,
)

TIMEOUT_S = 30.0
SILENCE_S = 60.0
"""The stream says something at least every 20 s; silent for longer, it is lost."""
RETRY_S = 1.0
ID_LENGTH = 32
PAGE = 200
_ERRORS: dict[int, type[OptiInfraError]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
_LOST = (httpx.TransportError, httpx.StreamError)


class Api:
    """One signed-in connection. Every call raises what the API's problem means."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **params: object) -> Any:
        """The answer's JSON; None among the parameters is left out."""
        return self.answer("GET", path, params=_given(params)).json()

    def post(self, path: str, body: dict[str, Any], **headers: str) -> Any:
        """A write that may be repeated safely: it carries a key of its own."""
        named = {"Idempotency-Key": uuid4().hex, **headers}
        return self.answer("POST", path, json=body, headers=named).json()

    def answer(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The raw answer, for its headers."""
        try:
            answer = self._client.request(method, f"/api/v1{path}", **options)
        except httpx.TransportError as lost:
            raise self._away(lost) from lost
        if answer.is_error:
            raise _error_of(answer)
        return answer

    def pages(self, path: str, limit: int, **params: object) -> Iterator[dict[str, Any]]:
        """Items from as many pages as it takes, `limit` at most."""
        following: str | None = path
        query: dict[str, object] = {**_given(params), "limit": min(limit, PAGE)}
        while following is not None and limit > 0:
            page = self.answer("GET", following, params=query).json()
            yield from page["items"][:limit]
            limit -= len(page["items"])
            following = page["next"].removeprefix("/api/v1") if page["next"] else None
            query = {}

    def id_of(self, given: str) -> str:
        """The whole id of a change of which the beginning was given.

        Raises `NotFound` or, when several begin so, `Rejected`.
        """
        if len(given) >= ID_LENGTH:
            return given
        found = [
            item["id"] for item in self.pages("/changes", 1_000) if item["id"].startswith(given)
        ]
        if not found:
            raise NotFound(f"there is no change {given}", hint="`optiinfra changes ls` lists them")
        if len(found) > 1:
            raise Rejected(f"{len(found)} changes begin with {given}", hint="give more of the id")
        return str(found[0])

    def follow(self, after: int | None, told: Callable[[str], None]) -> Iterator[dict[str, Any]]:
        """Frames of the live stream for ever; a lost connection is taken up where it was left."""
        query = {} if after is None else {"after": after}
        headers: dict[str, str] = {}
        first = True
        while True:
            try:
                for number, frame in self._frames(query, headers):
                    first = False
                    if number is not None:
                        headers["Last-Event-ID"] = number
                    elif frame["kind"] == "hello" and "Last-Event-ID" not in headers:
                        headers["Last-Event-ID"] = str(frame["head"] if after is None else after)
                    yield frame
            except _LOST as lost:
                if first:
                    raise self._away(lost) from lost
            except Unavailable:
                if first:
                    raise
            told("the stream was lost, connecting again")
            time.sleep(RETRY_S)

    def _frames(
        self, query: dict[str, int], headers: dict[str, str]
    ) -> Iterator[tuple[str | None, dict[str, Any]]]:
        timeout = httpx.Timeout(TIMEOUT_S, read=SILENCE_S)
        with self._client.stream(
            "GET", "/api/v1/sse", params=query, headers=headers, timeout=timeout
        ) as answer:
            if answer.is_error:
                answer.read()
                raise _error_of(answer)
            number: str | None = None
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    number = line.removeprefix("id: ")
                elif line.startswith("data: "):
                    yield number, json.loads(line.removeprefix("data: "))
                    number = None

    def _away(self, lost: Exception) -> Unavailable:
        return Unavailable(
            f"the API at {self._client.base_url} cannot be reached: {lost}",
            hint="start it with `optiinfra up`, or set OPTIINFRA_API_URL",
        )


@contextmanager
def signed_in(settings: Settings) -> Iterator[Api]:
    """The API that the settings name, else the one that `up` runs from this home.

    Raises `Unavailable` when there is neither, `Denied` without a token.
    """
    session = read_session(settings.home)
    url = settings.api_url or (session.url if session else None)
    if url is None:
        raise Unavailable(
            f"nothing runs from {settings.home}",
            hint="start it with `optiinfra up`, or set OPTIINFRA_API_URL and OPTIINFRA_TOKEN",
        )
    token = settings.token.get_secret_value() if settings.token else None
    if token is None and session is not None and session.url == url:
        token = session.token
    if token is None:
        raise Denied(f"there is no token for {url}", hint="set OPTIINFRA_TOKEN")
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        yield Api(client)


def _given(params: dict[str, object]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _error_of(answer: httpx.Response) -> OptiInfraError:
    try:
        problem = answer.json()
        detail, hint = str(problem["detail"]), problem.get("hint")
    except (ValueError, KeyError, TypeError):
        detail, hint = f"the API answered {answer.status_code}", None
    if answer.status_code in _ERRORS:
        return _ERRORS[answer.status_code](detail, hint=hint)
    kind = Rejected if answer.is_client_error else OptiInfraError
    return kind(detail, hint=hint)
