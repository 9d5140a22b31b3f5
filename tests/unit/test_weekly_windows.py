"""Hours of the week on the wall of a zone: over midnight, over a changed clock, end to end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from optiinfra.schemas.windows import MINUTES_PER_DAY, Weekday, WeeklyWindow, minutes_of

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]
CLOCKS = st.integers(0, MINUTES_PER_DAY - 1).map(lambda m: f"{m // 60:02d}:{m % 60:02d}")
WINDOWS = st.builds(
    WeeklyWindow,
    days=st.sets(st.sampled_from([*Weekday])).map(tuple),
    start=CLOCKS,
    end=CLOCKS | st.just("24:00"),
    time_zone=st.sampled_from(ZONES),
)
INSTANTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
CHANGES = [
    datetime(2026, 3, 29, 1, tzinfo=UTC),
    datetime(2026, 10, 25, 1, tzinfo=UTC),
    datetime(2026, 3, 8, 7, tzinfo=UTC),
    datetime(2026, 11, 1, 6, tzinfo=UTC),
]
NEAR_CHANGES = st.builds(
    lambda change, minutes: change + timedelta(minutes=minutes),
    st.sampled_from(CHANGES),
    st.integers(-3_000, 3_000),
)


def berlin(*parts: int, fold: int = 0) -> datetime:
    """An instant by Berlin's clock; `fold=1` is the second of two equal hours."""
    wall = datetime(*parts, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)  # type: ignore[arg-type, misc]
    return wall.astimezone(UTC)


def on_the_wall(window: WeeklyWindow, at: datetime) -> bool:
    """The same question by the clock alone, which is right where no clock is changed."""
    local = at.astimezone(ZoneInfo(window.time_zone))
    minute = local.hour * 60 + local.minute
    start, end = window.minutes
    days = [day.number for day in window.days or Weekday]
    today = local.weekday() in days and start <= minute < end
    yesterday = (local.weekday() - 1) % 7 in days and minute + MINUTES_PER_DAY < end
    return today or yesterday


def clock_changes_near(window: WeeklyWindow, at: datetime) -> bool:
    zone = ZoneInfo(window.time_zone)
    around = [at + timedelta(hours=hours) for hours in range(-60, 61, 6)]
    return len({one.astimezone(zone).utcoffset() for one in around}) > 1


@given(WINDOWS, INSTANTS)
def test_inside_is_what_the_clock_on_the_wall_says(window: WeeklyWindow, at: datetime) -> None:
    at = at.replace(second=0, microsecond=0)
    if not clock_changes_near(window, at):
        assert window.contains(at) == on_the_wall(window, at)


@given(WINDOWS, INSTANTS | NEAR_CHANGES)
def test_a_window_ends_where_it_is_said_to_also_when_the_clock_is_changed(
    window: WeeklyWindow, at: datetime
) -> None:
    until = window.until(at)
    assert (until is not None) == window.contains(at)
    if until is None:
        return
    assert until > at
    step = (until - at) / 7
    assert all(window.contains(at + n * step) for n in range(7))
    assert window.contains(until - timedelta(microseconds=1))
    if not window.is_always:
        assert not window.contains(until)


@given(WINDOWS)
def test_a_window_is_always_when_every_minute_of_a_plain_week_is_inside(
    window: WeeklyWindow,
) -> None:
    monday = datetime(2026, 1, 5, tzinfo=ZoneInfo(window.time_zone))
    minutes = range(0, 7 * MINUTES_PER_DAY, 7)
    inside = [on_the_wall(window, monday + timedelta(minutes=m)) for m in minutes]
    if window.is_always:
        assert all(inside)
    elif all(inside):
        assert window.minutes[1] - window.minutes[0] > MINUTES_PER_DAY - 7


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_starts() -> None:
    night = WeeklyWindow(days=("fri",), start="22:00", end="06:00", time_zone="Europe/Berlin")
    assert not night.contains(berlin(2026, 1, 9, 21, 59))
    assert night.contains(berlin(2026, 1, 9, 22, 0))
    assert night.contains(berlin(2026, 1, 10, 5, 59))
    assert not night.contains(berlin(2026, 1, 10, 6, 0))
    assert not night.contains(berlin(2026, 1, 9, 5, 0))
    assert night.until(berlin(2026, 1, 9, 23, 0)) == berlin(2026, 1, 10, 6, 0)


def test_days_that_touch_are_one_stretch() -> None:
    weekend = WeeklyWindow(days=("sat", "sun"), time_zone="Europe/Berlin")
    assert weekend.until(berlin(2026, 1, 10, 1, 0)) == berlin(2026, 1, 12, 0, 0)
    assert weekend.until(berlin(2026, 1, 12, 0, 0)) is None


def test_without_an_end_it_is_asked_again_after_a_week() -> None:
    always = WeeklyWindow()
    assert always.is_always
    at = datetime(2026, 1, 5, 12, tzinfo=UTC)
    until = always.until(at)
    assert until is not None
    assert timedelta(days=7) < until - at < timedelta(days=9)


def test_a_whole_day_may_start_at_any_hour() -> None:
    day = WeeklyWindow(days=("mon",), start="06:00", end="06:00")
    assert day.minutes == (360, 360 + MINUTES_PER_DAY)
    assert day.until(datetime(2026, 1, 5, 7, tzinfo=UTC)) == datetime(2026, 1, 6, 6, tzinfo=UTC)


def test_in_spring_a_time_that_is_skipped_counts_with_the_offset_before_it() -> None:
    early = WeeklyWindow(start="02:30", end="05:00", time_zone="Europe/Berlin")
    assert not early.contains(berlin(2026, 3, 29, 3, 29))
    assert early.contains(berlin(2026, 3, 29, 3, 30))
    late = WeeklyWindow(start="00:00", end="02:30", time_zone="Europe/Berlin")
    assert late.until(berlin(2026, 3, 29, 1, 0)) == berlin(2026, 3, 29, 3, 30)


def test_in_autumn_a_window_starts_with_the_first_hour_and_ends_with_the_second() -> None:
    twice = WeeklyWindow(start="02:15", end="02:45", time_zone="Europe/Berlin")
    first, second = berlin(2026, 10, 25, 2, 15), berlin(2026, 10, 25, 2, 45, fold=1)
    assert twice.contains(first)
    assert twice.until(first) == second
    assert twice.contains(berlin(2026, 10, 25, 2, 50))
    assert not twice.contains(berlin(2026, 10, 25, 2, 45, fold=1))


def test_hours_without_quotes_are_taken_as_meant() -> None:
    window = WeeklyWindow.model_validate({"start": 1320, "end": 1440})
    assert (window.start, window.end) == ("22:00", "24:00")
    assert minutes_of(window.end) == MINUTES_PER_DAY


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"start": "24:00"}, "start is 24:00"),
        ({"start": "7:00"}, "pattern"),
        ({"end": "25:00"}, "pattern"),
        ({"end": 1441}, "valid string"),
        ({"start": True}, "valid string"),
        ({"days": ["mon", "mon"]}, "a day stands twice"),
        ({"days": ["monday"]}, "'mon'"),
        (
            {"time_zone": "Europe/Berln"},
            "there is no time zone 'Europe/Berln'; did you mean 'Europe/Berlin'?",
        ),
        ({"time_zone": "Q"}, "there is no time zone 'Q'; name one such as"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match="(?s).*" + told.replace("?", r"\?")):
        WeeklyWindow.model_validate(wrong)
