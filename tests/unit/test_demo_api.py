"""The story asks the API once more when no answer comes, and acts once."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from optiinfra.demo.api import PublicApi, Verified
from optiinfra.runtime.session import Session
from optiinfra.schemas.errors import Unavailable


def answering(*answers: httpx.Response | Exception) -> tuple[PublicApi, list[str]]:
    """An API that gives these in turn, and what it was asked."""
    asked: list[str] = []
    left = iter(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    session = Session(url="http://127.0.0.1:1", token="t")
    return PublicApi(session, httpx.MockTransport(handle)), asked


@pytest.mark.parametrize(
    "first", [lambda: httpx.ReadTimeout("slow"), lambda: httpx.Response(503, text="busy")]
)
async def test_a_question_without_an_answer_is_asked_once_more(
    first: Callable[[], httpx.Response | Exception],
) -> None:
    api, asked = answering(first(), httpx.Response(200, json={"ok": True, "events": 7}))
    async with api:
        assert await api.verify() == Verified(ok=True, events=7)
    assert asked == ["GET", "GET"]


async def test_an_api_that_stays_away_is_said_and_a_decision_is_never_repeated() -> None:
    api, asked = answering(*(httpx.ConnectError("away") for _ in range(3)))
    async with api:
        with pytest.raises(Unavailable, match="did not get through"):
            await api.verify()
        with pytest.raises(Unavailable, match="did not get through"):
            await api.decide("a" * 32, "v", approve=True, reason="r")
    assert asked == ["GET", "GET", "POST"]
