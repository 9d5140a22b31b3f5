"""The command line of an engine in one version, from its configuration; or why there is none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.engine_rules import Problem, Severity, conflicts
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.flags import Flag, FlagTable, Form, flag_table
from optiinfra.serving.versions import Version, parse_version


def problems(config: EngineConfig, version: str | None) -> tuple[Problem, ...]:
    """All that is wrong with `config` in `version`; an unknown one is taken for the newest.

    A version beyond the table is held to the newest rules.
    """
    table, parsed = flag_table(config.engine), parse_version(version)
    knobs = config.knobs()
    return (
        *_unknown_flags(table, knobs, parsed, version),
        *_bad_choices(table, knobs, parsed),
        *_given_twice(table, config),
        *conflicts(config, parsed),
    )


_NAME_AND_ADDRESS = ("model", "served_model_name", "host", "port")


def command(config: EngineConfig, version: str | None) -> tuple[str, ...]:
    """Program and arguments, one word each. Raises `Rejected` where the engine would refuse it."""
    _require_startable(config, version)
    words = _words(config, config.knobs(), version)
    return (*flag_table(config.engine).command, *words)


def arguments(config: EngineConfig, version: str | None) -> tuple[str, ...]:
    """The words of `command` for one who names program, weights and address himself.

    Raises `Rejected` as `command` does.
    """
    _require_startable(config, version)
    knobs = {name: value for name, value in config.knobs().items() if name not in _NAME_AND_ADDRESS}
    return _words(config, knobs, version)


def _require_startable(config: EngineConfig, version: str | None) -> None:
    refused = [p for p in problems(config, version) if p.severity is Severity.REFUSED]
    if refused:
        raise Rejected(
            f"{config.engine.value} {version or ''} would not start: ".replace("  ", " ")
            + "; ".join(one.reason for one in refused),
            hint=f"change {', '.join(dict.fromkeys(k for one in refused for k in one.knobs))}",
        )


def _words(config: EngineConfig, knobs: Mapping[str, Any], version: str | None) -> tuple[str, ...]:
    parsed = parse_version(version)
    words: list[str] = []
    for flag in flag_table(config.engine).flags:
        if flag.covers(parsed):
            words += _written(flag, knobs)
    return (*words, *config.extra_arguments)


def _written(flag: Flag, knobs: Mapping[str, Any]) -> list[str]:
    """A flag with its value, as far as its knobs are set."""
    if flag.form is Form.JSON:
        values = {key: knobs[knob] for key, knob in flag.keys.items() if knob in knobs}
        return [flag.name, json.dumps(values)] if values else []
    value = knobs.get(flag.knob or "")
    if value is None:
        return []
    match flag.form:
        case Form.POSITION:
            return [str(value)]
        case Form.SWITCH:
            return [flag.name] if value else []
        case Form.OFF:
            return [] if value else [flag.name]
        case Form.ON_OFF:
            return [flag.name if value else flag.name.replace("--", "--no-", 1)]
        case Form.EXPLICIT:
            return [f"{flag.name}={str(value).lower()}"]
        case _:
            return [flag.name, str(value)]


def _unknown_flags(
    table: FlagTable, knobs: Mapping[str, Any], parsed: Version | None, version: str | None
) -> Iterable[Problem]:
    for knob in knobs:
        if table.flag_of(knob, parsed) is None:
            named = dict.fromkeys(f.name for f in table.flags if knob in f.knobs)
            where = f"{table.engine.value} {version or 'today'}"
            reason = f"{where} has no flag for {knob} ({', '.join(named)} in other versions)"
            yield Problem((knob,), Severity.REFUSED, reason)


def _bad_choices(
    table: FlagTable, knobs: Mapping[str, Any], parsed: Version | None
) -> Iterable[Problem]:
    for knob, value in knobs.items():
        flag = table.flag_of(knob, parsed)
        choices = flag.choices_in(parsed) if flag is not None else ()
        if choices and str(value) not in choices:
            reason = f"{knob} {value} is none of {', '.join(choices)}"
            yield Problem((knob,), Severity.REFUSED, reason)


def _given_twice(table: FlagTable, config: EngineConfig) -> Iterable[Problem]:
    """Flags among the extra arguments that a knob would set."""
    extra = {word.split("=")[0].replace("--no-", "--", 1) for word in config.extra_arguments}
    for flag in table.flags:
        if flag.name in extra:
            reason = f"{flag.name} has the knob {', '.join(flag.knobs)}: set that instead"
            yield Problem(flag.knobs, Severity.REFUSED, reason)
