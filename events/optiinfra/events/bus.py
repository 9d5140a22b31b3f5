"""The connection to the broker: reconnects for ever, and tells who waits when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from nats.errors import Error
from nats.js import JetStreamContext

from optiinfra.events.bus_roles import inbox_of
from optiinfra.events.client import FastClient
from optiinfra.events.refusals import BROKER_ERRORS, described, translated
from optiinfra.schemas.errors import Rejected, Unavailable

log = logging.getLogger("optiinfra.events.bus")

T = TypeVar("T")
Callback = TypeVar("Callback", Callable[[], None], Callable[[str], None])
Credentials = Path | tuple[str, str]
"""A `.creds` file (needs the package `nkeys`), or a user with a password."""

CONNECT_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 2.0
PING_INTERVAL_S = 10
"""Twice without an answer, and the peer counts as dead: noticed within 30 s."""
RECONNECT_WAIT_S = 0.25
_VIOLATION = re.compile(
    r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE
)
_REMEMBERED = 64
_REFUSALS = ("authorization violation", "user authentication", "authentication expired")


class Bus:
    """One connection. Make it with `connect`; close it with `close`."""

    def __init__(self, url: str) -> None:
        self.shown_url = without_password(url)
        self.user: str | None = None
        """As whom it is signed in; None when that is not known (a `.creds` file)."""
        self.client = FastClient()
        self.js: JetStreamContext = self.client.jetstream(timeout=CALL_TIMEOUT_S)
        self._servers = [part.strip() for part in url.split(",") if part.strip()]
        self._attempts: set[asyncio.Timeout] = set()
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_close: list[Callable[[], None]] = []
        self._on_forbidden: list[Callable[[str], None]] = []
        self._forbidden: dict[str, float] = {}
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._last_error = ""

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        name: str,
        credentials: Credentials | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Bus:
        """A connection to the first of the servers in `url` (comma-separated) that answers.

        Raises `Unavailable` naming the URL without its password when none does within
        `timeout_s`, at once when the credentials are refused; `Rejected` for an unusable URL.
        """
        bus = cls(url)
        opening = asyncio.ensure_future(bus._open(name, credentials))
        try:
            outcomes: set[asyncio.Future[Any]] = {opening, bus._refused}
            await asyncio.wait(outcomes, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not (opening.done() and not opening.cancelled() and opening.exception() is None):
                await bus._give_up(opening)
        if bus.is_connected:
            return bus
        raise bus._not_connected(opening)

    async def _open(self, name: str, credentials: Credentials | None) -> None:
        user, password = credentials if isinstance(credentials, tuple) else (None, None)
        self.user = user or (None if credentials else _user_in(self._servers))
        await self.client.connect(
            servers=self._servers,
            name=name,
            error_cb=self._noticed_error,
            reconnected_cb=self._reconnected,
            disconnected_cb=self._disconnected,
            closed_cb=self._closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            drain_timeout=int(DRAIN_TIMEOUT_S),
            user=user,
            password=password,
            inbox_prefix=inbox_of(self.user),
            user_credentials=str(credentials) if isinstance(credentials, Path) else None,
        )

    async def _give_up(self, opening: asyncio.Future[None]) -> None:
        opening.cancel()
        await asyncio.wait({opening})
        with contextlib.suppress(*BROKER_ERRORS):
            await self.client.close()

    def _not_connected(self, opening: asyncio.Future[None]) -> Exception:
        if self._refused.done():
            return Unavailable(
                f"NATS at {self.shown_url} refused the credentials: {self._refused.result()}",
                hint="check the user, the password or the token of the NATS URL",
            )
        failed = None if opening.cancelled() else opening.exception()
        if isinstance(failed, (ValueError, TypeError, ImportError)) or self._is_bad_url(failed):
            return Rejected(f"{self.shown_url!r} cannot be used as a NATS address: {failed}")
        return Unavailable(
            f"NATS at {self.shown_url} does not answer: {self._last_error or 'timeout'}",
            hint="start the broker, or correct the NATS URL",
        )

    def _is_bad_url(self, failed: BaseException | None) -> bool:
        return isinstance(failed, Error) and "connect url" in str(failed).lower()

    @property
    def is_connected(self) -> bool:
        """Whether the broker can be reached now."""
        return bool(self.client.is_connected)

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over for good."""
        return bool(self.client.is_closed)

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` at each reconnection; gives what removes it."""
        return _registered(self._on_reconnect, callback)

    def on_close(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` once the connection is over for good; gives what removes it."""
        return _registered(self._on_close, callback)

    def on_forbidden(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Calls `callback` with each subject on which the broker lets us publish nothing, in lower
        case as the client gives it; gives what removes it. The broker says so beside everything
        else, and leaves the request without an answer.
        """
        return _registered(self._on_forbidden, callback)

    def forbidden(self, subject: str) -> Unavailable:
        """What it means that the broker does not let us publish `subject`."""
        return Unavailable(
            f"{self.user or 'this user'} may not publish {subject} on the broker",
            hint="give each role its own credential: optiinfra topology credentials",
        )

    async def connected(self, timeout_s: float) -> bool:
        """Waits up to `timeout_s` for the connection to stand; whether it does."""
        change = asyncio.Event()
        removers = (self.on_reconnect(change.set), self.on_close(change.set))
        try:
            if not self.is_connected and not self.is_closed:
                async with asyncio.timeout(timeout_s):
                    await change.wait()
        except TimeoutError:
            pass
        finally:
            for remove in removers:
                remove()
        return self.is_connected

    @contextlib.asynccontextmanager
    async def attempt(self, timeout_s: float) -> AsyncIterator[None]:
        """One try of a request: `TimeoutError` after `timeout_s`, or at once after a reconnection.

        What was asked on the old connection is never answered on the new one. A cancellation gets
        through also when it comes in the moment of the answer, in which `asyncio.wait_for` loses
        it (before Python 3.12): the task would go on for ever, as a `TaskGroup` cancels only once.
        """
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        async with asyncio.timeout(timeout_s) as limit:
            self._attempts.add(limit)
            try:
                yield
            finally:
                self._attempts.discard(limit)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError

    async def ask(
        self, call: Callable[[], Awaitable[T]], doing: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> T:
        """The answer of one call to the broker; its refusals come as errors of our own."""
        began_s = asyncio.get_running_loop().time()
        try:
            async with self.attempt(timeout_s):
                return await call()
        except BROKER_ERRORS as failed:
            for subject, at_s in tuple(self._forbidden.items()):
                if at_s >= began_s and isinstance(failed, TimeoutError):
                    raise translated(self.forbidden(subject), doing) from failed
            raise translated(failed, doing) from failed

    async def close(self) -> None:
        """Sends what is buffered and closes, within two seconds. Idempotent."""
        if self.is_closed:
            return
        if self.is_connected:
            with contextlib.suppress(*BROKER_ERRORS):
                async with asyncio.timeout(DRAIN_TIMEOUT_S):
                    await self.client.drain()
        with contextlib.suppress(*BROKER_ERRORS):
            await self.client.close()

    async def _noticed_error(self, error: Exception) -> None:
        said = described(error)
        if any(word in said.lower() for word in _REFUSALS) and not self._refused.done():
            self._refused.set_result(said)
        self._note_forbidden(said)
        repeated = said == self._last_error
        self._last_error = said
        log.log(logging.DEBUG if repeated else logging.WARNING, "nats: %s", said)

    def _note_forbidden(self, said: str) -> None:
        violation = _VIOLATION.search(said)
        if violation is None:
            return
        self._forbidden[violation[2].lower()] = asyncio.get_running_loop().time()
        if len(self._forbidden) > _REMEMBERED:
            del self._forbidden[next(iter(self._forbidden))]
        if violation[1].lower() == "publish":
            for callback in tuple(self._on_forbidden):
                callback(violation[2].lower())

    async def _disconnected(self) -> None:
        if not self.is_closed:
            log.warning("nats: disconnected from %s", self.shown_url)

    async def _reconnected(self) -> None:
        log.warning("nats: connected to %s again", self.shown_url)
        self._last_error = ""
        now = asyncio.get_running_loop().time()
        for limit in tuple(self._attempts):
            if not limit.expired():
                limit.reschedule(now)
        for callback in tuple(self._on_reconnect):
            callback()

    async def _closed(self) -> None:
        for callback in tuple(self._on_close):
            callback()


def _registered(callbacks: list[Callback], callback: Callback) -> Callable[[], None]:
    callbacks.append(callback)

    def remove() -> None:
        if callback in callbacks:
            callbacks.remove(callback)

    return remove


def _user_in(servers: list[str]) -> str | None:
    """The user in the first address, if it names one."""
    try:
        found = urlsplit(servers[0] if "://" in servers[0] else f"nats://{servers[0]}")
        return found.username
    except (ValueError, IndexError):
        return None


def without_password(url: str) -> str:
    """The URL (or comma-separated URLs) as it may be shown: scheme, host and port alone."""
    return ",".join(_shown(part.strip()) for part in url.split(","))


def _shown(url: str) -> str:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(an unreadable address)"
    return f"{parts.scheme}://{parts.hostname or ''}{port}"
