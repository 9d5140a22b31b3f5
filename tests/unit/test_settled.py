"""How far a snapshot is complete: never too far, and without asking the log when nothing is new."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import UTC, datetime, timedelta

from optiinfra.events.feed import Delivered, StreamState
from optiinfra.portal_api.live.frames import Frame
from optiinfra.portal_api.live.hub import Hub
from optiinfra.portal_api.live.settled import ASK_EVERY_S, GIVEN_UP_AFTER, Settled

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)


class Feed:
    async def state(self) -> StreamState:
        raise AssertionError

    async def follow(self, after: int) -> AsyncGenerator[Delivered, None]:
        raise AssertionError
        yield


class Log:
    """`during` is done while it is asked."""

    def __init__(self) -> None:
        self.written: set[str] = set()
        self.asked = 0
        self.during: Callable[[], None] = lambda: None

    async def logged(self, event_ids: Iterable[str]) -> set[str]:
        self.asked += 1
        self.during()
        return self.written & set(event_ids)


class Case:
    def __init__(self, events: int = 0) -> None:
        self.hub, self.log = Hub(Feed()), Log()
        self.now, self.elapsed = NOW, 0.0
        self.settled = Settled(self.hub, self.log, lambda: self.now, elapsed=lambda: self.elapsed)
        self.hub.epoch = "first"
        for _ in range(events):
            self.say()

    def say(self) -> None:
        self.hub.head += 1
        name = f"e{self.hub.head}"
        self.hub._ring.append(Frame(self.hub.head, "acme", name, NOW, ""))

    async def sequence_later(self) -> int:
        self.elapsed += ASK_EVERY_S
        return await self.settled.sequence()


async def test_the_log_is_not_asked_when_nothing_is_new() -> None:
    case = Case(2)
    case.log.written = {"e1", "e2"}
    assert [await case.settled.sequence() for _ in range(3)] == [2, 2, 2]
    assert case.log.asked == 1
    case.say()
    case.log.written.add("e3")
    assert await case.settled.sequence() == 3


async def test_while_events_wait_the_log_is_asked_now_and_then() -> None:
    case = Case(3)
    case.log.written = {"e1", "e3"}
    assert [await case.settled.sequence() for _ in range(3)] == [1, 1, 1]
    assert case.log.asked == 1
    case.log.written.add("e2")
    assert await case.sequence_later() == 3


async def test_what_never_comes_into_the_log_is_given_up() -> None:
    case = Case(2)
    assert await case.settled.sequence() == 0
    case.now += GIVEN_UP_AFTER - timedelta(seconds=1)
    assert await case.sequence_later() == 0
    case.now += timedelta(seconds=1)
    assert await case.sequence_later() == 2


async def test_a_stream_that_begins_anew_meanwhile_starts_at_its_floor() -> None:
    case = Case(2)
    case.log.written = {"e1", "e2"}
    case.log.during = lambda: case.hub._begin("second", 0)
    assert await case.settled.sequence() == 0
    assert await case.sequence_later() == 0
