"""Which policy is in force when files and records differ: the newest record, and who makes it."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from optiinfra.coordinator.policy_choice import PolicyOnFile, change, rules_of, supersedes
from optiinfra.schemas.rules import Rules, digest_of
from optiinfra.storage.postgres.policies import PolicyRecord
from tests.factories import AT

HOUR = timedelta(hours=1)
OLD, NEW = Rules(name="old"), Rules(name="new")


def record(
    rules: Rules = OLD, *, written_at: datetime = AT, version: str | None = None
) -> PolicyRecord:
    return PolicyRecord(
        number=1,
        version=version or rules.version,
        sha256=rules.sha256,
        body=rules.model_dump_json(),
        by="file:policy.yaml",
        written_at=written_at,
        at=AT + HOUR,
    )


def on_file(rules: Rules = NEW, age: timedelta = HOUR, *, edited: bool = False) -> PolicyOnFile:
    return PolicyOnFile(rules, AT - age, "file:policy.yaml", edited)


def test_the_first_policy_is_always_recorded() -> None:
    assert supersedes(on_file(), None)


def test_the_policy_that_is_recorded_is_not_recorded_again() -> None:
    assert not supersedes(on_file(OLD, -HOUR, edited=True), record())


def test_an_older_file_that_is_found_at_a_start_turns_nothing_back() -> None:
    assert not supersedes(on_file(NEW, HOUR), record())
    assert supersedes(on_file(NEW, -HOUR), record())


def test_an_edit_that_was_seen_counts_however_old_the_file_says_it_is() -> None:
    assert supersedes(on_file(NEW, HOUR, edited=True), record())


def test_the_same_content_under_another_releases_name_is_recorded_anew() -> None:
    assert supersedes(on_file(OLD), record(OLD, version="old@000000000000"))


def test_a_record_that_this_release_does_not_understand_is_nobodys_equal() -> None:
    strange = PolicyRecord(2, "x@1", "", '{"later_key": 1}', "file:x", AT, AT)
    assert rules_of(strange) is None
    assert not supersedes(on_file(OLD), strange)
    assert supersedes(on_file(OLD, -HOUR), strange)


def test_a_change_holds_the_whole_policy_and_what_came_before() -> None:
    first = change(on_file(OLD), None, "acme", AT)
    assert (first.number, first.previous, first.version) == (1, None, OLD.version)
    second = change(on_file(NEW), record(), "acme", AT + HOUR)
    assert (second.number, second.previous) == (2, OLD.version)
    assert Rules.model_validate(second.policy) == NEW
    assert digest_of(second.policy) == second.sha256 == NEW.sha256


@given(st.integers(-5_000, 5_000), st.integers(-5_000, 0), st.booleans())
def test_recorded_ages_rise_and_never_lie_in_the_future(
    file_s: int,
    recorded_s: int,
    edited: bool,  # noqa: FBT001
) -> None:
    now = AT + timedelta(seconds=1)
    newest = record(written_at=AT + timedelta(seconds=recorded_s))
    found = PolicyOnFile(NEW, AT + timedelta(seconds=file_s), "file:x", edited)
    written = change(found, newest, "acme", now).written_at
    assert newest.written_at < written <= now


def test_a_clock_that_is_ahead_does_not_shut_a_later_edit_out() -> None:
    ahead = change(on_file(OLD, -1_000 * HOUR), None, "acme", AT)
    assert ahead.written_at == AT
    kept = record(OLD, written_at=ahead.written_at)
    assert supersedes(on_file(NEW, -HOUR), kept)
