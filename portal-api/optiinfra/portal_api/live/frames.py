"""Frames of the live stream: what is sent to every client, encoded once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from optiinfra.events.feed import Delivered, StreamState

VERSION = 2
"""2: a WebSocket message holds one frame or several, a line each."""
SUBJECT_TOKENS = 4
_ATTRIBUTES = {
    "ce-specversion": "specversion",
    "ce-id": "id",
    "ce-type": "type",
    "ce-source": "source",
    "ce-subject": "subject",
    "ce-time": "time",
    "ce-tenant": "tenant",
    "ce-correlationid": "correlationid",
    "ce-causationid": "causationid",
    "traceparent": "traceparent",
    "content-type": "datacontenttype",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One event; `cloud_event` is the inside of its JSON object, shared by all clients."""

    sequence: int
    tenant: str
    event_id: str
    at: datetime
    cloud_event: str

    def text(self, prev: int) -> str:
        """The frame for a client whose last frame (or starting point) was `prev`."""
        return f'{{"kind":"event","seq":{self.sequence},"prev":{prev},{self.cloud_event}}}'


@dataclass(frozen=True, slots=True)
class Sent:
    """One frame as text; `sequence` is that of an event, None for all other frames."""

    text: str
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Together:
    """Frames that are sent at once; `text` has a line for each."""

    sent: tuple[Sent, ...]
    text: str

    @classmethod
    def of(cls, *sent: Sent) -> Together:
        return cls(sent, "\n".join(one.text for one in sent))


def frame_of(message: Delivered) -> Frame | None:
    """A message as CloudEvents 1.0 in JSON ("structured mode"); None for what is no event of ours.

    The fact is written anew, without spaces or line ends, which server-sent events need.
    """
    tokens = message.subject.split(".")
    try:
        data = json.dumps(json.loads(message.body), separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        return None
    attributes = {
        name: message.headers[header]
        for header, name in _ATTRIBUTES.items()
        if header in message.headers
    }
    if "id" not in attributes or len(tokens) < SUBJECT_TOKENS:
        return None
    inside = json.dumps(attributes, separators=(",", ":"))[1:-1]
    return Frame(
        sequence=message.sequence,
        tenant=tokens[2],
        event_id=attributes["id"],
        at=message.at,
        cloud_event=f'{inside},"data":{data}',
    )


def hello(state: StreamState) -> str:
    """The first frame: where the stream stands, so that a client knows what it can resume."""
    return json.dumps(
        {
            "kind": "hello",
            "v": VERSION,
            "stream_epoch": state.epoch,
            "oldest": state.oldest,
            "head": state.last,
        }
    )


def gap(first: int, last: int) -> str:
    """What cannot be had any more: fetch the snapshots again."""
    return json.dumps({"kind": "gap", "from": first, "to": last})


def ping(head: int) -> str:
    """Sent when nothing else was for a while: the stream is alive and stands at `head`."""
    return json.dumps({"kind": "ping", "head": head})
