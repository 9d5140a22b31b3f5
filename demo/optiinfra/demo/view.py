"""How the story is shown: a live view on a terminal, plain lines elsewhere, numbers at the end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from optiinfra.demo.narration import Spoken
from optiinfra.demo.scenario import STAGE_OF, Play
from optiinfra.demo.summary import BeforeAfter, Summary

_STYLES = {"good": "green", "bad": "red", "ask": "bold yellow", "dim": "dim", "plain": ""}
_KEPT_LINES = 200
_HEADLINE = "OptiInfra demo: a simulated cloud with emulated engines; everything else is real"


class View:
    """Everything that a person sees; on a terminal it repaints four times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._lines: deque[tuple[float, Spoken]] = deque(maxlen=_KEPT_LINES)
        self._states: Mapping[Play, str] = {}
        self._load: Mapping[str, Any] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = self._new_live()
            self._live.start()
        else:
            self._console.print(_HEADLINE, highlight=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, spoken: Spoken) -> None:
        """One line, now."""
        at_s = time.monotonic() - self._began
        self._lines.append((at_s, spoken))
        if self._live is None:
            self._console.print(_line(at_s, spoken), soft_wrap=True)

    def link(self, text: str) -> None:
        """A line that stays above whatever is repainted, and is never cut: it is to be opened."""
        self._console.print(Text(text, style="bold"), soft_wrap=True)

    def plays(self, states: Mapping[Play, str]) -> None:
        """How the plays stand."""
        self._states = dict(states)

    def load(self, counts: Mapping[str, Any]) -> None:
        """What the users have seen."""
        self._load = counts

    async def ask(self, question: str) -> bool:
        """A person's yes or no, read from the terminal without holding anything up."""
        if self._live is not None:
            self._live.stop()
        try:
            while True:
                self._console.print(Text(f"{question} [y/n] ", style="bold yellow"), end="")
                answer = (await _typed_line()).strip().lower()
                if answer in {"y", "yes", "n", "no"}:
                    return answer.startswith("y")
        finally:
            if self._live is not None:
                self._live = self._new_live()
                self._live.start()

    def _new_live(self) -> Live:
        return Live(
            get_renderable=self._screen,
            console=self._console,
            refresh_per_second=4,
            vertical_overflow="crop",
        )

    def _screen(self) -> RenderableType:
        table = Table(expand=True, box=None, pad_edge=False)
        for column in ("play", "deployment", "stands at"):
            table.add_column(column, no_wrap=True)
        for play, state in self._states.items():
            table.add_row(play.value, STAGE_OF[play].deployment, state)
        room = max(5, self._console.size.height - len(self._states) - 9)
        told = [_line(at_s, spoken) for at_s, spoken in list(self._lines)[-room:]]
        for text in told:
            text.no_wrap, text.overflow = True, "ellipsis"
        return Group(
            Panel(Group(Text(self._status()), table), title=_HEADLINE),
            *told,
        )

    def _status(self) -> str:
        elapsed = time.monotonic() - self._began
        load = self._load
        if not load:
            return f"{elapsed:.0f} s"
        return (
            f"{elapsed:.0f} s · requests served {load.get('served', 0)}, failed"
            f" {load.get('failed', 0)}, truncated {load.get('truncated', 0)}, under way"
            f" {load.get('under_way', 0)}"
        )


def closing_table(summary: Summary) -> Table:
    """The summary for people."""
    table = Table(title="What it came to", show_header=True, title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column)
    for name, pair, pattern in (
        ("spend, $/h (simulated prices)", summary.usd_per_hour, "{:.3f}"),
        ("TTFT p95, s (chat)", summary.ttft_p95_s, "{:.3f}"),
        ("TPOT p95, s (chat)", summary.tpot_p95_s, "{:.4f}"),
        ("answer quality, 0-1 (chat)", summary.quality, "{:.3f}"),
    ):
        table.add_row(name, *_pair(pair, pattern))
    return table


def closing_lines(summary: Summary) -> list[str]:
    """What does not fit a before and after."""
    requests, taken = summary.requests, summary.decision_s
    interval = summary.quality.interval
    plays = ", ".join(f"{play} {state or 'not played'}" for play, state in summary.plays.items())
    verified = "verified" if summary.audit_ok else "BROKEN"
    lines = [f"plays: {plays}"]
    if interval is not None:
        low, high = interval
        lines.append(f"quality difference, after - before: {low:+.3f} to {high:+.3f}")
    lines.append(
        f"requests: {requests.served} served, {requests.failed} failed,"
        f" {requests.truncated} truncated (the gateway's counters)"
    )
    median, p95 = _number(taken.median, "{:.1f}"), _number(taken.p95, "{:.1f}")
    lines.append(f"decisions: median {median} s, p95 {p95} s from proposal to last vote")
    lines.append(f"event log: {summary.events} events, hash chains {verified}; seed {summary.seed}")
    return lines


def _pair(pair: BeforeAfter, pattern: str) -> Sequence[str]:
    return _number(pair.before, pattern), _number(pair.after, pattern)


def _number(value: float | None, pattern: str) -> str:
    return "–" if value is None else pattern.format(value)


def _line(at_s: float, spoken: Spoken) -> Text:
    text = Text(f"{at_s:6.1f} s  {spoken.about:<8} ", style="dim")
    return text.append(spoken.text, style=_STYLES[spoken.tone] or "default")


async def _typed_line() -> str:
    """One line from the terminal; "n" when there will be no more."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        if not typed.done():
            typed.set_result(sys.stdin.readline() or "n")

    loop.add_reader(sys.stdin.fileno(), read)
    try:
        return await typed
    finally:
        with suppress(ValueError):
            loop.remove_reader(sys.stdin.fileno())
