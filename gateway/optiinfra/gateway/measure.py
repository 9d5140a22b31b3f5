"""Reads answers as they pass, for tokens, times and text; never changes or delays a byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_core import from_json

MAX_EVENT_BYTES = 1 << 20
"""An event longer than this ends the measuring of its answer (not the answer)."""
MAX_JSON_BYTES = 1 << 18
"""A body longer than this is not parsed: that would hold up all others."""


@dataclass(slots=True)
class Answer:
    """What has been seen of one answer so far; None is *unknown*.

    `complete` says that the engine ended the answer by itself; `error` that it reported one.
    Times are those of the first and last output token, in seconds on the caller's clock.
    """

    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    first_s: float | None = None
    last_s: float | None = None
    complete: bool = False
    error: bool = False
    readable: bool = True

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per output token after the first; unknown below two tokens."""
        if self.first_s is None or self.last_s is None or (self.output_tokens or 0) < 2:
            return None
        return (self.last_s - self.first_s) / ((self.output_tokens or 0) - 1)


class Meter(Protocol):
    """Watches one answer."""

    answer: Answer

    def feed(self, data: bytes, now_s: float) -> None:
        """Take the next bytes of the body, received at `now_s`."""
        ...

    def finish(self) -> None:
        """The body has ended, cleanly or not."""
        ...


class EventSplitter:
    """Cuts a server-sent event stream into the data of its events, however the bytes arrive.

    Lines end in LF or CRLF, which is what engines send; comments and other fields are skipped.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` completes; `ValueError` when one grows too long."""
        lines = (self._tail + chunk).split(b"\n")
        self._tail = lines.pop()
        events = []
        for line in lines:
            bare = line.removesuffix(b"\r")
            if bare.startswith(b"data:"):
                self._data.append(bare[5:].removeprefix(b" "))
                self._held += len(bare)
            elif not bare and self._data:
                events.append(b"\n".join(self._data))
                self._data, self._held = [], 0
        if len(self._tail) + self._held > MAX_EVENT_BYTES:
            raise ValueError("event too long")
        return events


class _Text:
    """Collects text up to a limit; beyond it the text is unknown, not a cut one."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._parts: list[str] | None = [] if limit_bytes else None
        self._size = 0

    def add(self, text: str) -> None:
        if self._parts is None or not text:
            return
        self._size += len(text.encode())
        if self._size > self._limit:
            self._parts = None
        else:
            self._parts.append(text)

    def value(self) -> str | None:
        return None if self._parts is None else "".join(self._parts)


class StreamMeter:
    """Measures a streamed answer: OpenAI chat, completions and responses events."""

    def __init__(self, text_limit_bytes: int) -> None:
        self.answer = Answer()
        self._splitter = EventSplitter()
        self._text = _Text(text_limit_bytes)
        self._pieces = 0
        self._usage_tokens: int | None = None

    def feed(self, data: bytes, now_s: float) -> None:
        if not self.answer.readable:
            return
        try:
            events = self._splitter.feed(data)
        except ValueError:
            self.answer.readable = False
            return
        for event in events:
            self._event(event, now_s)

    def _event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.answer.complete = True
            return
        event = _object(data)
        if event is None:
            return
        if event.get("error") or event.get("type") in ("error", "response.failed"):
            self.answer.error = True
        _take_usage(self.answer, event)
        self._usage_tokens = self.answer.output_tokens
        token, text = _piece(event)
        if token:
            self._pieces += 1
            self.answer.last_s = now_s
            self.answer.first_s = now_s if self.answer.first_s is None else self.answer.first_s
        self._text.add(text)
        reason = _finish_reason(event)
        if reason is not None:
            self.answer.finish_reason = reason
            self.answer.complete = True

    def finish(self) -> None:
        self.answer.text = self._text.value() if self.answer.readable else None
        if self._usage_tokens is None and self.answer.readable:
            self.answer.output_tokens = self._pieces


class BodyMeter:
    """Measures an answer that comes as one JSON body; its token times are unknown."""

    def __init__(self, text_limit_bytes: int) -> None:
        self.answer = Answer()
        self._body = bytearray()
        self._text = _Text(text_limit_bytes)

    def feed(self, data: bytes, now_s: float) -> None:  # noqa: ARG002 the port's signature
        if not self.answer.readable:
            return
        self._body += data
        if len(self._body) > MAX_JSON_BYTES:
            self.answer.readable = False
            self._body.clear()

    def finish(self) -> None:
        body = _object(bytes(self._body)) if self.answer.readable else None
        if body is None:
            self.answer.readable = False
            return
        self.answer.complete = True
        self.answer.error = bool(body.get("error"))
        _take_usage(self.answer, body)
        self.answer.finish_reason = _finish_reason(body)
        message = _first_choice(body)
        inner = message.get("message")
        text = inner.get("content") if isinstance(inner, dict) else message.get("text")
        if isinstance(text, str):
            self._text.add(text)
        self.answer.text = self._text.value()


class BlindMeter:
    """Stands where an answer cannot be read (compressed, binary)."""

    def __init__(self) -> None:
        self.answer = Answer(readable=False)

    def feed(self, data: bytes, now_s: float) -> None:
        """Nothing to see."""

    def finish(self) -> None:
        """Nothing to conclude."""


def meter_for(content_type: str, content_encoding: str, text_limit_bytes: int) -> Meter:
    """The meter for an answer with these headers; text is kept up to the limit, none at 0."""
    if content_encoding.lower() not in ("", "identity"):
        return BlindMeter()
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return StreamMeter(text_limit_bytes)
    return BodyMeter(text_limit_bytes) if kind == "application/json" else BlindMeter()


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = from_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _first_choice(event: dict[str, Any]) -> dict[str, Any]:
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _piece(event: dict[str, Any]) -> tuple[bool, str]:
    """Whether the event carries output, and its text (reasoning and tool calls have none)."""
    kind = event.get("type")
    if isinstance(kind, str) and kind.endswith(".delta"):
        text = event.get("delta")
        shown = text if isinstance(text, str) and kind == "response.output_text.delta" else ""
        return bool(text), shown
    choice = _first_choice(event)
    delta = choice.get("delta")
    fields = delta if isinstance(delta, dict) else choice
    text = fields.get("content") or fields.get("text")
    shown = text if isinstance(text, str) and choice.get("index") in (None, 0) else ""
    names = ("reasoning_content", "reasoning", "tool_calls", "function_call")
    return bool(text) or any(fields.get(name) for name in names), shown


def _finish_reason(event: dict[str, Any]) -> str | None:
    if event.get("type") in ("response.completed", "response.incomplete"):
        return "stop" if event["type"] == "response.completed" else "length"
    reason = _first_choice(event).get("finish_reason")
    return reason if isinstance(reason, str) else None


def _take_usage(answer: Answer, event: dict[str, Any]) -> None:
    inner = event.get("response")
    usage = event.get("usage") or (inner.get("usage") if isinstance(inner, dict) else None)
    if not isinstance(usage, dict):
        return
    answer.prompt_tokens = _count(usage, "prompt_tokens", "input_tokens", answer.prompt_tokens)
    answer.output_tokens = _count(usage, "completion_tokens", "output_tokens", answer.output_tokens)


def _count(usage: dict[str, Any], name: str, other: str, known: int | None) -> int | None:
    value = usage.get(name, usage.get(other))
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else known
