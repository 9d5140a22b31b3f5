"""Pulls messages from a consumer of the broker into a callback, one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from enum import Enum, auto

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from optiinfra.events.bus import Bus
from optiinfra.events.refusals import BROKER_ERRORS

EXPIRES_S = 10.0
HEARTBEAT_S = 2.0
SILENT_AFTER_S = 5.0
"""More than two missed heartbeats: the request is lost."""


class Ended(Enum):
    """How a request for messages came to its end."""

    FILLED = auto()
    EXPIRED = auto()
    REFUSED = auto()
    """The consumer or its stream is gone, or the broker is not ready: look before asking again."""
    LOST = auto()
    """Silence or a reconnection: nobody knows of the request any more."""


class Pull:
    """Requests messages of one consumer; at most one request is under way.

    A core subscription gets them: an inbox of our own, with a token that tells a late status
    message of an earlier request from one of this. `on_message` must not block.
    """

    def __init__(
        self, bus: Bus, stream: str, consumer: str, on_message: Callable[[Msg], None]
    ) -> None:
        self._bus = bus
        self._ask_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._on_message = on_message
        self._inbox = bus.client.new_inbox()
        self._subscription: Subscription | None = None
        self._token = ""
        self._requests = 0
        self._missing = 0
        self._end: asyncio.Future[Ended] | None = None
        self.heard_at_s = 0.0
        """When the broker was heard last, or the connection was renewed, on the loop's clock."""
        self._removers: list[Callable[[], None]] = []
        self.heard = False
        """Whether the broker has answered the latest request with anything but a refusal."""

    async def open(self) -> None:
        """Listens on the inbox. Raises `Unavailable` when the connection is closed."""
        self._subscription = await self._bus.ask(
            lambda: self._bus.client.subscribe_direct(f"{self._inbox}.*", self._receive),
            "cannot subscribe",
        )
        self._removers = [
            self._bus.on_reconnect(self._renewed),
            self._bus.on_close(lambda: self._finish(Ended.LOST)),
        ]

    async def request(self, count: int) -> Ended:
        """Asks for up to `count` messages and waits until that request is over."""
        loop = asyncio.get_running_loop()
        self._end, self._missing, self.heard = loop.create_future(), count, False
        self._requests += 1
        self._token = f"{self._inbox}.{self._requests}"
        self.heard_at_s = loop.time()
        wanted = {
            "batch": count,
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
        try:
            await self._bus.client.publish(
                self._ask_subject, json.dumps(wanted).encode(), self._token
            )
            return await self._wait(self._end)
        except BROKER_ERRORS:
            return Ended.LOST
        finally:
            self._end, self._token = None, ""

    async def _wait(self, end: asyncio.Future[Ended]) -> Ended:
        loop = asyncio.get_running_loop()
        while not end.done():
            left = self.heard_at_s + SILENT_AFTER_S - loop.time()
            if left <= 0:
                return Ended.LOST
            await asyncio.wait({end}, timeout=left)
        return end.result()

    async def close(self) -> None:
        """Takes no more messages; those already under way still come to `on_message`."""
        for remove in self._removers:
            remove()
        if self._subscription is not None and self._bus.is_connected:
            with contextlib.suppress(*BROKER_ERRORS):
                async with asyncio.timeout(1.0):
                    await self._subscription.drain()  # type: ignore[no-untyped-call]
        if self._subscription is not None:
            with contextlib.suppress(*BROKER_ERRORS):
                await self._subscription.unsubscribe()
        self._subscription = None

    def _receive(self, message: Msg) -> None:
        self.heard_at_s = asyncio.get_running_loop().time()
        if message.subject.startswith(self._inbox):
            self._read_status(message)
            return
        self.heard = True
        self._missing -= 1
        self._on_message(message)
        if self._missing <= 0:
            self._finish(Ended.FILLED)

    def _read_status(self, message: Msg) -> None:
        if message.subject != self._token:
            return
        headers = message.headers or {}
        status, about = headers.get("Status", ""), headers.get("Description", "")
        if status == "100":
            self.heard = True
        elif status in ("404", "408") or "Batch Completed" in about:
            self.heard = True
            self._finish(Ended.EXPIRED)
        else:
            self._finish(Ended.REFUSED)

    def _renewed(self) -> None:
        self.heard_at_s = asyncio.get_running_loop().time()
        self._finish(Ended.LOST)

    def _finish(self, how: Ended) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(how)
