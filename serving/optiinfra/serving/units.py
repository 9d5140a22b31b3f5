"""Units that servers expose, and how they become ours; what has no conversion is refused."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from optiinfra.schemas.telemetry import Unit


class ExposedUnit(StrEnum):
    """What the number of an exposed name counts; of counters, what is added up."""

    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"
    FRACTION = "fraction"
    PERCENT = "percent"
    COUNT = "count"
    TOKENS = "tokens"
    BYTES = "bytes"
    CELSIUS = "celsius"
    WATTS = "watts"
    MILLIWATTS = "milliwatts"
    MILLIJOULES = "millijoules"


_FACTORS: Mapping[tuple[ExposedUnit, Unit], float] = {
    (ExposedUnit.SECONDS, Unit.SECONDS): 1.0,
    (ExposedUnit.SECONDS, Unit.PER_SECOND): 1.0,
    (ExposedUnit.MILLISECONDS, Unit.SECONDS): 1e-3,
    (ExposedUnit.FRACTION, Unit.FRACTION): 1.0,
    (ExposedUnit.PERCENT, Unit.FRACTION): 1e-2,
    (ExposedUnit.COUNT, Unit.COUNT): 1.0,
    (ExposedUnit.COUNT, Unit.PER_SECOND): 1.0,
    (ExposedUnit.TOKENS, Unit.TOKENS): 1.0,
    (ExposedUnit.TOKENS, Unit.PER_SECOND): 1.0,
    (ExposedUnit.BYTES, Unit.PER_SECOND): 1.0,
    (ExposedUnit.CELSIUS, Unit.CELSIUS): 1.0,
    (ExposedUnit.WATTS, Unit.WATTS): 1.0,
    (ExposedUnit.MILLIWATTS, Unit.WATTS): 1e-3,
    (ExposedUnit.MILLIJOULES, Unit.WATTS): 1e-3,
}
"""Rates are of one second: millijoules counted become watts."""


def factor(exposed: ExposedUnit, ours: Unit) -> float | None:
    """What an exposed number is multiplied by; None where the two units do not measure the same."""
    return _FACTORS.get((exposed, ours))
