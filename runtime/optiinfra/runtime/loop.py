"""Runs a process on the fastest event loop that is installed."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")
_YOUNG_OBJECTS = 150_000
"""New objects after which the garbage collector looks at them: more than the metrics in hand."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on uvloop where it is installed (not on Windows)."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(main)


def settle_heap() -> None:
    """What is loaded by now stays: the garbage collector need not look at it again.

    To be called once everything is open. Many small objects at once (a batch of metrics) else
    make it walk through all of the program, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        made: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return made
