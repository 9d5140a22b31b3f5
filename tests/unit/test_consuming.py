"""The parts of consuming that need no broker: verdicts, deliveries, dead letters, filters."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, MaxPayloadError
from nats.js.errors import APIError, NoStreamResponseError

from optiinfra.events.bus import without_password
from optiinfra.events.client import FastClient
from optiinfra.events.consumer_spec import ConsumerSpec
from optiinfra.events.delivery import BODY_LIMIT_BYTES, dead_letter_of, delivery_of
from optiinfra.events.patterns import filters_for
from optiinfra.events.publish import fired_by
from optiinfra.events.refusals import described, is_passing, translated
from optiinfra.events.subjects import Stream, subjects_in
from optiinfra.events.testing import RecordingPublisher
from optiinfra.events.verdicts import Verdict, backoff_s, retry_after_s, verdict_on
from optiinfra.schemas.errors import Conflict, Invariant, Rejected, Unavailable
from optiinfra.schemas.ids import derived_id
from tests.factories import AT, event
from tests.payloads import PAYLOADS


def _message(subject: str = "change.paused.acme.x", body: bytes = b"{}", **more: Any) -> Msg:
    reply = more.pop("reply", "$JS.ACK.CHANGES.cost.3.7.9.1700000000000000000.5")
    return Msg(Client(), subject, reply, body, more.pop("headers", None))


def _refusal(code: int, number: int, about: str) -> APIError:
    return APIError(code=code, err_code=number, description=about)


@pytest.mark.parametrize(
    ("failure", "verdict"),
    [
        (Unavailable("away"), Verdict.HOLD),
        (ConnectionResetError(), Verdict.HOLD),
        (TimeoutError(), Verdict.HOLD),
        (ConnectionClosedError(), Verdict.HOLD),
        (Conflict("moved on"), Verdict.SOON),
        (ValueError("what?"), Verdict.COUNT),
        (FileNotFoundError(), Verdict.COUNT),
        (Rejected("never"), Verdict.BURY),
        (Invariant("bug"), Verdict.ALARM),
        (ExceptionGroup("all", [Unavailable("away"), Rejected("never")]), Verdict.BURY),
    ],
)
def test_a_failure_is_judged_by_its_kind(failure: BaseException, verdict: Verdict) -> None:
    assert verdict_on(failure) is verdict


def test_delays_double_up_to_the_cap_and_a_failure_may_ask_for_more() -> None:
    assert [backoff_s(n, 0.5, 60.0) for n in (0, 1, 2, 3, 8, 99)] == [
        0.5,
        0.5,
        1.0,
        2.0,
        60.0,
        60.0,
    ]
    assert retry_after_s(Unavailable("away", 7.0)) == 7.0
    assert retry_after_s(ValueError()) == 0.0
    assert retry_after_s(ExceptionGroup("all", [ValueError(), Unavailable("away", 2.0)])) == 2.0


@pytest.mark.parametrize("prefix", ["", "domain.account."])
def test_a_delivery_is_read_from_the_reply_subject_in_both_forms(prefix: str) -> None:
    rest = ".token" if prefix else ""
    reply = f"$JS.ACK.{prefix}CHANGES.cost.3.7.9.1700000000000000000.5{rest}"
    delivery = delivery_of(_message(reply=reply), 1.0)
    assert (delivery.stream, delivery.sequence, delivery.position) == ("CHANGES", 7, 9)
    assert (delivery.delivered, delivery.pending) == (3, 5)
    assert delivery.key == (7, 1_700_000_000_000_000_000)


def test_a_message_from_no_stream_is_refused() -> None:
    with pytest.raises(Rejected):
        delivery_of(_message(reply="_INBOX.x"), 0.0)


def test_a_dead_letter_has_the_cause_and_the_same_id_each_time() -> None:
    delivery = delivery_of(_message(headers={"ce-id": "e1"}), 0.0)
    delivery.cause = ValueError("no")
    first, tenant, fact = dead_letter_of(delivery, "cost", 6, AT)
    assert (first, tenant) == (dead_letter_of(delivery, "cost", 6, AT)[0], "acme")
    assert (fact.cause, fact.error, fact.event_id, fact.attempts) == ("ValueError", "no", "e1", 6)
    assert first != dead_letter_of(delivery, "resource", 6, AT)[0]


def test_two_consumers_that_bury_a_message_under_one_name_write_two_letters() -> None:
    delivery = delivery_of(_message(), 0.0)
    delivery.cause = ValueError("no")
    letters = [dead_letter_of(delivery, one, 6, AT, under="notifier") for one in ("a", "b")]
    assert [fact.consumer for _, _, fact in letters] == ["notifier", "notifier"]
    assert letters[0][0] != letters[1][0]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"a":1}', '{"a":1}'),
        (b"\xff\x00", "base64:" + base64.b64encode(b"\xff\x00").decode()),
        (b"x" * (BODY_LIMIT_BYTES + 9), "x" * BODY_LIMIT_BYTES),
        (("x" * (BODY_LIMIT_BYTES - 1) + "é").encode(), "x" * (BODY_LIMIT_BYTES - 1)),
    ],
)
def test_the_body_is_kept_readable_and_bounded(body: bytes, shown: str) -> None:
    delivery = delivery_of(_message(body=body), 0.0)
    assert dead_letter_of(delivery, "cost", 1, AT)[2].body == shown


@pytest.mark.parametrize(
    ("subject", "tenant"),
    [
        ("metrics.cost.acme.chat", "acme"),
        ("dlq.acme.cost", "acme"),
        ("weather.today", "unknown"),
        ("dlq.BAD.cost", "unknown"),
        ("dlq", "unknown"),
    ],
)
def test_the_tenant_of_a_dead_letter_is_read_from_its_subject(subject: str, tenant: str) -> None:
    assert dead_letter_of(delivery_of(_message(subject), 0.0), "cost", 1, AT)[1] == tenant


def test_the_tenant_of_a_dead_letter_is_that_of_its_event_when_it_was_read() -> None:
    delivery = delivery_of(_message("weather.today"), 0.0)
    delivery.tenant = event(PAYLOADS["change.paused"]).tenant
    assert dead_letter_of(delivery, "cost", 1, AT)[1] == "acme"


@pytest.mark.parametrize(
    ("subjects", "tenant", "filters"),
    [
        (("change.completed",), None, {"change.completed.*.*"}),
        (("vote.*",), "acme", {"vote.requested.acme.*", "vote.cast.acme.*.*"}),
        (("vote",), None, {"vote.requested.*.*", "vote.cast.*.*.*"}),
        (("vote.>",), None, {"vote.requested.*.*", "vote.cast.*.*.*"}),
        (("vote.cast.acme.*",), None, {"vote.cast.acme.*.*"}),
        (("vote.cast.acme",), None, {"vote.cast.acme.*.*"}),
        (("vote.cast.*.*.cost",), "acme", {"vote.cast.acme.*.cost"}),
        (("vote.cast.*.c1", "vote.cast"), None, {"vote.cast.*.*.*"}),
        (("dlq.acme.*",), None, {"dlq.acme.*"}),
        (("vote.cast", "vote.*"), None, {"vote.requested.*.*", "vote.cast.*.*.*"}),
    ],
)
def test_subjects_become_filters_without_overlap(
    subjects: tuple[str, ...], tenant: str | None, filters: set[str]
) -> None:
    _, found = filters_for(subjects, tenant)
    assert (set(found), len(found)) == (filters, len(filters))


def test_all_subjects_of_a_stream_can_be_asked_for_at_once() -> None:
    stream, filters = filters_for(("metrics.>",), None)
    assert stream is Stream.METRICS
    assert set(filters) == set(subjects_in(Stream.METRICS))


@pytest.mark.parametrize(
    ("subjects", "complaint"),
    [
        (("weather.*",), "no subject"),
        (("vote.cast.acme.x.y.z",), "no subject"),
        (("change.*", "metrics.*"), "CHANGES and METRICS"),
        (("agent.heartbeat",), "no stream"),
        ((), "lie in"),
    ],
)
def test_what_cannot_be_subscribed_to_is_refused(subjects: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(Rejected, match=complaint):
        filters_for(subjects, None)


def test_a_tenant_that_is_no_name_is_refused() -> None:
    with pytest.raises(Rejected):
        filters_for(("change.*",), "a.*")


@pytest.mark.parametrize(
    ("error", "kind", "passing"),
    [
        (TimeoutError(), Unavailable, True),
        (OSError("refused"), Unavailable, True),
        (NoStreamResponseError(), Unavailable, True),
        (MaxPayloadError(), Rejected, False),
        (_refusal(503, 10077, "maximum bytes exceeded"), Unavailable, False),
        (_refusal(503, 10008, "temporarily unavailable"), Unavailable, True),
        (_refusal(404, 10059, "stream not found"), Unavailable, False),
        (_refusal(400, 10025, "bad request"), Rejected, False),
    ],
)
def test_the_brokers_refusals_become_errors_of_our_own(
    error: Exception,
    kind: type[Exception],
    passing: bool,  # noqa: FBT001
) -> None:
    assert type(translated(error, "doing")) is kind
    assert is_passing(error) is passing
    assert described(error)


def test_an_error_of_our_own_stays_as_it_is() -> None:
    own = Conflict("moved on")
    assert translated(own, "doing") is own


def test_a_consumer_asks_only_for_what_its_stream_holds() -> None:
    with pytest.raises(Rejected, match="holds no"):
        ConsumerSpec(name="x", stream=Stream.CHANGES, prefixes=("metrics.cost",))
    with pytest.raises(Rejected, match="holds no"):
        ConsumerSpec(name="x", stream=Stream.CHANGES, prefixes=("weather",))
    with pytest.raises(Rejected):
        ConsumerSpec(name="no.dots", stream=Stream.CHANGES, prefixes=("vote.cast",))
    with pytest.raises(Rejected, match="half"):
        ConsumerSpec(name="x", stream=Stream.CHANGES, prefixes=("vote.cast",), ack_wait_s=5.0)
    durable = ConsumerSpec(name="x", stream=Stream.CHANGES, prefixes=("vote.cast",)).durable()
    assert durable.filters == ("vote.cast.*.*.*",)


def test_a_url_is_shown_without_its_password() -> None:
    shown = without_password("nats://u:secret@h:4222, tls://t0ken@h2,[bad,h3:99999999")
    assert shown == "nats://h:4222,tls://h2,(an unreadable address),(an unreadable address)"


def test_a_timer_fires_an_event_whose_id_follows_from_the_timer() -> None:
    timer = event(PAYLOADS["timer.set"])
    fired = fired_by(timer)
    assert fired.fact == PAYLOADS["timer.fired"]
    assert (fired.causation, fired.tenant) == (timer.id, timer.tenant)
    assert fired_by(timer) == fired
    with pytest.raises(Rejected):
        fired_by(fired)


async def test_the_recording_publisher_behaves_like_the_real_one() -> None:
    publisher = RecordingPublisher(clock=lambda: datetime(2026, 2, 1, tzinfo=UTC))
    first = publisher.event(PAYLOADS["change.paused"], tenant="acme")
    second = publisher.event(PAYLOADS["change.paused"], tenant="acme", id=derived_id("given"))
    assert first.id != second.id == derived_id("given")
    assert first.correlation == first.fact.change  # type: ignore[union-attr]
    assert await publisher.publish_many([first, second, first]) == [1, 2, 1]
    assert publisher.facts == [first.fact, second.fact]
    timer = event(PAYLOADS["timer.set"])
    assert await publisher.schedule(timer, AT + timedelta(1), fired_by(timer)) == 1
    publisher.failure = Unavailable("away")
    assert await publisher.publish_many([first]) == [publisher.failure]
    with pytest.raises(Unavailable):
        await publisher.schedule(timer, AT, fired_by(timer))


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [b"ce-id: 1", b"a:b:c", b"a b: 1", b" x : y ", b"\xc3\xa9: 1", b"k:\t v "]
            ),
        )
    )
)
@example([b":"])
def test_headers_are_read_as_the_client_itself_reads_them(lines: list[bytes]) -> None:
    raw = b"\r\n".join(lines)
    assert FastClient._parse_header_lines(raw) == Client._parse_header_lines(raw)
