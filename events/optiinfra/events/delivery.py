"""One message in a consumer's hands, and the dead letter that it may become."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nats.aio.msg import Msg

from optiinfra.events.facts import DeadLettered
from optiinfra.events.subjects import BY_PREFIX
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.ids import derived_id, token

BODY_LIMIT_BYTES = 64_000
ERROR_LIMIT = 2_000
HEADERS_LIMIT = 16_000
NAME_LIMIT = 64
NO_TENANT = "unknown"
_PLAIN_TOKENS = 9

Key = tuple[int, int]
"""Stream sequence and the time (ns) at which it was stored: sequences alone are used again."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message that has been received and not answered."""

    message: Msg
    stream: str
    sequence: int
    stored_ns: int
    position: int
    """Its number among the consumer's deliveries, without gaps."""
    delivered: int
    """How often the broker has delivered it, this time included."""
    pending: int
    """How many messages the consumer still had before it, when this one was sent."""
    since_s: float
    """When it came into hand, on the loop's clock."""
    event_id: str = ""
    """Set once it has been read, as are `tenant` and `content`."""
    tenant: str = ""
    content: Any = None
    """What its handler gets: the event, or what is kept of it."""
    cause: BaseException | None = None
    """Set once it is to be buried."""
    handled: bool = False
    """Set once the handler has succeeded: only the rest (mark, ack) is left to do."""
    holds: int = 0
    conflicts: int = 0
    tried: bool = False
    """Set once it has failed: it waits for another try, and nobody waits for it."""

    @property
    def key(self) -> Key:
        return self.sequence, self.stored_ns


def delivery_of(message: Msg, now_s: float) -> Delivery:
    """Reads the reply subject `$JS.ACK.[domain.account.]stream.consumer.n.seq.seq.time.pending`."""
    tokens = message.reply.split(".")
    first = 2 if len(tokens) == _PLAIN_TOKENS else 4
    if len(tokens) < first + 7:
        raise Rejected(f"{message.subject} did not come from a stream")
    return Delivery(
        message=message,
        stream=tokens[first],
        sequence=int(tokens[first + 3]),
        stored_ns=int(tokens[first + 5]),
        position=int(tokens[first + 4]),
        delivered=int(tokens[first + 2]),
        pending=int(tokens[first + 6]),
        since_s=now_s,
    )


def dead_letter_of(
    delivery: Delivery, consumer: str, attempts: int, at: datetime, *, under: str | None = None
) -> tuple[str, str, DeadLettered]:
    """Id, tenant and fact of the dead letter; burying the same message again gives the same id.

    `under` is the name that it goes under in place of the consumer's; the id stays the consumer's,
    for another consumer under that name may bury the same message.
    """
    message, cause = delivery.message, delivery.cause
    headers = _plain_headers(message)
    fact = DeadLettered(
        consumer=under or consumer,
        subject=message.subject,
        stream=delivery.stream,
        stream_seq=delivery.sequence,
        attempts=attempts,
        error=str(cause)[:ERROR_LIMIT].replace("\x00", "\\0"),
        cause=type(cause).__name__,
        event_id=_name_in(message),
        body=_shown(message.data),
        headers=headers,
        truncated=len(message.data) > BODY_LIMIT_BYTES or headers is None,
        at=at,
    )
    name = derived_id("dead", consumer, delivery.stream, delivery.sequence, delivery.stored_ns)
    return name, _tenant_of(delivery), fact


def _name_in(message: Msg) -> str | None:
    """The id that the message gives itself; cut, for it may be anything."""
    name = (message.headers or {}).get("ce-id")
    return name[:NAME_LIMIT].replace("\x00", "\\0") if name is not None else None


def _plain_headers(message: Msg) -> dict[str, str] | None:
    """The headers as they came; None when they are too many, or no text that can be kept."""
    headers = dict(message.headers or {})
    size = sum(len(name) + len(value) for name, value in headers.items())
    kept = size <= HEADERS_LIMIT and not any("\x00" in value for value in headers.values())
    return headers if kept else None


def body_of(letter: DeadLettered) -> bytes:
    """The message's body, as it was. Raises `Rejected` when the letter holds only a part."""
    if letter.truncated or letter.headers is None:
        raise Rejected(
            "the letter holds only a part of its message, so it cannot be sent again",
            hint="have its sender say it again, then drop the letter",
        )
    marker, _, rest = letter.body.partition("base64:")
    return base64.b64decode(rest) if marker == "" and rest else letter.body.encode()


def _shown(body: bytes) -> str:
    """The body as text; what is no text, or holds NUL, as `base64:`; cut to the limit."""
    part = body[:BODY_LIMIT_BYTES]
    if b"\x00" in part:
        return "base64:" + base64.b64encode(part).decode()
    try:
        return part.decode()
    except UnicodeDecodeError as bad:
        if len(body) > len(part) and bad.start >= len(part) - 3:
            return part[: bad.start].decode()
        return "base64:" + base64.b64encode(part).decode()


def _tenant_of(delivery: Delivery) -> str:
    if delivery.tenant:
        return delivery.tenant
    tokens = delivery.message.subject.split(".")
    for length in (2, 1):
        if ".".join(tokens[:length]) in BY_PREFIX and len(tokens) > length:
            try:
                return token(tokens[length])
            except Rejected:
                break
    return NO_TENANT
