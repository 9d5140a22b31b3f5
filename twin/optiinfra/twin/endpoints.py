"""What the emulated replica serves over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from optiinfra.schemas.base import Value
from optiinfra.schemas.errors import OptiInfraError, Rejected
from optiinfra.serving.cards import PerfCard
from optiinfra.serving.scheduler import Request, Scheduler, SchedulerConfig
from optiinfra.twin.answering import Wanted, answer, library, parse
from optiinfra.twin.defects import Defect, Draws
from optiinfra.twin.engine import Engine, EngineStopped, Stream
from optiinfra.twin.exposition import Exposition
from optiinfra.twin.openai import (
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    Shape,
    error_body,
    usage,
)
from optiinfra.twin.tokens import block_hashes, tokenise

VERSION = "0.32.0+emulator"
MAX_BODY_BYTES = 32 * 2**20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Emulation(Value):
    """What is emulated: a model on a card, under engine settings, faster by `time_scale`."""

    card: PerfCard
    model: str
    seed: int
    time_scale: float
    scheduler: SchedulerConfig
    defect: Defect


class Endpoints:
    """The HTTP face of one emulated engine."""

    def __init__(self, emulation: Emulation) -> None:
        self._emulation = emulation
        self._started_s = time.time()
        self._ordinal = 0
        self._draws = Draws(emulation.seed)
        self._http: dict[tuple[str, str, str], int] = {}
        scheduler = Scheduler(emulation.card, emulation.scheduler)
        self.metrics = Exposition(emulation.model, _cache_config(emulation, scheduler))
        self.engine = Engine(scheduler, self.metrics, emulation.time_scale)
        self.defect = emulation.defect
        self.engine.slowdown = self.defect.slowdown

    def app(self) -> web.Application:
        """The routes."""
        app = web.Application(middlewares=[self._edge], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics),
                web.get("/emulator/defect", self._defect),
                web.post("/emulator/defect", self._set_defect),
            ]
        )
        return app

    def degrade(self, defect: Defect) -> None:
        """Behave like this from now on; requests under way keep the answer they have."""
        self.defect = defect
        self.engine.slowdown = defect.slowdown

    @web.middleware
    async def _edge(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Translate errors into OpenAI's shape, and count requests as vLLM does."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _error(error.reason, error.status)
        except Rejected as error:
            response = _error(str(error), 400)
        except EngineStopped:
            response = _error("the engine has stopped", 503)
        except OptiInfraError as error:
            response = _error(str(error), 500)
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "none"
        key = (path, request.method, f"{response.status // 100}xx")
        self._http[key] = self._http.get(key, 0) + 1
        return response

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, await _body(request, CompletionRequest))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, await _body(request, ChatRequest))

    async def _generate(self, http: web.Request, body: AnyRequest) -> web.StreamResponse:
        arrived_s = asyncio.get_running_loop().time()
        if body.model is not None and body.model != self._emulation.model:
            return _error(f"The model `{body.model}` does not exist.", 404, "model")
        self._ordinal += 1
        if self._draws.hits(self.defect.error_rate, self._ordinal, "error"):
            self.metrics.count("request_success_total", label="error")
            return _error("Internal server error (emulated defect)", 500)
        stream = self._stream(body, arrived_s)
        shape = Shape(body, _request_id(http, stream), self._emulation.model, int(time.time()))
        self.engine.submit(stream)
        try:
            if body.stream:
                return await self._streamed(http, stream, shape, body)
            return await self._whole(stream, shape)
        finally:
            self.engine.abort(stream)

    def _stream(self, body: AnyRequest, arrived_s: float) -> Stream:
        """Tokens in, answer out: everything but the time it takes."""
        text = body.prompt_text()
        prompt = tokenise(text)
        limit = self._limit(len(prompt), body)
        wrong = self._draws.hits(self.defect.wrong_answer_rate, self._ordinal, "wrong")
        said = answer(
            library(),
            parse(text),
            Wanted(limit, limit if body.ignore_eos else body.min_tokens, body.stop),
            self._draws.number(self._ordinal, "source") if wrong else None,
        )
        tokens, finish_reason = said.tokens, said.finish_reason
        if self._draws.hits(self.defect.truncate_rate, self._ordinal, "truncate"):
            tokens, finish_reason = tokens[: max(1, len(tokens) // 3)], "stop"
        hashes = block_hashes([*prompt, *tokens], self._emulation.scheduler.block_size)
        name = f"{self._draws.number(self._ordinal, 'id'):016x}"
        request = Request(name, len(prompt), len(tokens), hashes)
        return Stream(request, tokens, finish_reason, limit, arrived_s, eager=body.stream)

    def _limit(self, prompt_tokens: int, body: AnyRequest) -> int:
        """Output tokens this request may have; raises `Rejected` beyond the context length."""
        longest = self._emulation.scheduler.max_model_len
        asked = body.limit if body.limit is not None else max(1, longest - prompt_tokens)
        if prompt_tokens + asked > longest:
            raise Rejected(
                f"This model's maximum context length is {longest} tokens. However, you requested"
                f" {prompt_tokens + asked} tokens ({prompt_tokens} in the prompt, {asked} in the"
                " completion). Please reduce the length of the prompt or completion."
            )
        return asked

    async def _streamed(
        self, http: web.Request, stream: Stream, shape: Shape, body: AnyRequest
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        with suppress(ConnectionResetError):
            burst = await stream.burst()
            await response.prepare(http)
            data = shape.opening()
            while True:
                over = stream.taken == len(stream.tokens)
                data += shape.chunks(burst, stream.finish_reason if over else None)
                if over:
                    break
                await response.write(data)
                data, burst = b"", await self._next(stream, http)
            await response.write(
                data + shape.ending(_usage(stream) if body.include_usage else None)
            )
            await response.write_eof()
        return response

    async def _next(self, stream: Stream, http: web.Request) -> Sequence[str]:
        """The next burst; a stopped engine breaks the connection, as a dead one would."""
        try:
            return await stream.burst()
        except EngineStopped:
            if http.transport is not None:
                http.transport.abort()
            raise ConnectionResetError from None

    async def _whole(self, stream: Stream, shape: Shape) -> web.Response:
        text = "".join(await stream.whole())
        return web.json_response(shape.whole(text, stream.finish_reason, _usage(stream)))

    async def _models(self, _: web.Request) -> web.Response:
        model = {
            "id": self._emulation.model,
            "object": "model",
            "created": int(self._started_s),
            "owned_by": "optiinfra-emulator",
            "root": self._emulation.card.model,
            "max_model_len": self._emulation.scheduler.max_model_len,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.engine.stopped else 200)

    async def _version(self, _: web.Request) -> web.Response:
        card = self._emulation.card
        return web.json_response(
            {
                "version": VERSION,
                "emulator": True,
                "card": card.name,
                "provenance": card.provenance,
                "time_scale": self._emulation.time_scale,
                "seed": self._emulation.seed,
            }
        )

    async def _defect(self, _: web.Request) -> web.Response:
        return web.json_response(self.defect.model_dump(mode="json"))

    async def _set_defect(self, request: web.Request) -> web.Response:
        self.degrade(await _body(request, Defect))
        return await self._defect(request)

    async def _metrics(self, _: web.Request) -> web.Response:
        self.engine.gauge()
        self._publish_own()
        text = self.metrics.render(frozenset(self.defect.hide_metrics))
        return web.Response(body=text.encode(), headers={"Content-Type": _PROMETHEUS})

    def _publish_own(self) -> None:
        emulation, publish = self._emulation, self.metrics.publish
        about = {
            "card": emulation.card.name,
            "model_name": emulation.model,
            "provenance": emulation.card.provenance.value,
            "seed": str(emulation.seed),
            "time_scale": f"{emulation.time_scale:g}",
            "version": VERSION,
        }
        publish(
            "optiinfra_emulator_info", "gauge", "This engine is emulated, no GPU.", (about, 1.0)
        )
        for name, kind, help_text, value in (
            ("optiinfra_emulator_lag_seconds_total", "counter", "Time lost to a busy host.",
             self.engine.lag_s),
            ("process_start_time_seconds", "gauge", "Start, since the epoch.", self._started_s),
            ("process_cpu_seconds_total", "counter", "CPU of this process.", time.process_time()),
        ):  # fmt: skip
            publish(name, kind, help_text, ({}, value))
        counted = [
            ({"handler": path, "method": method, "status": status}, float(count))
            for (path, method, status), count in self._http.items()
        ]
        publish("http_requests_total", "counter", "Requests by method, status, handler.", *counted)


Body = TypeVar("Body", bound=BaseModel)
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


async def _body(request: web.Request, shape: type[Body]) -> Body:
    """The JSON body in its shape; raises `Rejected` that says what is wrong with it."""
    try:
        return shape.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Rejected(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _request_id(http: web.Request, stream: Stream) -> str:
    """The caller's `X-Request-Id`, as vLLM takes it, or the emulator's own."""
    return http.headers.get("X-Request-Id") or stream.request.id


def _usage(stream: Stream) -> dict[str, Any]:
    request = stream.request
    return usage(request.prompt_tokens, len(stream.tokens), request.cached_tokens)


def _error(message: str, status: int, param: str | None = None) -> web.Response:
    return web.json_response(error_body(message, status, param), status=status)


def _cache_config(emulation: Emulation, scheduler: Scheduler) -> dict[str, str]:
    """The labels of `vllm:cache_config_info` that this engine decides."""
    config, tokens = scheduler.config, scheduler.kv_capacity_tokens
    return {
        "block_size": str(config.block_size),
        "effective_attention_block_size": str(config.block_size),
        "enable_prefix_caching": str(config.enable_prefix_caching),
        "kv_cache_max_concurrency": f"{tokens / config.max_model_len:.2f}",
        "kv_cache_memory_bytes": str(tokens * emulation.card.kv_bytes_per_token),
        "kv_cache_size_tokens": str(tokens),
        "num_gpu_blocks": str(scheduler.pool.total),
    }
