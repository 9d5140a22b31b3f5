"""What `doctor` finds: good, doubtful or bad, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

from optiinfra.schemas.errors import OptiInfraError

_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, what to do, and why it matters."""

    level: Level
    what: str
    said: str
    todo: str = ""
    why: str = ""


def failed(what: str, error: OptiInfraError, level: Level = Level.FAIL) -> Finding:
    """The finding that an error of ours stands for, without secrets."""
    return Finding(level, what, public(error.message), public(error.hint or ""))


def public(text: str) -> str:
    """The text without user and password in its URLs."""
    return _USERINFO.sub("", text)


def checked(what: str, check: Callable[[], str]) -> Finding:
    """What a check says, or why it fails."""
    try:
        return Finding(Level.OK, what, check())
    except OptiInfraError as error:
        return failed(what, error)


@contextmanager
def checking(found: list[Finding], what: str, todo: str = "") -> Iterator[Callable[[str], None]]:
    """Adds one finding: what the block says at last, or why it fails.

    `todo` is what to do about a failure that does not say so itself.
    """
    words = ["it answers"]
    try:
        yield words.append
    except OptiInfraError as error:
        bad = failed(what, error)
        found.append(bad if bad.todo else replace(bad, todo=todo))
    else:
        found.append(Finding(Level.OK, what, words[-1]))
