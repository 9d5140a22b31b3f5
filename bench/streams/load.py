"""The load generator: many streams at once, each token's way timed and its number checked.

It reads a line of JSON, plays a slice and answers with a line of JSON, until its input ends.
Answers are only kept while they come and are read once the slice is over.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

from optiinfra.runtime.loop import run

BODY = json.dumps(
    {
        "model": "fixed",
        "stream": True,
        "messages": [{"role": "user", "content": "tell me something of fixed length " * 8}],
    }
).encode()
_TOKEN = re.compile(rb'"content":"(\d+) (\d+) (\d+) "')
_CONNECT_S = 10.0
_OVERTIME_S = 30.0


@dataclass(eq=False)
class Answer:
    """One answer as it came: pieces of its body and when they were read."""

    sent_ns: int
    pieces: list[tuple[int, bytes]] = field(default_factory=list)
    status: int = 0
    ended: bool = False

    def events(self) -> Iterator[tuple[int, bytes]]:
        """Each event with the time at which the last of it was read."""
        held = b""
        for at_ns, piece in self.pieces:
            *events, held = (held + piece).split(b"\n\n")
            for event in events:
                yield at_ns, event


@dataclass
class Wanted:
    """A slice: `streams` at all times; times count from `ramp_s` on, for `measure_s`."""

    ports: list[int]
    streams: int
    tokens: int
    ramp_s: float
    measure_s: float


class Slice:
    """What is going on and what has come so far."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.answers: list[Answer] = []
        self.loop = asyncio.get_running_loop()
        began_ns = time.monotonic_ns()
        self.from_ns = began_ns + int(wanted.ramp_s * 1e9)
        self.until_ns = self.from_ns + int(wanted.measure_s * 1e9)

    async def play(self) -> None:
        """Begins streams evenly over the ramp, and lets the last ones end."""
        wanted = self.wanted
        streams = []
        for number in range(wanted.streams):
            port = wanted.ports[number % len(wanted.ports)]
            _, stream = await asyncio.wait_for(
                self.loop.create_connection(lambda: Stream(self), "127.0.0.1", port), _CONNECT_S
            )
            streams.append(stream)
            self.loop.call_later(wanted.ramp_s * number / wanted.streams, stream.ask)
        longest_s = wanted.ramp_s + wanted.measure_s + _OVERTIME_S
        await asyncio.wait([stream.over for stream in streams], timeout=longest_s)
        for stream in streams:
            stream.close()


class Stream(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, slice_: Slice) -> None:
        self._slice = slice_
        self.over: asyncio.Future[None] = slice_.loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        port = transport.get_extra_info("peername")[1]
        self._request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
            b"Content-Type: application/json\r\nAccept: text/event-stream\r\n"
            b"Authorization: Bearer an-api-key\r\nContent-Length: %d\r\n\r\n" % (port, len(BODY))
        ) + BODY

    def ask(self) -> None:
        if time.monotonic_ns() >= self._slice.until_ns:
            self.close()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer(time.monotonic_ns())
        self._slice.answers.append(self._answer)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now_ns = time.monotonic_ns()
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._answer.pieces.append((self._now_ns, body))

    def on_message_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()
        self._answer.ended = True
        self._slice.loop.call_soon(self.ask)

    def connection_lost(self, _error: Exception | None) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()
        if not self.over.done():
            self.over.set_result(None)


def read(slice_: Slice) -> dict[str, Any]:
    """Times in ms of the tokens sent in the measured part; counts of all."""
    found: dict[str, Any] = {"ttfb_ms": [], "delay_ms": [], "gap_ms": []}
    counts = dict.fromkeys(("answers", "tokens", "lost", "reordered", "broken"), 0)
    for answer in slice_.answers:
        last, before_ns = -1, 0
        numbers = set()
        for at_ns, event in answer.events():
            match = _TOKEN.search(event)
            if match is None:
                continue
            number, asked_ns, sent_ns = map(int, match.groups())
            numbers.add(number)
            counts["tokens"] += 1
            counts["reordered"] += number <= last
            if slice_.from_ns <= sent_ns < slice_.until_ns:
                found["delay_ms"].append((at_ns - sent_ns) / 1e6)
                if number == 0:
                    own_ns = sent_ns - asked_ns
                    found["ttfb_ms"].append((at_ns - answer.sent_ns - own_ns) / 1e6)
                else:
                    found["gap_ms"].append((at_ns - before_ns) / 1e6)
            last, before_ns = number, at_ns
        counts["answers"] += 1
        counts["lost"] += slice_.wanted.tokens - len(numbers)
        counts["broken"] += not answer.ended or answer.status != 200
    return found | counts


async def play(wanted: Wanted) -> dict[str, Any]:
    slice_ = Slice(wanted)
    await slice_.play()
    return read(slice_)


def main() -> None:
    gc.disable()
    for line in sys.stdin:
        answer = run(play(Wanted(**json.loads(line))))
        gc.collect()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
