"""Times of the week by the clock on the wall of a time zone, and when such a window ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from optiinfra.schemas.base import Value

MINUTES_PER_DAY = 24 * 60
MINUTES_PER_WEEK = 7 * MINUTES_PER_DAY


class Weekday(StrEnum):
    """In the order of `date.weekday()`."""

    MONDAY = "mon"
    TUESDAY = "tue"
    WEDNESDAY = "wed"
    THURSDAY = "thu"
    FRIDAY = "fri"
    SATURDAY = "sat"
    SUNDAY = "sun"

    @property
    def number(self) -> int:
        return list(Weekday).index(self)


def _as_clock(value: Any) -> Any:
    """YAML reads an unquoted 22:00 as the number 1320, which is its minutes: taken as meant."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MINUTES_PER_DAY:
        return f"{value // 60:02d}:{value % 60:02d}"
    return value


@cache
def _zones() -> tuple[str, ...]:
    return tuple(sorted(available_timezones()))


def _is_zone(name: str) -> str:
    if name in _zones():
        return name
    near = get_close_matches(name, _zones(), n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "; name one such as 'Europe/Berlin'"
    raise ValueError(f"there is no time zone {name!r}{meant}")


ClockTime = Annotated[
    str,
    BeforeValidator(_as_clock),
    StringConstraints(pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$"),
]
"""`HH:MM` on the wall, `24:00` being the end of the day."""
TimeZone = Annotated[str, AfterValidator(_is_zone)]
"""A name of the IANA time zone database."""


def minutes_of(clock: str) -> int:
    """Minutes since midnight of an `HH:MM`."""
    return int(clock[:2]) * 60 + int(clock[3:])


class WeeklyWindow(Value):
    """The same hours on the same days of every week; over midnight when `end` is not after `start`.

    Such a window belongs to the day on which it starts. An hour that the clock skips in spring
    is counted with the offset before it (RFC 5545); of an hour that comes twice in autumn a
    window starts with the first and ends with the second.
    """

    days: tuple[Weekday, ...] = Field(
        default=(), description="`mon` to `sun`, the days on which it starts; none means all"
    )
    start: ClockTime = Field(default="00:00", description="when it starts, `HH:MM`")
    end: ClockTime = Field(
        default="24:00", description="when it ends, `HH:MM`; not after `start` means the next day"
    )
    time_zone: TimeZone = Field(default="UTC", description="whose clock, such as `Europe/Berlin`")

    @model_validator(mode="after")
    def _is_no_instant(self) -> Self:
        if self.start == "24:00":
            raise ValueError("start is 24:00; write 00:00 and name the next day")
        if len(set(self.days)) != len(self.days):
            raise ValueError("a day stands twice in days")
        return self

    @property
    def minutes(self) -> tuple[int, int]:
        """Start and end in minutes from the midnight before the start."""
        start, end = minutes_of(self.start), minutes_of(self.end)
        return start, end if end > start else end + MINUTES_PER_DAY

    @property
    def is_always(self) -> bool:
        """Whether no minute of the week is outside."""
        covered: set[int] = set()
        start, end = self.minutes
        for day in self.days or Weekday:
            first = day.number * MINUTES_PER_DAY
            covered.update(m % MINUTES_PER_WEEK for m in range(first + start, first + end))
        return len(covered) == MINUTES_PER_WEEK

    def contains(self, at: datetime) -> bool:
        """Whether `at` (with a zone) is inside; the start is, the end is not."""
        at = at.astimezone(UTC)
        return any(start <= at < end for start, end in self._around(at))

    def until(self, at: datetime) -> datetime | None:
        """When the stretch ends that `at` is inside of, in UTC; None outside.

        Windows that touch count as one stretch. A window without an end gives a time at least a
        week ahead, at which it is asked again.
        """
        at = at.astimezone(UTC)
        end = at
        for _ in range(len(Weekday) + 1):
            further = [stop for start, stop in self._around(end) if start <= end < stop]
            if not further:
                break
            end = max(further)
        return end if end > at else None

    def _around(self, at: datetime) -> Iterator[tuple[datetime, datetime]]:
        """The windows that start on the local day of `at` or on one of the two days before it."""
        zone = ZoneInfo(self.time_zone)
        today = at.astimezone(zone).date()
        for back in (2, 1, 0):
            day = today - timedelta(days=back)
            if not self.days or list(Weekday)[day.weekday()] in self.days:
                yield self._on(day, zone)

    def _on(self, day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
        start, end = self.minutes
        return _instants(day, start, zone)[0], max(_instants(day, end, zone))


def _instants(day: date, minutes: int, zone: ZoneInfo) -> list[datetime]:
    """What a time on the wall may mean, in UTC: two instants where the clock is turned back."""
    wall = datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(minutes=minutes)
    return [wall.replace(fold=fold).astimezone(UTC) for fold in (0, 1)]
