"""What changes between two configurations of an engine, for people, and what needs a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optiinfra.schemas.errors import Rejected
from optiinfra.serving.engines import EngineConfig
from optiinfra.serving.flags import flag_table
from optiinfra.serving.versions import parse_version


@dataclass(frozen=True, slots=True)
class Difference:
    """One knob before and after; None is the engine's default.

    `flag` sets it in the version that it is meant for; `live` says how it changes while the engine
    runs, and is None where the engine must be restarted.
    """

    knob: str
    before: Any
    after: Any
    flag: str | None
    live: str | None

    @property
    def in_words(self) -> str:
        """One line for people."""
        effect = "needs a restart" if self.live is None else f"while it runs: {self.live}"
        flag = f" ({self.flag})" if self.flag else ""
        return f"{self.knob}: {_shown(self.before)} → {_shown(self.after)}{flag}, {effect}"


def differences(
    before: EngineConfig, after: EngineConfig, version: str | None
) -> tuple[Difference, ...]:
    """The knobs that differ, in the order in which they are declared.

    Raises `Rejected` for two engines: to change the engine is no change of a knob.
    """
    if before.engine is not after.engine:
        raise Rejected(
            f"{before.engine.value} and {after.engine.value} are different engines",
            hint="replace the replicas instead",
        )
    table, parsed = flag_table(after.engine), parse_version(version)
    old, new = _all(before), _all(after)
    found = []
    for knob in new:
        if old[knob] != new[knob]:
            flag = table.flag_of(knob, parsed)
            found.append(
                Difference(
                    knob, old[knob], new[knob],
                    flag.name if flag is not None else None, table.live_in(knob, parsed),
                )
            )  # fmt: skip
    return tuple(found)


def needs_restart(changes: tuple[Difference, ...]) -> bool:
    """Whether one of the changes takes force only when the engine starts again."""
    return any(change.live is None for change in changes)


def _all(config: EngineConfig) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in type(config).model_fields}
    values.pop("engine")
    return {**values, "extra_arguments": " ".join(config.extra_arguments) or None}


def _shown(value: Any) -> str:
    match value:
        case None:
            return "the engine's default"
        case bool():
            return "on" if value else "off"
        case _:
            return str(value)
