"""Whatever comes, the decoder refuses it, or gives an event that says the same again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optiinfra.events import hostile
from optiinfra.events.envelope import MAX_BODY_BYTES, Event, decode, encode
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id
from tests.factories import AT
from tests.payloads import PAYLOADS

Message = tuple[str, dict[str, str], bytes]


def message(prefix: str) -> Message:
    event = Event(
        id=derived_id(prefix),
        source="test",
        tenant="acme",
        time=AT,
        fact=PAYLOADS[prefix],
        correlation=derived_id("correlation"),
        causation=derived_id("causation"),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    return encode(event)


MESSAGES = {prefix: message(prefix) for prefix in PAYLOADS}
PREFIXES = st.sampled_from(sorted(MESSAGES))


def tried(subject: str, headers: dict[str, str] | None, body: bytes) -> Event | None:
    """The event, checked to survive another round; None when it was refused."""
    try:
        event = decode(subject, headers, body)
    except Rejected:
        return None
    again = decode(*encode(event))
    assert again == event
    assert again.body == event.body
    return event


HEADER_TEXT = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="0123456789abcdef", max_size=40),
    st.sampled_from(
        [
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "2026-02-01",
            "NaN",
            "\x00",
            "2026-02-01T00:00:00",
            "2026-W01-1T00:00Z",
            "a" * 100_000,
            "\r\nce-id: x",
            "other",
        ]
    ),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=1 << 60, max_value=1 << 600)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.text(max_size=60), st.dictionaries(st.text(max_size=20), HEADER_TEXT), st.binary())
def test_any_message_at_all(subject: str, headers: dict[str, str], body: bytes) -> None:
    tried(subject, headers, body)


@given(PREFIXES, st.data())
def test_a_message_with_other_headers(prefix: str, data: st.DataObject) -> None:
    subject, headers, body = MESSAGES[prefix]
    name = data.draw(st.sampled_from(sorted(headers)))
    tried(subject, {**headers, name: data.draw(HEADER_TEXT)}, body)
    tried(subject, {key: text for key, text in headers.items() if key != name}, body)


@given(PREFIXES, st.data())
def test_a_message_with_some_bytes_changed(prefix: str, data: st.DataObject) -> None:
    subject, headers, body = MESSAGES[prefix]
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    tried(subject, headers, body[:start] + data.draw(st.binary(max_size=12)) + body[end:])


@settings(max_examples=300)
@given(PREFIXES, st.data())
def test_a_message_with_a_value_replaced_or_added(prefix: str, data: st.DataObject) -> None:
    subject, headers, body = MESSAGES[prefix]
    fact = json.loads(body)
    place = _place(fact, data)
    key = data.draw(st.sampled_from(sorted(place))) if isinstance(place, dict) else 0
    place[key] = data.draw(JSON)
    tried(subject, headers, json.dumps(fact).encode("utf-8", "surrogatepass"))


def _place(fact: dict[str, Any], data: st.DataObject) -> Any:
    """A mapping or a list somewhere in the fact."""
    place: Any = fact
    while deeper := [one for one in _children(place) if isinstance(one, dict | list) and one]:
        if data.draw(st.booleans()):
            break
        place = data.draw(st.sampled_from(deeper))
    return place


def _children(place: Any) -> list[Any]:
    return list(place.values()) if isinstance(place, dict) else list(place)


@given(PREFIXES, PREFIXES)
def test_a_body_on_another_subject_is_refused(one: str, other: str) -> None:
    subject, _, _ = MESSAGES[one]
    _, headers, body = MESSAGES[other]
    assert (tried(subject, headers, body) is None) is (one != other)


@pytest.mark.parametrize("prefix", sorted(BY_PREFIX))
def test_the_untouched_message_is_read(prefix: str) -> None:
    assert tried(*MESSAGES[prefix]) is not None


DEEP = b'{"kind":"policy.changed","policy":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"x" * (MAX_BODY_BYTES + 1), "over the limit"),
        (DEEP, "recursion"),
        (b"[" * 100_000, "recursion"),
        (b"\xff\xfe{}", "not valid"),
        (b"", "not valid"),
        (b"null", "not valid"),
        (b"{}", "not valid"),
    ],
)
def test_hostile_bodies_are_named(body: bytes, why: str) -> None:
    subject, headers, _ = MESSAGES["policy.changed"]
    with pytest.raises(Rejected, match=why):
        decode(subject, headers, body)


def _with(prefix: str, old: bytes, new: bytes) -> Message:
    subject, headers, body = MESSAGES[prefix]
    assert old in body
    return subject, headers, body.replace(old, new, 1)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (_with("metrics.cost", b"0.2,", b"NaN,"), "finite"),
        (_with("metrics.cost", b"0.2,", b"1e999,"), "finite"),
        (_with("metrics.cost", b"0.2,", b"-1.5E+0999 ,"), "finite"),
        (_with("metrics.cost", b"0.2,", b"\n1e0999,"), "finite"),
        (_with("metrics.cost", b"0.2,", b"-Infinity,"), "finite"),
        (_with("vote.requested", b'"round":1', b'"round":' + b"9" * 30), "64 bits"),
        (_with("vote.requested", b'"round":1', b'"round":' + b"9" * 5000), "not valid"),
        (_with("change.paused", b"lunch", b"lu\\u0000nch"), "NUL"),
        (_with("change.paused", b"lunch", b"\\ud800"), "not valid"),
        (_with("switch.turned", b'"acme"', b'"other"'), "contradicts its envelope"),
    ],
)
def test_values_that_no_store_can_keep_are_named(message: Message, why: str) -> None:
    with pytest.raises(Rejected, match=why):
        decode(*message)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("ce-time", "9999-12-31T23:59:59+00:00", "out of bounds"),
        ("ce-time", "0001-01-01T00:00:00+14:00", "out of bounds"),
        ("ce-time", "2026-02-01T00:00:00", "no time zone"),
        ("ce-time", "soon", "not a time"),
        ("ce-source", "", "ce-source"),
        ("ce-source", "a" * 201, "ce-source"),
        ("ce-source", "a\r\nNats-Msg-Id: b", "ce-source"),
        ("ce-correlationid", "a b", "ce-correlationid"),
        ("traceparent", "\x00", "traceparent"),
        ("ce-tenant", "other", "belongs on"),
        ("ce-tenant", "*", "not valid"),
        ("ce-id", "a" * 1_000_000, "not valid"),
        ("ce-type", "optiinfra.approval.granted.v1", "ce-type"),
    ],
)
def test_hostile_headers_are_named(name: str, value: str, why: str) -> None:
    subject, headers, body = MESSAGES["change.paused"]
    with pytest.raises(Rejected, match=why):
        decode(subject, {**headers, name: value}, body)


def test_names_of_hexadecimal_digits_do_not_make_a_body_suspicious(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They hold what looks like an exponent, one in four: a second reading costs more than all."""
    message = _with("change.paused", b"lunch", b"9e999 12e3456, 1234567e0001aaff")
    monkeypatch.setattr(hostile, "_walk", lambda _value: pytest.fail("read a second time"))
    assert tried(*_with("change.paused", b"lunch", b"8c12e3456aa90e1234b")) is not None
    with pytest.raises(pytest.fail.Exception):
        tried(*message)


def test_large_but_honest_values_pass() -> None:
    largest = (1 << 63) - 1
    hostile_looking = _with("policy.changed", b'"max_moving":1', f'"max_moving":{largest}'.encode())
    assert tried(*hostile_looking) is not None
    assert tried(*_with("change.paused", b"lunch", b"NaN \\\\u0000 Infinity")) is not None
