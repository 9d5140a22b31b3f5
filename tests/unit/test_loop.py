"""Processes run on uvloop where it is installed, else on asyncio's own loop."""

from __future__ import annotations

import asyncio
import sys

import pytest

from optiinfra.runtime.loop import run


async def _name() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_the_faster_loop_is_taken_where_there_is_one() -> None:
    assert run(_name()).startswith("uvloop")


def test_without_it_the_plain_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert run(_name()).startswith("asyncio")
