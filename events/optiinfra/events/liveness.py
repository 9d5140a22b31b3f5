"""Notices from a thread that the event loop is stuck, which nothing in the loop can notice."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Self


@dataclass(frozen=True, slots=True)
class Stuck:
    """The loop has not run for `seconds`; `where` is the stack of its thread."""

    seconds: float
    where: str


class Watchdog:
    """Calls `action` from its own thread when the loop has stood still for `limit_s` seconds.

    Once for each standstill. `action` reports, or ends the process for the supervisor; it must
    not wait for the loop. Use as an asynchronous context manager inside the loop that it watches.
    """

    def __init__(
        self,
        limit_s: float,
        action: Callable[[Stuck], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._action = action
        self._clock = clock
        self._seen_at = 0.0
        self._loop_thread = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._loop_thread = threading.get_ident()
        self._seen_at = self._clock()
        self._beating = asyncio.create_task(self._beat(), name="liveness")
        self._thread.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._stop.set()
        assert self._beating is not None
        self._beating.cancel()
        await asyncio.wait({self._beating})
        await asyncio.to_thread(self._thread.join)

    async def _beat(self) -> None:
        while True:
            self._seen_at = self._clock()
            await asyncio.sleep(self._limit_s / 8)

    def _watch(self) -> None:
        reported_at = -1.0
        while not self._stop.wait(self._limit_s / 4):
            seen_at = self._seen_at
            silent_s = self._clock() - seen_at
            if silent_s > self._limit_s and seen_at != reported_at:
                reported_at = seen_at
                self._action(Stuck(silent_s, self._stack()))

    def _stack(self) -> str:
        frames: dict[int, FrameType] = sys._current_frames()  # noqa: SLF001 - its only interface
        frame = frames.get(self._loop_thread)
        return "".join(traceback.format_stack(frame)) if frame else ""
