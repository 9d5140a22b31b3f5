"""A person may answer the demo at the terminal or in the browser, whichever comes first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from rich.console import Console

from optiinfra.demo.scenario import Play
from optiinfra.demo.show import Show
from optiinfra.demo.view import View
from optiinfra.schemas.errors import Unavailable


class Terminal(View):
    """Answers once `answer` has a result."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def ask(self, question: str) -> bool:
        return await self.answer


class Awaited:
    """Says in turn what it was given; the last word stands."""

    def __init__(self, *told: bool | Unavailable) -> None:
        self._told = list(told)

    async def is_awaited(self, change: str) -> bool:
        word = self._told.pop(0) if len(self._told) > 1 else self._told[0]
        if isinstance(word, Unavailable):
            raise word
        return word


def show(view: View, folder: Path) -> Show:
    return Show([Play.MIGRATION], view, home=folder, fast=True, seed=1)


async def test_the_answer_at_the_terminal_counts(tmp_path: Path) -> None:
    view = Terminal()
    view.answer.set_result(False)
    api: Any = Awaited(True)
    assert await show(view, tmp_path)._asked("c", "Move it", api) is False


async def test_what_was_decided_elsewhere_ends_the_question(tmp_path: Path) -> None:
    view = Terminal()
    api: Any = Awaited(Unavailable("starting"), False)
    assert await show(view, tmp_path)._asked("c", "Move it", api) is None
    assert view.answer.cancelled()
