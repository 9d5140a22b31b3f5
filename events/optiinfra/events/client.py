"""The broker's client: headers read and written faster, messages handed on without a task."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

_NAME = re.compile(r"[!-9;-~]*")
"""Printable ASCII without blanks and without the colon; none at all is a name to the client."""
_WRITABLE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A header's name as the client lets it go out."""


_STATUS_LINE = b"NATS/1.0\r\n"
_SEEN_WRITABLE: set[str] = set()
_SEEN_READABLE: set[str] = set()
_MOST_SEEN = 256


def _remember(seen: set[str], names: Iterable[str]) -> None:
    """Keeps names that have passed; no more than a bounded number, whoever sends them."""
    if len(seen) < _MOST_SEEN:
        seen.update(names)


Receive = Callable[[Msg], None]


class FastClient(Client):
    """Replaces what costs most of a message: the check of each character of each header's name,
    the writing of headers byte by byte, and the queue and the task between socket and callback.

    The results are the same (tests compare them). A version of the client that no longer calls
    the methods that are replaced here is only slower.
    """

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[int, Receive] = {}

    async def subscribe_direct(self, subject: str, receive: Receive) -> Subscription:
        """Subscribes a callback that must not block; it is called while the socket is read."""

        async def hear(message: Msg) -> None:
            receive(message)

        subscription = await self.subscribe(
            subject, cb=hear, pending_msgs_limit=1 << 20, pending_bytes_limit=1 << 30
        )
        self._direct[subscription._id] = receive  # noqa: SLF001 - the client's own number of it
        return subscription

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        receive = self._direct.get(sid)
        if receive is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        if sid not in self._subs:
            del self._direct[sid]
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        if headers and headers.startswith(_STATUS_LINE):
            read = self._parse_header_lines(headers[len(_STATUS_LINE) :]) or None
        else:
            read = await self._process_headers(headers)
        try:
            receive(self._build_message(sid, subject, reply, data, read))
        except Exception as failed:  # noqa: BLE001 - what fails here must not end the reading
            await self._error_cb(failed)

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,
        headers: dict[str, Any] | None,
    ) -> None:
        if not headers or not self._may_write(headers):
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        lines = "\r\n".join([f"{name}: {value.strip()}" for name, value in headers.items()])
        if lines.count("\n") + lines.count("\r") != 2 * len(headers) - 2:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        head = b"NATS/1.0\r\n" + lines.encode() + b"\r\n\r\n"
        sizes = f"{len(head)} {len(head) + payload_size}"
        address = f"{subject} {reply}" if reply else subject
        command = b"".join((f"HPUB {address} {sizes}\r\n".encode(), head, payload, b"\r\n"))
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(command)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _may_write(self, headers: dict[str, Any]) -> bool:
        """Whether all names may go out; the same few come again and again."""
        if _SEEN_WRITABLE.issuperset(headers):
            return True
        if not all(map(_WRITABLE.fullmatch, headers)):
            return False
        _remember(_SEEN_WRITABLE, headers)
        return True

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                name = name.strip()
                if name in _SEEN_READABLE:
                    found[name] = value.strip()
                elif _NAME.fullmatch(name):
                    found[name] = value.strip()
                    _remember(_SEEN_READABLE, (name,))
        return found

    async def _flush_pending(self, force_flush: bool = False) -> Any:  # noqa: FBT001 - theirs
        """nats-py 2.16 swallows a cancellation that comes while it hands bytes to its writer.

        The cancelled task would go on for ever, for a `TaskGroup` cancels each task only once.
        """
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        flushed = await super()._flush_pending(force_flush)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return flushed
