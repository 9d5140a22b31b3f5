"""Dollars as intervals: a forecast without its uncertainty is not shown."""

from __future__ import annotations

from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from optiinfra.schemas.base import Value

HOURS_PER_MONTH = 730.0
"""Hours in a billing month, as the clouds' own calculators count."""


class Interval(Value):
    """A central estimate with the bounds that hold with probability `confidence`."""

    low: float = Field(allow_inf_nan=False)
    mid: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    confidence: float = Field(default=0.9, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"interval is not ordered: {self.low} ≤ {self.mid} ≤ {self.high}")
        return self

    def scaled(self, factor: float) -> Interval:
        """The interval times `factor` (a negative factor swaps the bounds)."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(low=low, mid=self.mid * factor, high=high, confidence=self.confidence)

    def capped(self, ceiling: float) -> Interval:
        """The interval with every bound at most `ceiling`."""
        return Interval(
            low=min(self.low, ceiling),
            mid=min(self.mid, ceiling),
            high=min(self.high, ceiling),
            confidence=self.confidence,
        )


class PriceSource(Value):
    """Where a price comes from, and of when it is."""

    name: str
    as_of: AwareDatetime
