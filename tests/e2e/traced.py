"""Follows every number that a page shows back to an answer of the API, for tests.

A page is given answers with other numbers in them: a whole number n is n + 7,000, any other v is
1,000 (1 + v), so that order and equality stay. What a page makes of an answer is large then; a
number that somebody has written into a page stays as it is, and nothing explains it. Explained are

- numbers of an answer, in the page's units, rounded as far as they are shown;
- whole texts of an answer (names, reasons, versions), as they are or as `words` makes them;
- times of an answer: a clock, a day, or how long ago it is;
- places in a list, which pages count from one;
- what a page computes itself, and phrases that are no figures, by name (`tests.e2e.computed`).

The live stream brings a page no number: an event makes it ask again.

Looked at is the text of the page's main part. Not looked at: what is drawn (its numbers stand in
the chart's table), the word "simulated" beside a number, fields to be filled in with the numbers
of their lines, and details while they are closed.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Page, Route

from tests.e2e.computed import COMPUTED, PHRASES

WHOLE, PART = 7_000, 1_000.0
ORDERS = {"depth", "row"}
"""Numbers that say where something stands, which a page reads and does not show."""
UNITS = {
    None: 1.0, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3_600.0, "days": 86_400.0, "%": 0.01,
    "GiB": 2.0**30,
}  # fmt: skip
ROUNDED = 0.7
"""Of the last digit that is shown: some numbers are rounded twice."""
SHORT = 8
"""Digits of a name that is cut short; a text that is a shorter number explains nothing."""
LATE_S = 12.0
"""How old a "4 min ago" may be before the page says it anew."""
READ = """() => {
  const main = document.getElementById("main");
  const times = [...main.querySelectorAll("time[datetime]")]
    .filter((one) => one.checkVisibility())
    .map((one) => [one.getAttribute("datetime"), one.innerText]);
  const apart = [...main.querySelectorAll(
    "svg, .recharts-wrapper, [data-simulated], time[datetime], ol[aria-hidden]"
  )];
  for (const one of apart) one.style.display = "none";
  const text = main.innerText;
  for (const one of apart) one.style.removeProperty("display");
  return [text, times];
}"""
_UNIT = r"(?: (?P<unit>ms|s|min|h|days|%|GiB)(?!\w))?"
_FIGURE = re.compile(
    rf"[±−-]?\$?[−-]?(?P<digits>\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?)(?:/h|/s|/month)?{_UNIT}"
)
_WORD = re.compile(rf"(?P<until>\bin )?(?P<word>\S*\d\S*{_UNIT})(?P<ago> ago)?")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)")
_ID = re.compile(r"[0-9a-f]{32}")
_CLOCK = re.compile(r"\d{4}-\d\d-\d\d|(?:\d{1,2} [A-Z][a-z]+ )?\d\d:\d\d:\d\d")


def other(node: Any, name: str = "") -> Any:
    """An answer with other numbers in it."""
    match node:
        case bool() | str() | None:
            return node
        case int():
            return node if name in ORDERS else node + WHOLE
        case float():
            return PART * (1 + node)
        case dict():
            return {key: other(part, key) for key, part in node.items()}
        case _:
            return [other(part) for part in node]


class Answers:
    """What a page was answered, by path and query."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[Any]] = {}

    async def give(self, route: Route) -> None:
        """Answers as the API does, with other numbers."""
        if route.request.method != "GET":
            await route.continue_()
            return
        answer = await route.fetch()
        if answer.headers.get("content-type", "").startswith("application/json"):
            body = other(await answer.json())
            at = urlsplit(route.request.url)
            path = f"{at.path.removeprefix('/api/v1')}?{at.query}"
            self.bodies.setdefault(path, []).append(body)
            await route.fulfill(response=answer, json=body)
        else:
            await route.fulfill(response=answer)

    def of(self, beginning: str) -> list[Any]:
        """Those on paths that begin so; any of them may be what is shown now."""
        found = [bodies for path, bodies in self.bodies.items() if path.startswith(beginning)]
        return [body for bodies in found for body in bodies]


