"""`optiinfra demo`: a simulated cloud, its users and OptiInfra itself play four plays."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from optiinfra.demo.scenario import LETTERS
from optiinfra.demo.show import Show, Verdict
from optiinfra.demo.view import View, closing_lines, closing_table
from optiinfra.schemas.errors import OptiInfraError, Rejected

T = TypeVar("T")
_SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`fast` shortens every wait; `yes` approves without asking; `home` is kept, else nothing is.

    `play` is a, b, c, d or all.
    """

    fast: bool = False
    yes: bool = False
    json: bool = False
    seed: int = 7
    home: Path | None = None
    play: str = "all"


def run(options: DemoOptions) -> int:
    """Plays the story. 0 when it ended as told, 1 when not, 130 after Ctrl-C.

    Raises `Rejected` for options that cannot be.
    """
    if options.play not in LETTERS:
        raise Rejected(f"there is no play {options.play!r}", hint=f"one of {', '.join(LETTERS)}")
    console = Console(stderr=options.json)
    if not options.yes and not (console.is_terminal and sys.stdin.isatty()):
        raise Rejected(
            "a person has to approve, and there is no terminal to ask on", hint="add --yes"
        )
    with home_of_one_run(options.home) as home:
        outcome = asyncio.run(ended_by_signal(_shown(options, home, console)))
    if isinstance(outcome, int):
        console.print("stopped; nothing is left behind", highlight=False)
        return outcome
    _close(options, outcome, console, home)
    return 0 if not outcome.complaints else 1


async def ended_by_signal(work: Coroutine[Any, Any, T]) -> T | int:
    """What `work` gives, or the exit status of the signal that ended it. The first one counts."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    ended_by: list[int] = []

    def stop(number: signal.Signals) -> None:
        if not ended_by:
            ended_by.append(_SIGNALS[number])
            task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not ended_by:
            raise
        return ended_by[0]


async def _shown(options: DemoOptions, home: Path, console: Console) -> Verdict:
    try:
        with View(console) as view:
            plays = LETTERS[options.play]
            show = Show(plays, view, home=home, fast=options.fast, seed=options.seed)
            return await show.play(approve_all=options.yes)
    except* OptiInfraError as failed:
        raise _first(failed) from None


def _first(failed: BaseExceptionGroup[BaseException]) -> OptiInfraError:
    """The error to tell of a group."""
    leaf: BaseException = failed
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, OptiInfraError)
    return leaf


@contextmanager
def home_of_one_run(given: Path | None) -> Iterator[Path]:
    """A folder of this run's own; one that nobody named is taken away at the end."""
    if given is not None:
        home = given.expanduser().absolute() / f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        home.mkdir(parents=True)
        yield home
        return
    home = Path(tempfile.mkdtemp(prefix="optiinfra-demo-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _close(options: DemoOptions, verdict: Verdict, console: Console, home: Path) -> None:
    summary = verdict.summary
    console.print(closing_table(summary))
    for line in closing_lines(summary):
        console.print(Text(line))
    console.print(Text(_replay_hint(options, verdict, home)), soft_wrap=True)
    for complaint in verdict.complaints:
        console.print(Text(f"NOT AS TOLD: {complaint}", style="bold red"), soft_wrap=True)
    if options.json:
        sys.stdout.write(json.dumps(summary.model_dump(mode="json")) + "\n")
        sys.stdout.flush()


def _replay_hint(options: DemoOptions, verdict: Verdict, home: Path) -> str:
    if options.home is None:
        return "to replay a run's events afterwards, keep its home: add --home DIR"
    changes = "".join(f"\n  {play}: --change {change}" for play, change in verdict.changes.items())
    return (
        f"to replay: optiinfra --home {home} up --config {home / 'replay.yaml'}\n"
        f"and beside it: optiinfra --home {home} events replay --change ID{changes}"
    )
