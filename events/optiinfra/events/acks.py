"""Sends messages that a stream acknowledges, many at once, with one wait for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import APIError, NoStreamResponseError
from pydantic_core import from_json

from optiinfra.events.bus import Bus
from optiinfra.events.refusals import BROKER_ERRORS

_NO_RESPONDERS = "503"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message as it goes out."""

    subject: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class _Round:
    """Messages that were sent together: what was answered so far, and the end of the waiting."""

    done: asyncio.Future[None]
    messages: Sequence[Outgoing]
    tokens: dict[str, int] = field(default_factory=dict)
    answers: dict[int, int | Exception] = field(default_factory=dict)


class Acks:
    """An inbox of our own for the acknowledgements of a stream.

    One subscription, no task and no timer a message: that is most of what a single request costs.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._prefix = ""
        self._opening = asyncio.Lock()
        self._subscription: Subscription | None = None
        self._number = 0
        self._rounds: dict[str, _Round] = {}

    async def send(
        self, messages: Sequence[Outgoing], timeout_s: float
    ) -> dict[int, int | Exception]:
        """Sends all in order and waits until each is answered, at most `timeout_s`.

        Gives, by position, the stream's sequence or the broker's refusal; what is missing was not
        answered in time, or the connection was renewed before it was.
        """
        await self._open()
        sent = _Round(asyncio.get_running_loop().create_future(), messages)
        try:
            async with self._bus.attempt(timeout_s):
                for position, message in enumerate(messages):
                    await self._send_one(sent, position, message)
                if sent.tokens:
                    await sent.done
        except TimeoutError:
            pass
        finally:
            for token in sent.tokens:
                self._rounds.pop(token, None)
        return sent.answers

    async def _send_one(self, sent: _Round, position: int, message: Outgoing) -> None:
        self._number += 1
        token = str(self._number)
        sent.tokens[token] = position
        self._rounds[token] = sent
        reply = f"{self._prefix}.{token}"
        try:
            await self._bus.client.publish(
                message.subject, message.body, reply, headers=message.headers
            )
        except BROKER_ERRORS as failed:
            self._answered(token, failed)

    async def _open(self) -> None:
        async with self._opening:
            if self._subscription is None:
                prefix = self._bus.client.new_inbox()
                self._subscription = await self._bus.client.subscribe_direct(
                    f"{prefix}.*", self._receive
                )
                self._prefix = prefix
                self._bus.on_forbidden(self._refuse)

    def _refuse(self, subject: str) -> None:
        """What we may not publish is never answered; the broker says no more than the subject."""
        for token, sent in tuple(self._rounds.items()):
            asked = sent.messages[sent.tokens[token]].subject
            if asked.lower() == subject:
                self._answered(token, self._bus.forbidden(asked))

    def _receive(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if (message.headers or {}).get("Status") == _NO_RESPONDERS:
            self._answered(token, NoStreamResponseError())
        else:
            self._answered(token, _read(message.data))

    def _answered(self, token: str, answer: int | Exception) -> None:
        sent = self._rounds.pop(token, None)
        if sent is None:
            return
        sent.answers[sent.tokens.pop(token)] = answer
        if not sent.tokens and not sent.done.done():
            sent.done.set_result(None)


def _read(answer: bytes) -> int | Exception:
    try:
        said = from_json(answer)
        if "error" in said:
            APIError.from_error(said["error"])  # raises, by kind
        return int(said["seq"])
    except APIError as refused:
        return refused
    except (ValueError, KeyError, TypeError):
        return ValueError(f"the broker's answer cannot be read: {answer[:200]!r}")
