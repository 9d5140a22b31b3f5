"""Reading answers as they pass."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optiinfra.gateway.measure import (
    MAX_EVENT_BYTES,
    MAX_JSON_BYTES,
    Answer,
    BlindMeter,
    BodyMeter,
    StreamMeter,
    meter_for,
)


def chat(text: str, reason: str | None = None, index: int = 0) -> dict[str, Any]:
    delta = {"content": text}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}


def stream(*events: dict[str, Any] | str, end: str = "\n") -> bytes:
    texts = (event if isinstance(event, str) else json.dumps(event) for event in events)
    return "".join(f"data: {text}{end}{end}" for text in texts).encode()


def read(data: bytes, limit: int = 1000) -> Answer:
    meter = StreamMeter(limit)
    meter.feed(data, 1.0)
    meter.finish()
    return meter.answer


USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
WHOLE = b": ping\n\nid: 1\n" + stream(
    chat("Grüß "), chat("Gott"), chat("", "stop"), USAGE, "[DONE]"
)


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_however_the_bytes_arrive_the_reading_is_the_same(cuts: list[int], newline: bytes) -> None:
    data = WHOLE.replace(b"\n", newline)
    edges = [0, *sorted(cuts), len(data)]
    meter = StreamMeter(1000)
    for start, end in pairwise(edges):
        meter.feed(data[start:end], 1.0)
    meter.finish()
    seen = meter.answer
    assert (seen.text, seen.finish_reason, seen.complete) == ("Grüß Gott", "stop", True)
    assert (seen.prompt_tokens, seen.output_tokens) == (7, 2)


def test_token_times_are_those_of_the_chunks_with_content() -> None:
    meter = StreamMeter(0)
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    for at, event in enumerate([role, chat("a"), chat("b"), chat("c"), chat("", "stop")]):
        meter.feed(stream(event), float(at))
    meter.finish()
    assert (meter.answer.first_s, meter.answer.last_s) == (1.0, 3.0)
    assert (meter.answer.output_tokens, meter.answer.tpot_s, meter.answer.text) == (3, 1.0, None)


def test_one_token_has_no_time_per_output_token() -> None:
    assert read(stream(chat("a"))).tpot_s is None


@pytest.mark.parametrize(
    "delta",
    [{"reasoning_content": "hm"}, {"tool_calls": [{"id": "1"}]}, {"function_call": {"name": "f"}}],
)
def test_reasoning_and_tool_calls_are_output_but_no_text(delta: dict[str, Any]) -> None:
    seen = read(stream({"choices": [{"delta": delta}]}))
    assert (seen.output_tokens, seen.text) == (1, "")


def test_only_the_first_choice_is_text() -> None:
    assert read(stream(chat("a"), chat("b", index=1))).text == "a"


def test_plain_completions_and_responses_are_read_too() -> None:
    assert read(stream({"choices": [{"text": "x", "finish_reason": "length"}]})).text == "x"
    seen = read(
        stream(
            {"type": "response.output_text.delta", "delta": "y"},
            {"type": "response.reasoning_text.delta", "delta": "z"},
            {"type": "response.completed", "response": {"usage": {"input_tokens": 1}}},
        )
    )
    assert (seen.text, seen.output_tokens, seen.complete) == ("y", 2, True)
    assert seen.prompt_tokens == 1


def test_an_error_event_is_seen() -> None:
    assert read(stream({"error": {"message": "x"}}, "[DONE]")).error


def test_a_stream_without_an_end_is_not_complete() -> None:
    assert not read(stream(chat("a"))).complete
    assert not read(stream(chat("a")) + b"data: [DO").complete


def test_a_text_beyond_the_limit_is_unknown_not_cut() -> None:
    assert read(stream(chat("abc"), chat("äöü")), limit=8).text is None
    assert read(stream(chat("abc"), chat("äö")), limit=8).text == "abcäö"


def test_an_endless_event_ends_the_reading() -> None:
    meter = StreamMeter(1000)
    meter.feed(b"data: " + b"x" * (MAX_EVENT_BYTES + 1), 1.0)
    meter.feed(stream(chat("a")), 2.0)
    meter.finish()
    assert (meter.answer.readable, meter.answer.text, meter.answer.output_tokens) == (
        False,
        None,
        None,
    )


@given(st.binary(max_size=200))
def test_no_bytes_can_break_the_reader(data: bytes) -> None:
    read(data + b"\n\ndata: " + data + b"\n\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "usage", "type", "response", "message"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_json_shape_can_break_the_reader(value: Any) -> None:
    read(stream(json.dumps(value)))
    body = BodyMeter(100)
    body.feed(json.dumps(value).encode(), 0.0)
    body.finish()


def test_a_whole_body_is_read() -> None:
    body = {
        "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": True},
    }
    meter = meter_for("application/json; charset=utf-8", "", 100)
    meter.feed(json.dumps(body).encode(), 0.0)
    meter.finish()
    seen = meter.answer
    assert (seen.text, seen.finish_reason, seen.complete) == ("hello", "stop", True)
    assert (seen.prompt_tokens, seen.output_tokens, seen.first_s) == (2, None, None)


@pytest.mark.parametrize("body", [b"{", b"[]", b"x" * (MAX_JSON_BYTES + 1)])
def test_an_unreadable_body_is_unknown(body: bytes) -> None:
    meter = BodyMeter(100)
    meter.feed(body, 0.0)
    meter.feed(b"", 0.0)
    meter.finish()
    assert (meter.answer.readable, meter.answer.complete) == (False, False)


def test_compressed_and_binary_answers_are_not_read() -> None:
    for kind, coding in (("text/event-stream", "gzip"), ("audio/wav", ""), ("", "")):
        meter = meter_for(kind, coding, 100)
        assert isinstance(meter, BlindMeter)
        meter.feed(b"data: x\n\n", 0.0)
        meter.finish()
        assert meter.answer.readable is False
