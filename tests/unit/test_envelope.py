"""Events in headers and bodies: there and back, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.events.envelope import MAX_BODY_BYTES, Event, decode, encode
from optiinfra.events.facts import ChangePaused, ChangeResumed
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id
from tests.factories import event
from tests.payloads import CHANGE, PAYLOADS


@pytest.mark.parametrize("prefix", PAYLOADS)
def test_every_fact_comes_back_as_it_was_said(prefix: str) -> None:
    said = event(PAYLOADS[prefix])
    assert decode(*encode(said)) == said


def test_the_envelope_is_cloudevents_in_headers_and_the_body_is_the_fact_alone() -> None:
    said = Event(
        id=derived_id("e"),
        source="coordinator",
        tenant="acme",
        time=datetime(2026, 1, 5, 13, tzinfo=timezone(timedelta(hours=1))),
        fact=PAYLOADS["change.paused"],
        correlation=CHANGE,
        causation=derived_id("cause"),
        traceparent="00-1-2-01",
    )
    subject, headers, body = encode(said)
    assert headers == {
        "Nats-Msg-Id": said.id,
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": said.id,
        "ce-type": "optiinfra.change.paused.v1",
        "ce-source": "coordinator",
        "ce-subject": subject,
        "ce-time": "2026-01-05T12:00:00+00:00",
        "ce-tenant": "acme",
        "ce-correlationid": CHANGE,
        "ce-causationid": derived_id("cause"),
        "traceparent": "00-1-2-01",
    }
    assert body == said.fact.model_dump_json().encode()
    assert decode(subject, headers, body).time == datetime(2026, 1, 5, 12, tzinfo=UTC)


TEXT = st.text(st.characters(exclude_characters="\x00"))
"""NUL is refused: PostgreSQL cannot keep it."""


@given(by=TEXT, reason=TEXT)
def test_any_text_survives_the_journey(by: str, reason: str) -> None:
    said = event(ChangePaused(change=CHANGE, by=by, reason=reason))
    assert decode(*encode(said)) == said


def test_a_body_over_the_limit_is_not_sent_and_not_read() -> None:
    said = event(ChangePaused(change=CHANGE, by="x", reason="y" * MAX_BODY_BYTES))
    with pytest.raises(Rejected, match="over the limit"):
        encode(said)
    subject, headers, _ = encode(event(PAYLOADS["change.paused"]))
    with pytest.raises(Rejected, match="over the limit"):
        decode(subject, headers, b" " * (MAX_BODY_BYTES + 1))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"headers": None}, "no CloudEvents headers"),
        ({"without": "ce-source"}, "lacks the header 'ce-source'"),
        ({"without": "ce-type"}, "ce-type is None"),
        ({"set": ("ce-time", "yesterday")}, "not a time"),
        ({"set": ("ce-time", "2026-01-01T00:00:00")}, "time"),
        ({"set": ("ce-id", "7")}, "id"),
        ({"set": ("ce-tenant", "other")}, "belongs on"),
        ({"set": ("ce-type", "optiinfra.change.opened.v1")}, "ce-type is"),
        ({"body": b"{"}, "JSON"),
        ({"body": b'{"kind":"weather.changed"}'}, "kind"),
        ({"body": b'{"kind":"change.paused","extra":1}'}, "error"),
        ({"subject": "change.paused.acme.other"}, "belongs on"),
    ],
)
def test_what_is_not_a_sound_event_is_refused_with_its_reason(
    change: dict[str, Any], complaint: str
) -> None:
    subject, headers, body = encode(event(PAYLOADS["change.paused"]))
    if "set" in change:
        headers[change["set"][0]] = change["set"][1]
    headers.pop(change.get("without", ""), None)
    with pytest.raises(Rejected, match=complaint):
        decode(
            change.get("subject", subject),
            change.get("headers", headers),
            change.get("body", body),
        )


def test_a_copy_with_another_fact_says_the_other_fact() -> None:
    said = event(ChangeResumed(change="a" * 32, by="ann"))
    assert '"ann"' in said.body
    other = said.model_copy(update={"fact": ChangePaused(change="a" * 32, by="bob", reason="x")})
    assert '"bob"' in other.body
    assert other.subject.startswith("change.paused.")
    assert other.type == "optiinfra.change.paused.v1"
