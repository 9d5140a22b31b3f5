"""The hash chain of a log: whole when nothing was touched, broken wherever anything was."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiinfra.storage.postgres.chain import GENESIS, Break, Link, canonical, first_break
from tests.factories import AT


def link(version: int, prev_hash: str, **changes: Any) -> Link:
    values: dict[str, Any] = {
        "event_id": f"event-{version}",
        "tenant": "acme",
        "chain": "change",
        "version": version,
        "type": "vote.cast",
        "subject": "vote.cast.acme.change",
        "source": "agent",
        "at": AT + timedelta(seconds=version),
        "said_at": AT,
        "correlation": "change",
        "causation": None,
        "body": f'{{"n":{version}}}',
        "prev_hash": prev_hash,
    }
    made = Link(**{**values, **changes})
    return made.sealed()


def chain(length: int) -> list[Link]:
    links: list[Link] = []
    for version in range(1, length + 1):
        links.append(link(version, links[-1].hash if links else GENESIS))
    return links


def test_a_chain_that_nobody_touched_holds() -> None:
    assert first_break(chain(5)) is None
    assert first_break([]) is None


def test_a_hash_is_known_for_good() -> None:
    """Recorded logs must verify under every later version: the format may never change."""
    assert chain(1)[0].hash == ("6790a42e1d701275c26b9646b020c929bbe3254e6dabc4ae70aee6cb5462a405")


@given(
    texts=st.lists(st.text(), min_size=10, max_size=10),
    version=st.integers(1, 1 << 31),
    hours=st.integers(-12, 12),
    known=st.booleans(),
)
def test_the_canonical_text_is_the_json_that_it_claims_to_be(
    texts: list[str],
    version: int,
    hours: int,
    known: bool,  # noqa: FBT001
) -> None:
    at = datetime(2026, 1, 31, 23, 59, tzinfo=timezone(timedelta(hours=hours)))
    names = ("event_id", "tenant", "chain", "type", "subject", "source", "body", "prev_hash")
    values: dict[str, Any] = dict(zip(names, texts, strict=False))
    ends: dict[str, Any] = {
        "correlation": texts[8] if known else None,
        "causation": None if known else texts[9],
    }
    made = Link(version=version, at=at, said_at=AT, **values, **ends)
    content = {**values, **ends, "version": version, "prev": values["prev_hash"]}
    del content["prev_hash"]
    for name, time in (("at", at), ("said_at", AT)):
        content[name] = time.astimezone(UTC).isoformat(timespec="microseconds")
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(made) == plain


CHANGED: dict[str, Any] = {
    "event_id": "another",
    "tenant": "other",
    "chain": "elsewhere",
    "type": "vote.requested",
    "subject": "vote.cast.other.change",
    "source": "stranger",
    "at": AT + timedelta(days=1),
    "said_at": AT + timedelta(microseconds=1),
    "correlation": None,
    "causation": "another",
    "body": '{"n": 2}',
}


@pytest.mark.parametrize("field", CHANGED)
def test_changing_any_field_breaks_the_chain_there(field: str) -> None:
    links = chain(3)
    links[1] = links[1]._replace(**{field: CHANGED[field]})
    broken = first_break(links)
    assert broken is not None
    assert broken.version == 2
    moved = "version 2 follows 0: an event is missing or out of order"
    assert broken.what == (moved if field == "chain" else "its content does not match its hash")


def test_a_forged_link_that_hashes_itself_afresh_breaks_the_next_one() -> None:
    links = chain(3)
    links[1] = link(2, links[0].hash, body='{"n":"forged"}')
    assert first_break(links) == Break(
        "change", 3, "event-3", "it does not continue from the event before it"
    )


def test_a_chain_that_does_not_begin_at_the_beginning_is_broken() -> None:
    first = link(1, "f" * 64)
    broken = first_break([first])
    assert broken is not None
    assert "does not continue" in broken.what


@settings(deadline=None)
@given(length=st.integers(min_value=2, max_value=8), data=st.data())
def test_a_missing_event_is_seen_unless_it_was_the_last(length: int, data: st.DataObject) -> None:
    links = chain(length)
    gone = data.draw(st.integers(min_value=0, max_value=length - 2))
    broken = first_break(links[:gone] + links[gone + 1 :])
    assert broken is not None
    assert broken.version == gone + 2
    assert "an event is missing or out of order" in broken.what


@settings(deadline=None)
@given(st.permutations(range(5)))
def test_only_one_order_holds(order: list[int]) -> None:
    links = chain(5)
    assert (first_break([links[n] for n in order]) is None) == (order == sorted(order))


def test_the_same_moment_in_another_time_zone_hashes_the_same() -> None:
    berlin = timezone(timedelta(hours=1))
    moved: datetime = (AT + timedelta(seconds=1)).astimezone(berlin)
    assert link(1, GENESIS, at=moved).hash == link(1, GENESIS).hash
