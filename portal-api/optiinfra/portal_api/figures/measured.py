"""A figure with its unit, where unknown is a value of its own and has a reason."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import AwareDatetime, BaseModel, Field, model_validator

from optiinfra.schemas.telemetry import Known, Reading, Unit


class Measured(BaseModel):
    """`value` is null where it is not known; then, and only then, `reason` says why."""

    value: float | None
    unit: str
    at: AwareDatetime | None = Field(default=None, description="when it was read")
    reason: str | None = None

    @model_validator(mode="after")
    def _is_known_or_says_why(self) -> Self:
        if (self.value is None) != bool(self.reason):
            raise ValueError("a figure has either a value or the reason why there is none")
        return self

    def times(self, factor: float, unit: str) -> Measured:
        """The same in another unit."""
        value = None if self.value is None else self.value * factor
        return self.model_copy(update={"value": value, "unit": unit})


class Band(BaseModel):
    """A figure of which only the bounds are known; both null where nothing is."""

    low: float | None
    high: float | None
    reason: str | None = None


def known(value: float, unit: str, at: datetime | None = None) -> Measured:
    return Measured(value=value, unit=unit, at=at)


def unknown(reason: str, unit: str, at: datetime | None = None) -> Measured:
    return Measured(value=None, unit=unit, at=at, reason=reason)


def of_reading(reading: Reading, unit: Unit, at: datetime | None = None) -> Measured:
    if isinstance(reading, Known):
        return known(reading.value, unit, at)
    return unknown(reading.detail or reading.reason.value, unit, at)


def added(parts: Sequence[tuple[str, Measured]], unit: str, none: str) -> Measured:
    """The sum of named parts: unknown as soon as one of them is, and, by `none`, without any."""
    if not parts:
        return unknown(none, unit)
    for name, one in parts:
        if one.value is None:
            return unknown(f"{name}: {one.reason}", unit, one.at)
    at = min((one.at for _, one in parts if one.at is not None), default=None)
    return known(sum(one.value or 0.0 for _, one in parts), unit, at)


def averaged(parts: Sequence[tuple[str, Measured]], unit: str, none: str) -> Measured:
    """The mean, unknown likewise."""
    total = added(parts, unit, none)
    return total if total.value is None else total.times(1 / len(parts), unit)
