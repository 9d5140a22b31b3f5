"""Blocking clients behind threads of their own, so that no event loop waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from optiinfra.schemas.errors import Unavailable

Result = TypeVar("Result")


class OwnerThread:
    """Runs calls one after another (`threads` at once, where the client allows it)."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._closed = False

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` on the thread; a cancelled caller does not interrupt it."""
        if self._closed:
            raise Unavailable("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def aclose(self, last: Callable[[], None]) -> None:
        """Run `last` after all that was asked before, then end the thread. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, last)
        finally:
            self._executor.shutdown(wait=False)
