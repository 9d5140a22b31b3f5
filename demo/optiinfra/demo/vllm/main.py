"""`optiinfra demo-vllm`: the loop on a real vLLM server, with its figures at the end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from optiinfra.demo.main import ended_by_signal, home_of_one_run
from optiinfra.demo.vllm.engine import default_folder, found, install, machine_words
from optiinfra.demo.vllm.story import Ask, Story, Wish
from optiinfra.demo.vllm.summary import Summary
from optiinfra.runtime.logs import configure_logs
from optiinfra.runtime.settings import Settings
from optiinfra.schemas.errors import Rejected


@dataclass(frozen=True, slots=True)
class VllmDemoOptions:
    """`yes` approves without asking; `vllm` is an executable that is there; `home` is kept."""

    yes: bool = False
    json: bool = False
    grid: bool = True
    runs: int = 1
    vllm: Path | None = None
    home: Path | None = None


def run(options: VllmDemoOptions) -> int:
    """0 when every figure is as promised, 1 when not, 130 after Ctrl-C.

    Raises `Rejected` for options that cannot be, `Unavailable` when a part does not start.
    """
    console = Console(stderr=options.json)
    if not options.yes and not (console.is_terminal and sys.stdin.isatty()):
        raise Rejected(
            "a person has to approve, and there is no terminal to ask on", hint="add --yes"
        )
    configure_logs(Settings(log_level="warning"))
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(Text(f"{time.monotonic() - began:6.0f} s  {text}"), soft_wrap=True)

    executable = found(options.vllm) or install(default_folder(), say)
    with home_of_one_run(options.home) as home:
        story = Story(Wish(executable, home, options.grid, options.runs), say, _asker(options))
        outcome = asyncio.run(ended_by_signal(story.play()))
    if isinstance(outcome, int):
        console.print("stopped; nothing is left behind", highlight=False)
        return outcome
    return _close(options, outcome, console)


def _close(options: VllmDemoOptions, summary: Summary, console: Console) -> int:
    line, complaints = summary.line(), list(summary.complaints())
    console.print(Text(f"on {machine_words()}: {summary.gain:.2f} times the tokens/s"))
    for name, value in line.items():
        console.print(Text(f"  {name}: {value}"), soft_wrap=True)
    for complaint in complaints:
        console.print(Text(f"NOT AS PROMISED: {complaint}", style="bold red"), soft_wrap=True)
    if options.json:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return 1 if complaints else 0


def _asker(options: VllmDemoOptions) -> Ask:
    async def ask(question: str) -> bool:
        if options.yes:
            return True
        answer = await asyncio.to_thread(input, f"{question} [y/N] ")
        return answer.strip().lower() in ("y", "yes")

    return ask
