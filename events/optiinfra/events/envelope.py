"""CloudEvents 1.0 in message headers (binary mode); the body is the fact alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC

from pydantic import AwareDatetime, ValidationError

from optiinfra.events.facts import FACT, Fact
from optiinfra.events.hostile import require_header, require_keepable, require_time
from optiinfra.events.subjects import row_of, subject_of
from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import Invariant, Rejected
from optiinfra.schemas.ids import EventId, TenantId
from optiinfra.schemas.kept import kept

CONTENT_TYPE = "application/json"
MAX_BODY_BYTES = 900_000
"""Kept under the broker's payload limit of 1 MiB with the headers."""


class Event(Value):
    """A fact with its envelope.

    `correlation` is the change (or other long-lived thing) it belongs to, `causation` the event
    that it follows from.
    """

    KEPT = ("subject", "type", "body")

    id: EventId
    source: str
    tenant: TenantId
    time: AwareDatetime
    fact: Fact
    correlation: str | None = None
    causation: EventId | None = None
    traceparent: str | None = None

    @kept
    def subject(self) -> str:
        return subject_of(self.fact, self.tenant)

    @kept
    def type(self) -> str:
        return row_of(self.fact).type

    @kept
    def body(self) -> str:
        """The fact as JSON: the text that is published, kept in the log and hashed."""
        return self.fact.model_dump_json()


def encode(event: Event) -> tuple[str, dict[str, str], bytes]:
    """Subject, headers and body of an event. Raises `Rejected` when the body is too large."""
    body = event.body.encode()
    if len(body) > MAX_BODY_BYTES:
        raise Rejected(
            f"{event.type} of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}",
            hint="send it in smaller parts",
        )
    headers = {
        "Nats-Msg-Id": event.id,
        "content-type": CONTENT_TYPE,
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": event.type,
        "ce-source": event.source,
        "ce-subject": event.subject,
        "ce-time": event.time.astimezone(UTC).isoformat(),
        "ce-tenant": event.tenant,
    }
    optional = {
        "ce-correlationid": event.correlation,
        "ce-causationid": event.causation,
        "traceparent": event.traceparent,
    }
    headers.update({name: value for name, value in optional.items() if value})
    return event.subject, headers, body


def decode(subject: str, headers: Mapping[str, str] | None, body: bytes) -> Event:
    """The event of a message. Raises `Rejected` naming what is wrong with it, never anything else:
    anybody with a credential may have written it.
    """
    if not headers or "ce-id" not in headers:
        raise Rejected("the message has no CloudEvents headers")
    if len(body) > MAX_BODY_BYTES:
        raise Rejected(f"the body of {len(body)} bytes is over the limit of {MAX_BODY_BYTES}")
    try:
        event = Event(
            id=headers["ce-id"],
            source=require_header("ce-source", headers["ce-source"]),
            tenant=headers["ce-tenant"],
            time=require_time("ce-time", headers["ce-time"]),
            fact=FACT.validate_json(body),
            correlation=require_header("ce-correlationid", headers.get("ce-correlationid")),
            causation=headers.get("ce-causationid"),
            traceparent=require_header("traceparent", headers.get("traceparent")),
        )
        require_keepable(body)
    except KeyError as missing:
        raise Rejected(f"the message lacks the header {missing}") from missing
    except ValidationError as invalid:
        raise Rejected(f"the message is not valid: {_first_error(invalid)}") from invalid
    except (ValueError, RecursionError) as invalid:
        raise Rejected(f"the message is not valid: {str(invalid)[:200]}") from invalid
    _check_consistent(event, subject, headers.get("ce-type"))
    return event


def _check_consistent(event: Event, subject: str, declared_type: str | None) -> None:
    try:
        belongs = event.subject
    except Invariant as foreign:
        raise Rejected(f"the body contradicts its envelope: {foreign.message}") from foreign
    if belongs != subject:
        raise Rejected(f"the body belongs on {belongs!r}, not on {subject!r}")
    if declared_type != event.type:
        raise Rejected(f"ce-type is {declared_type!r}, the body is {event.type!r}")


def _first_error(invalid: ValidationError) -> str:
    first = invalid.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{where}: {first['msg']} ({invalid.error_count()} error(s))"
