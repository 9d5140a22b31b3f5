"""A streamed answer, read line by line, and what several times of a replay say together."""

from __future__ import annotations

import json

import pytest

from optiinfra.agents.performance.replay import Incoming, Played
from optiinfra.schemas.telemetry import Known, Unknown
from optiinfra.serving.simulation import percentile


def line(*, piece: bool = True, tokens: int | None = None) -> bytes:
    event: dict[str, object] = {"choices": [{"text": "a b"}] if piece else []}
    if tokens is not None:
        event["usage"] = {"completion_tokens": tokens}
    return b"data: " + json.dumps(event).encode() + b"\n"


def test_an_engine_that_counts_as_it_goes_is_believed() -> None:
    """A fast one puts several tokens into one piece: pieces alone would make it look slow."""
    coming = Incoming()
    brought = [coming.take(line(tokens=count), at) for at, count in enumerate((1, 5, 12), 10)]
    assert brought == [1, 4, 7]
    assert coming.take(line(piece=False, tokens=12), 13) == 0
    assert (coming.first_s, coming.last_s, coming.tokens) == (10, 12, 12)
    assert not coming.whole
    assert coming.take(b"data: [DONE]\n", 14) == 0
    assert coming.whole


def test_of_another_engine_the_end_corrects_what_the_pieces_told() -> None:
    coming = Incoming()
    brought = [coming.take(line(), at) for at in (1, 2, 3)]
    assert (brought, coming.tokens) == ([1, 1, 1], None)
    assert coming.take(line(piece=False, tokens=8), 4) == 5
    assert coming.tokens == 8


def test_what_is_no_event_brings_nothing() -> None:
    coming = Incoming()
    assert [coming.take(one, 1.0) for one in (b"\n", b": ping\n", b"event: x\n")] == [0, 0, 0]
    assert coming.first_s is None
    with pytest.raises(ValueError, match="Expecting value"):
        coming.take(b"data: <html>\n", 1.0)


def test_the_rate_is_that_of_the_fastest_time_and_the_latencies_are_those_of_all() -> None:
    """Two of three times were disturbed: the median, and the mean, would tell of the machine."""
    times = [Played(ttft_s=[ttft], tokens=100) for ttft in (0.2, 0.1, 0.3)]
    for one, took_s in zip(times, (4.0, 1.0, 5.0), strict=True):
        one.end(took_s)
    first, *later = times
    for one in later:
        first.add(one)
    assert first.tokens_per_s == Known(value=100.0)
    assert first.ttft_p95_s == Known(value=percentile([0.1, 0.2, 0.3], 0.95))
    assert isinstance(Played().tokens_per_s, Unknown)