@dataclass(frozen=True)
class Known:
    """All that answers say."""

    said: frozenset[Any]

    @classmethod
    def of(cls, answers: Answers) -> Known:
        return cls(frozenset(leaf for body in answers.of("/") for leaf in _leaves(body)))

    @cached_property
    def numbers(self) -> list[float]:
        return sorted(abs(one) for one in self.said if not isinstance(one, str))

    @cached_property
    def moments(self) -> dict[str, datetime]:
        said = (one for one in self.said if isinstance(one, str) and _MOMENT.fullmatch(one))
        return {one: datetime.fromisoformat(one) for one in said}

    @cached_property
    def clocks(self) -> set[str]:
        at = [one.astimezone(UTC) for one in self.moments.values()]
        forms = ("%Y-%m-%d", "%H:%M:%S", "%-d %b %H:%M:%S")
        return {one.strftime(form) for one in at for form in forms}

    @cached_property
    def texts(self) -> list[str]:
        """Those that have a digit and are more than a short number, the longest first."""
        found: set[str] = set()
        for one in (one for one in self.said if isinstance(one, str)):
            as_json = json.dumps(one, ensure_ascii=False)[1:-1]
            for line in (*one.split("\n"), as_json):
                plain = line.replace("_", " ")
                found |= {line, plain, re.sub(r" (s|fraction|per s)$", "", plain)}
                found |= {line[:SHORT]} if _ID.fullmatch(line) else set()
        numbers = {one for one in found if len(one) < SHORT and _FIGURE.fullmatch(one)}
        return sorted((one for one in found - numbers if re.search(r"\d", one)), key=len)[::-1]

    def has(self, digits: str, unit: str | None) -> bool:
        """Whether a number of an answer reads so."""
        if near(digits, self.numbers, UNITS[unit]):
            return True
        place = digits.replace(",", "")
        return unit is None and place.isdigit() and near(str(int(place) - 1), self.numbers)

    def ago(self, count: int, unit: str | None, now: datetime) -> bool:
        """Whether something that an answer names is as long ago, or as far away."""
        step = UNITS[unit]
        away = (abs((now - at).total_seconds()) for at in self.moments.values())
        return any(abs(s - count * step) <= step / 2 + LATE_S for s in away)


def near(digits: str, numbers: Iterable[float], scale: float = 1.0) -> bool:
    """Whether any of them reads so when it is rounded as far as `digits` are."""
    value = Decimal(digits.replace(",", ""))
    place = value.as_tuple().exponent
    assert isinstance(place, int)
    wide = ROUNDED * 10.0**place * scale
    low, high = abs(float(value)) * scale - wide, abs(float(value)) * scale + wide
    ordered = numbers if isinstance(numbers, list) else sorted(numbers)
    first = bisect_left(ordered, low)
    return first < len(ordered) and ordered[first] <= high


def _leaves(node: Any) -> Iterator[Any]:
    """Every number and text of an answer, the names of its parts too."""
    match node:
        case dict():
            for key, part in node.items():
                yield key
                yield from _leaves(part)
        case list():
            for part in node:
                yield from _leaves(part)
        case None | bool():
            return
        case _:
            yield node


@dataclass(frozen=True)
class Traced:
    """How many numbers of a page were explained, and those that were not, with their lines."""

    explained: int
    invented: list[str]


async def traced(page: Page, answers: Answers) -> Traced:
    text, times = await page.evaluate(READ)
    now, known = datetime.now(UTC), Known.of(answers)
    wrong = [f"{shown} of {at}" for at, shown in times if not _told(at, shown, known, now)]
    left = _without_computed(text, answers)
    for one in (*known.texts, *PHRASES):
        if one in left:
            left = re.sub(rf"(?<![\w.]){re.escape(one)}(?!\w)", _blank, left)
    left = _CLOCK.sub(lambda found: _blank(found) if _is_clock(found[0], known) else found[0], left)
    words = 0
    for line in left.split("\n"):
        for found in _WORD.finditer(line):
            words += 1
            if not _explains(found, known, now):
                wrong.append(f"{found['word']!r} in {line.strip()!r}")
    return Traced(words + len(times) - len(wrong), wrong)


def _blank(found: re.Match[str]) -> str:
    return " " * len(found[0])


def _without_computed(text: str, answers: Answers) -> str:
    """The text less what the page computed rightly."""
    right = [
        found.span(1)
        for where, computed in COMPUTED
        for found in re.finditer(where, text)
        if near(found[1], computed(answers))
    ]
    for begin, end in right:
        text = text[:begin] + " " * (end - begin) + text[end:]
    return text


def _told(at: str, shown: str, known: Known, now: datetime) -> bool:
    """Whether an element that names its time reads as that time does, and an answer has it."""
    moment = known.moments.get(at)
    if moment is None:
        return False
    if re.fullmatch(r"\d\d:\d\d:\d\d", shown):
        return shown == moment.astimezone(UTC).strftime("%H:%M:%S")
    alone = Known(frozenset({at}))
    found = _WORD.fullmatch(shown)
    return alone.ago(0, "s", now) if found is None else _explains(found, alone, now)


def _is_clock(shown: str, known: Known) -> bool:
    return re.sub(r"([A-Z][a-z]{2})[a-z]+", r"\1", shown) in known.clocks


def _explains(found: re.Match[str], known: Known, now: datetime) -> bool:
    figure = _FIGURE.fullmatch(found["word"].strip("()[]{}\"'·,;:.→×="))
    if figure is None:
        return False
    digits, unit = figure["digits"], figure["unit"]
    if known.has(digits, unit):
        return True
    relative = found["until"] or found["ago"]
    return bool(relative) and digits.isdigit() and known.ago(int(digits), unit, now)
