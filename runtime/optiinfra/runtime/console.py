"""What the command line prints: data on stdout, progress on stderr, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

UNKNOWN = "–"


def say(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def data(value: object) -> None:
    """One JSON value on a line of its own."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def line(text: str) -> None:
    """One line of data."""
    print(text, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal; tab-separated lines elsewhere, so that programs can read them."""
    shown = [[UNKNOWN if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in (list(columns), *shown):
            line("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        drawn.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in shown:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def age(at: str) -> str:
    """How long ago a time was: `12 s`, `5 min`, `3 h`, `2 d`."""
    seconds = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds())
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def saving(proposal: Mapping[str, Any]) -> str:
    """Dollars per month as a range; unknown is never 0."""
    interval = proposal.get("saving_usd_per_month")
    if interval is None:
        return UNKNOWN
    return f"${interval['low']:,.0f}…{interval['high']:,.0f}"


def event_line(event: Mapping[str, Any]) -> str:
    """One event for people: when, what, of which change, and its gist."""
    fact = event["fact"]
    gist = ", ".join(
        f"{name}={fact[name]}"
        for name in ("verdict", "by", "agent", "stage", "look", "reason", "detail")
        if fact.get(name) not in (None, "")
    )
    inner = fact.get("vote") or fact.get("answer") or fact.get("approval") or {}
    who = inner.get("agent") or inner.get("assessor") or (inner.get("by") or {}).get("name")
    said = " ".join(str(part) for part in (who, inner.get("verdict")) if part)
    change = str(event.get("chain") or event.get("correlation") or "")[:8]
    return f"{event['at'][11:23]}  {event['kind']:<24} {change:<8}  {said or gist}".rstrip()
