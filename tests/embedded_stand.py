"""A home for embedded servers, and what to ask of their processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from optiinfra.storage.testing.servers import reachable_home

PATIENCE_S = 20.0


@pytest.fixture
def home() -> Iterator[Path]:
    with reachable_home() as home:
        yield home


def until(condition: Callable[[], bool], what: str) -> None:
    """Asks again and again: processes of their own tell nobody."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
