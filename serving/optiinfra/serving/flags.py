"""Flags of engines by version: which one a knob becomes, what it takes, what the engine says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import Self

from pydantic import Field, model_validator

from optiinfra.schemas.base import Value
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.errors import NotFound
from optiinfra.serving.versions import Version, parse_version, within

_TABLES = files("optiinfra.serving") / "data" / "engines"
_INVOCATION = re.compile(r"^ {2,4}(-\S.*?)(?: {2,}\S.*)?$")
_FLAG = re.compile(r"(?<![\w-])--[a-z0-9][a-z0-9-]*")
_CHOICES = re.compile(r"\{([^}]*)\}")


class Form(StrEnum):
    """How a knob is written."""

    POSITION = "position"
    """The value alone, first of all."""
    VALUE = "value"
    """`--flag VALUE`."""
    SWITCH = "switch"
    """`--flag` when true; nothing when false, which is the engine's default."""
    OFF = "off"
    """`--flag` when false; nothing when true, which is the engine's default."""
    ON_OFF = "on_off"
    """`--flag` or `--no-flag`."""
    EXPLICIT = "explicit"
    """`--flag=true` or `--flag=false`."""
    JSON = "json"
    """`--flag {…}` of several knobs, by the keys of the flag."""


class Span(Value):
    """Versions in [since, until); the sources prove the first and the last of them."""

    since: str | None = None
    until: str | None = None

    def covers(self, version: Version | None) -> bool:
        """Whether `version` is one of them; an unknown version is taken for the newest."""
        if version is None:
            return self.until is None
        return within(version, self.since, self.until)


class Flag(Span):
    """One flag for one knob, or for several (their names by its JSON keys)."""

    name: str
    form: Form
    knob: str | None = None
    keys: dict[str, str] = Field(default_factory=dict)
    choices: dict[str, Span] = Field(default_factory=dict)

    @property
    def knobs(self) -> tuple[str, ...]:
        """The knobs that it sets."""
        return tuple(self.keys.values()) if self.knob is None else (self.knob,)

    def choices_in(self, version: Version | None) -> tuple[str, ...]:
        """The values that it takes; empty where it takes any."""
        return tuple(value for value, span in self.choices.items() if span.covers(version))


class Live(Span):
    """How a knob is changed while the engine runs."""

    how: str


class FlagTable(Value):
    """All flags of one engine that have a knob, checked from version `since` up to `until`.

    `command` starts the engine. Everything needs a restart but the knobs of `live`.
    """

    engine: Engine
    since: str
    until: str
    command: tuple[str, ...] = Field(min_length=1)
    flags: tuple[Flag, ...] = Field(min_length=1)
    live: dict[str, Live] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sets_each_knob_once(self) -> Self:
        for flag in self.flags:
            for other in self.flags:
                both = set(flag.knobs) & set(other.knobs)
                if flag is not other and both and _overlap(flag, other):
                    raise ValueError(f"{flag.name} and {other.name} set {sorted(both)} at once")
        return self

    def checked(self, version: Version | None) -> bool:
        """Whether the table was checked against `version`."""
        return version is not None and within(version, self.since, self.until)

    def flag_of(self, knob: str, version: Version | None) -> Flag | None:
        """The flag that sets a knob in `version`; None where there is none."""
        return next((f for f in self.flags if knob in f.knobs and f.covers(version)), None)

    def live_in(self, knob: str, version: Version | None) -> str | None:
        """How a knob is changed without a restart, if it can be."""
        live = self.live.get(knob)
        return live.how if live is not None and live.covers(version) else None


@lru_cache(maxsize=len(Engine))
def flag_table(engine: Engine) -> FlagTable:
    """The table of an engine. Raises `NotFound` for engines that are only read."""
    table = _TABLES / f"{engine.value}.json"
    if not table.is_file():
        raise NotFound(
            f"{engine.value} is only read: it has no knobs here", hint="use vllm or sglang"
        )
    return FlagTable.model_validate(json.loads(table.read_text("utf-8")))


def flags_of_help(text: str) -> Mapping[str, tuple[str, ...]]:
    """The flags that an engine's own `--help` lists, each with the values that it takes."""
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        invocation = _INVOCATION.match(line)
        if invocation is None:
            continue
        taken = _CHOICES.search(invocation[1])
        choices = tuple(taken[1].split(",")) if taken else ()
        for name in _FLAG.findall(_CHOICES.sub("", invocation[1])):
            found[name] = choices
    return found


def disagreements(table: FlagTable, version: str | None, help_text: str) -> tuple[str, ...]:
    """What the table says otherwise than the engine's own help; empty when they agree."""
    listed, parsed = flags_of_help(help_text), parse_version(version)
    found: list[str] = []
    for flag in table.flags:
        if flag.form is not Form.POSITION and flag.covers(parsed):
            found += _disagreement(flag, parsed, listed)
    return tuple(found)


def _disagreement(
    flag: Flag, version: Version | None, listed: Mapping[str, tuple[str, ...]]
) -> list[str]:
    if flag.name not in listed:
        return [f"{flag.name} ({', '.join(flag.knobs)}) is no flag of this engine"]
    opposite = flag.name.replace("--", "--no-", 1)
    if flag.form is Form.ON_OFF and opposite not in listed:
        return [f"{opposite} is no flag of this engine"]
    ours, theirs = set(flag.choices_in(version)), set(listed[flag.name])
    if ours != theirs:
        missing = f"lacks {sorted(theirs - ours)}" if theirs - ours else ""
        invented = f"has {sorted(ours - theirs)} too" if ours - theirs else ""
        said = " and ".join(part for part in (missing, invented) if part)
        return [f"{flag.name}: the table {said}"]
    return []


def _overlap(one: Span, other: Span) -> bool:
    """Whether some version is in both; ends are versions, so that it is enough to try them."""
    ends = [parse_version(end) for end in (one.since, other.since, "0.0.0") if end is not None]
    return any(one.covers(end) and other.covers(end) for end in ends)
