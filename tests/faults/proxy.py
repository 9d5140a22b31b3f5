"""A proxy on loopback that can turn into a black hole: connections stand, nothing comes through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit


class Proxy:
    """Forwards to one address while `open` is set; what comes in a hole is kept until then."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.moved_to(url)
        self.port = 0
        self.open = asyncio.Event()
        self.open.set()
        self._pipes: set[asyncio.Task[None]] = set()

    def moved_to(self, url: str) -> None:
        """New connections go there."""
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 0)

    @property
    def url(self) -> str:
        """The URL by way of this proxy."""
        parts = urlsplit(self._url)
        login = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{login}@127.0.0.1:{self.port}").geturl()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.open.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._address)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pipe(source, sink))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await source.read(65_536):
                await self.open.wait()
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError, RuntimeError):
            sink.close()

    async def aclose(self) -> None:
        pipes = tuple(self._pipes)
        for task in pipes:
            task.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """A proxy before the server of a URL."""
    made = Proxy(url)
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.open.set()
        server.close()
        await made.aclose()
