"""The upstream of the streams: replicas that end a step at a time, as engines with batches do.

All streams of a replica get their token at the same moment; the replicas' steps are shifted
against each other. Each token says its number, when its request came and when it was sent, in
nanoseconds of the machine's monotonic clock, so that a reader in another process can tell what it
cost on the way. It is bare (httptools on uvloop), so that it is not what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from functools import partial
from typing import cast

import httptools

from optiinfra.runtime.loop import run, settle_heap

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BEFORE = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":0,'
    b'"model":"fixed","choices":[{"index":0,"delta":{"content":"'
)
_AFTER = b'"},"logprobs":null,"finish_reason":null}]}\n\n'
_END = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":0,'
    b'"model":"fixed","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}'
    b"\n\ndata: [DONE]\n\n"
)


class Replica:
    """Steps for ever on an absolute timetable."""

    def __init__(self, step_s: float, tokens: int) -> None:
        self.running: set[Connection] = set()
        self.tokens = tokens
        self._step_s = step_s
        self._loop = asyncio.get_running_loop()

    def start(self, at_s: float) -> None:
        self._loop.call_at(at_s, self._step, at_s)

    def _step(self, due_s: float) -> None:
        for connection in list(self.running):
            connection.token()
        self.start(max(due_s, self._loop.time() - self._step_s) + self._step_s)


class Connection(asyncio.Protocol):
    """One connection; one answer at a time."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._sent = 0
        self._asked_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._sent, self._asked_ns = 0, time.monotonic_ns()
        self._replica.running.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._replica.running.discard(self)

    def token(self) -> None:
        said = b"%d %d %d " % (self._sent, self._asked_ns, time.monotonic_ns())
        data = chunk(_BEFORE + said + _AFTER)
        if self._sent == 0:
            data = HEAD + data
        self._sent += 1
        if self._sent == self._replica.tokens:
            self._replica.running.discard(self)
            data += chunk(_END) + b"0\r\n\r\n"
        self._transport.write(data)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def serve(replicas: int, tokens_per_s: float, tokens: int) -> None:
    loop, step_s, urls = asyncio.get_running_loop(), 1 / tokens_per_s, []
    for number in range(replicas):
        replica = Replica(step_s, tokens)
        server = await loop.create_server(
            partial(Connection, replica), "127.0.0.1", 0, backlog=1024
        )
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        replica.start(loop.time() + step_s * number / replicas)
    settle_heap()
    sys.stdout.write(json.dumps({"urls": urls}) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--tokens-per-s", type=float, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of an answer")
    options = parser.parse_args()
    run(serve(options.replicas, options.tokens_per_s, options.tokens))


if __name__ == "__main__":
    main()
