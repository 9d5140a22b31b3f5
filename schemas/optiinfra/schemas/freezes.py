"""Times in which no change begins: once, or every week."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Self

from pydantic import AwareDatetime, Field, model_validator

from optiinfra.schemas.approval_rules import Part
from optiinfra.schemas.windows import WeeklyWindow


class FreezeWindow(Part):
    """No change begins inside: it waits for the end. What is undone is never held up."""

    starts_at: AwareDatetime | None = Field(
        default=None, description="begin of a window that comes once, with its offset"
    )
    ends_at: AwareDatetime | None = Field(default=None, description="its end")
    weekly: WeeklyWindow | None = Field(
        default=None, description="a window that comes every week, in place of the two"
    )
    halt_stages: bool = Field(
        default=False, description="also the next stage of a change under way waits"
    )
    also_urgent: bool = Field(
        default=False, description="also what is urgent waits (else it passes)"
    )

    @model_validator(mode="after")
    def _is_one_window(self) -> Self:
        once = (self.starts_at is not None, self.ends_at is not None)
        if (self.weekly is not None) == any(once) or (any(once) and not all(once)):
            raise ValueError("give either starts_at and ends_at, or weekly")
        if self.starts_at and self.ends_at and self.starts_at >= self.ends_at:
            raise ValueError(f"it ends ({self.ends_at}) before it starts ({self.starts_at})")
        if self.weekly is not None and self.weekly.is_always:
            raise ValueError("it never ends; turn the stop switch on, or deny by a rule instead")
        return self

    def until(self, at: datetime) -> datetime | None:
        """When it ends, in UTC, if `at` is inside; else None."""
        if self.weekly is not None:
            return self.weekly.until(at)
        assert self.starts_at is not None
        assert self.ends_at is not None
        return self.ends_at.astimezone(UTC) if self.starts_at <= at < self.ends_at else None
