"""A gateway on free ports with engines that misbehave on demand, for the gateway's tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from pydantic import SecretStr

from optiinfra.gateway.app import Gateway, GatewayConfig
from optiinfra.schemas.routing import Backend, BackendState, RouteTable
from optiinfra.schemas.sampling import AnswerSample

TOKEN = "an-admin-token-for-tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
CHAT = "/v1/chat/completions"
PATH = "/admin/routes/acme/chat"


class Engine:
    """An upstream that streams words; `mode` makes it misbehave, `hold` keeps it from going on.

    `pace_s` is the time from one word to the next.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.mode = "good"
        self.tokens = 4
        self.pace_s = 0.0
        self.hold = asyncio.Event()
        self.hold.set()
        self.seen: list[web.Request] = []
        self._served: set[object] = set()
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.hold.set()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        body = await request.read()
        try:
            return await self._answer(request, json.loads(body or b"{}"))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _answer(self, request: web.Request, fields: dict[str, Any]) -> web.StreamResponse:
        if self.mode == "busy":
            return web.json_response({"error": {"message": "busy"}}, status=503)
        if self.mode == "error":
            return web.json_response({"error": {"message": "oops"}}, status=500)
        if self.mode == "blames":
            return web.json_response({"error": {"message": "too long"}}, status=400)
        if self.mode == "silent":
            self.begun.set()
            await asyncio.Event().wait()
        if self.mode == "stale" and request.transport in self._served:
            assert request.transport is not None
            request.transport.abort()
        self._served.add(request.transport)
        if self.mode == "hangup" and request.transport is not None:
            request.transport.abort()
        if self.mode == "head_only":
            return await self._head_only(request)
        if not fields.get("stream"):
            await self.hold.wait()
            return web.json_response(
                {
                    "choices": [{"message": {"content": self.name}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
                },
                headers={"Set-Cookie": "leak=1", "Connection": "X-Private", "X-Private": "1"},
            )
        return await self._stream(request)

    async def _head_only(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.content_length = 100
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(self.tokens):
            await response.write(_event({"content": f"{self.name}{number} "}))
            self.begun.set()
            await asyncio.sleep(self.pace_s)
            await self.hold.wait()
            if self.mode == "breaks" and request.transport is not None:
                request.transport.abort()
                return response
        if self.mode == "stops_short":
            return response
        await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
        return response


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    event = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


class Sink:
    """Keeps the samples."""

    def __init__(self) -> None:
        self.samples: list[AnswerSample] = []

    async def publish(self, samples: list[AnswerSample]) -> None:
        self.samples.extend(samples)


class Bench:
    """A gateway, its engines and a client."""

    def __init__(self, gateway: Gateway, http: aiohttp.ClientSession, sink: Sink) -> None:
        self.gateway, self.http, self.sink = gateway, http, sink
        self.version = 0

    async def route(self, *backends: tuple[Engine, float], drained: tuple[Engine, ...] = ()) -> Any:
        self.version += 1
        rows = [Backend(replica=e.name, url=e.url, weight=w) for e, w in backends]
        rows += [
            Backend(replica=e.name, url=e.url, weight=1, state=BackendState.DRAINING)
            for e in drained
        ]
        table = RouteTable(
            tenant="acme", deployment="chat", model="m", version=self.version, backends=tuple(rows)
        )
        async with self.http.put(
            self.gateway.admin_url + PATH, data=table.model_dump_json(), headers=AUTH
        ) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def ask(
        self,
        *,
        stream: bool = True,
        session: str | None = None,
        stratum: str | None = None,
        **fields: Any,
    ) -> tuple[int, bytes]:
        named = {"X-Session-Id": session, "X-OptiInfra-Stratum": stratum}
        headers = {name: value for name, value in named.items() if value}
        body = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
        async with self.http.post(
            self.gateway.url + CHAT, json=body | fields, headers=headers
        ) as answer:
            return answer.status, await answer.read()

    async def counters(self) -> dict[str, dict[str, int]]:
        async with self.http.get(self.gateway.admin_url + PATH, headers=AUTH) as answer:
            return {row["replica"]: row for row in (await answer.json())["counters"]}

    async def given(self, engine: Engine) -> int:
        """How many requests the engine has been given so far."""
        row = (await self.counters())[engine.name]
        return sum(row[name] for name in ("in_flight", "served", "failed", "truncated"))

    async def totals(self) -> dict[str, int]:
        url = self.gateway.admin_url + "/admin/counters"
        async with self.http.get(url, headers=AUTH) as answer:
            totals: dict[str, int] = (await answer.json())["totals"]
            return totals

    async def until(self, condition: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        async with asyncio.timeout(10):
            while not condition(totals := await self.totals()):  # noqa: ASYNC110 another port
                await asyncio.sleep(0.01)
        return totals

    async def sampled(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.sink.samples) < count:  # noqa: ASYNC110 filled by the pump
                await asyncio.sleep(0.01)

    async def until_in_flight(self, engine: Engine, *, some: bool) -> None:
        async with asyncio.timeout(10):
            while bool((await self.counters())[engine.name]["in_flight"]) is not some:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def standing(state_dir: Path, *, idle_s: float = 30.0) -> AsyncIterator[Bench]:
    """A running gateway with short limits, everything sampled."""
    config = GatewayConfig(
        state_dir=state_dir,
        admin_token=SecretStr(TOKEN),
        port=0,
        admin_port=0,
        body_limit_bytes=4 << 20,
        idle_timeout_s=idle_s,
        connect_timeout_s=1.0,
        suspect_s=0.05,
        sample_fraction=1.0,
        sample_text_bytes=2000,
    )
    sink = Sink()
    gateway = Gateway(config, sink)
    await gateway.start()
    async with aiohttp.ClientSession() as http:
        yield Bench(gateway, http, sink)
    await gateway.stop(grace_s=2)


async def gone() -> Engine:
    """An engine whose port refuses connections."""
    async with Engine("gone").running() as engine:
        pass
    return engine
