"""What is remembered is bounded in number and in age."""

from __future__ import annotations

from optiinfra.storage.postgres.remembered import Remembered


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def remembered(most: int = 2) -> tuple[Remembered[str], Clock]:
    clock = Clock()
    return Remembered(most, clock), clock


def test_a_value_is_known_until_its_time_is_over() -> None:
    kept, clock = remembered()
    kept.put("a", "ana", 5.0, kept.era)
    clock.now += 4.9
    assert kept.get("a") == "ana"
    clock.now += 0.1
    assert kept.get("a") is None
    assert kept.get("a") is None


def test_the_first_goes_when_it_is_full() -> None:
    kept, _ = remembered()
    for name in ("a", "b", "a", "c"):
        kept.put(name, name, 5.0, kept.era)
    assert [kept.get(name) for name in "abc"] == ["a", None, "c"]


def test_what_was_asked_for_before_a_clear_is_not_taken_in_after_it() -> None:
    kept, _ = remembered()
    kept.put("a", "ana", 5.0, kept.era)
    era = kept.era
    kept.clear()
    kept.put("b", "ben", 5.0, era)
    assert kept.get("a") is None
    assert kept.get("b") is None
