"""One request and its answer: choose, try, relay, count, sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from optiinfra.gateway.headers import answer_headers
from optiinfra.gateway.inbound import GENERATION_PATHS, Inbound, prompt_text
from optiinfra.gateway.measure import BlindMeter, Meter, StreamMeter, meter_for
from optiinfra.gateway.refusal import Problem, Refusal
from optiinfra.gateway.relay import Client, Relay
from optiinfra.gateway.routes import RouteKey, Routes
from optiinfra.gateway.tally import Latency, Outcome, ReplicaTally, Tallies
from optiinfra.gateway.tap import Tap
from optiinfra.gateway.upstream import BROKEN, Opened, Suspects, Untouched, Upstream
from optiinfra.schemas.ids import NewId, ReplicaId
from optiinfra.schemas.routing import Backend
from optiinfra.schemas.sampling import AnswerSample

_OWN_FAULT = frozenset({400, 405, 413, 415, 422})
"""Statuses by which an engine blames the request."""
NO_BACKEND = Problem(503, "no_backend", "no replica takes new requests of this model now")


@dataclass(frozen=True, slots=True)
class Ports:
    """What an exchange works with."""

    routes: Callable[[], Routes]
    upstream: Upstream
    suspects: Suspects
    tallies: Tallies
    tap: Tap
    new_id: NewId
    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    stopping: Callable[[], bool]
    max_attempts: int


class Exchange:
    """Serves one request; every way out is counted once."""

    def __init__(
        self, ports: Ports, request: web.BaseRequest, inbound: Inbound, key: RouteKey
    ) -> None:
        self._ports = ports
        self._request = request
        self._inbound = inbound
        self._key = key
        self._unit = inbound.unit
        self._sampled = inbound.path in GENERATION_PATHS and ports.tap.wants(key, self._unit)
        self._meter: Meter = BlindMeter()
        self._received_s = ports.monotonic()
        self._asked_s = self._received_s
        self._added_s: float | None = None
        self._begun = False
        self._counted = False
        self._tried: set[ReplicaId] = set()
        self._replica: ReplicaId | None = None
        self._version = ports.routes().version(key)

    async def run(self) -> web.StreamResponse:
        """The answer, already sent; or a refusal when there is none to send."""
        try:
            return await self._first_answer()
        except Refusal:
            self._finish(Outcome.FAILED)
            raise
        finally:
            if not self._counted:
                self._finish(self._outcome_of_leaving())

    async def _first_answer(self) -> web.StreamResponse:
        problem = NO_BACKEND
        while (backend := self._next()) is not None:
            if self._replica is not None:
                self._tally().retried += 1
            self._replica = backend.replica
            self._tried.add(backend.replica)
            try:
                return await self._ask(backend)
            except Untouched as untouched:
                problem = untouched.problem
        raise Refusal(problem)

    def _next(self) -> Backend | None:
        """The backend to ask now, by the routes in force now; each at most once."""
        route = self._ports.routes().get(self._key)
        if route is None or len(self._tried) >= self._ports.max_attempts:
            return None
        self._version = route.table.version
        ranked = route.ranked(self._unit)
        untried = [backend for backend in ranked if backend.replica not in self._tried]
        return next(iter(self._ports.suspects.last(untried)), None)

    async def _ask(self, backend: Backend) -> web.StreamResponse:
        with self._tally().serving():
            self._asked_s = self._ports.monotonic()
            try:
                opened = await self._ports.upstream.open(backend, self._inbound)
            except Untouched:
                self._ports.suspects.add(backend)
                raise
            try:
                if opened.answer.status == 503 and self._next() is not None:
                    raise Untouched(Problem(503, "upstream_busy", "the replicas are overloaded"))
                return await self._relay(opened)
            finally:
                opened.answer.close()

    async def _relay(self, opened: Opened) -> web.StreamResponse:
        answer, first = opened
        began_s = self._ports.monotonic()
        response = self._head(answer)
        outcome = Outcome.CANCELLED
        try:
            writer = await response.prepare(self._request)
            assert writer is not None
            relay = Relay(
                answer, Client(self._request, response), self._meter, self._ports.monotonic
            )
            tail = await self._body(relay, writer, first, began_s)
            self._meter.finish()
            outcome = self._outcome(answer.status, broken=tail is None)
            await self._close(response, outcome, tail or b"")
        except ConnectionError:
            outcome = self._outcome_of_leaving()
        self._finish(outcome)
        return response

    def _head(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers = answer_headers(answer.headers, self._inbound.request_id)
        reason = answer.reason if (answer.reason or "").isascii() else None
        response = web.StreamResponse(status=answer.status, reason=reason, headers=headers)
        if self._ports.stopping():
            response.force_close()
        self._meter = meter_for(
            headers.get("Content-Type", ""),
            headers.get("Content-Encoding", ""),
            self._ports.tap.text_limit_bytes if self._sampled else 0,
        )
        return response

    async def _body(
        self, relay: Relay, writer: AbstractStreamWriter, chunk: bytes, now_s: float
    ) -> bytes | None:
        """Pass the body on as it comes, from `chunk` on; None when the backend broke off.

        Bytes that came together with the end are returned, to be sent together with it.
        """
        self._begun = True
        monotonic = self._ports.monotonic
        while not relay.at_end():
            await writer.write(chunk)
            if self._added_s is None:
                self._added_s = (self._asked_s - self._received_s) + (monotonic() - now_s)
            self._meter.feed(chunk, now_s)
            await writer.drain()
            try:
                chunk = await relay.next()
            except BROKEN:
                return None
            now_s = monotonic()
        self._meter.feed(chunk, now_s)
        return chunk

    def _outcome(self, status: int, *, broken: bool) -> Outcome:
        answer = self._meter.answer
        if status in _OWN_FAULT and not broken:
            return Outcome.REJECTED
        if status >= 400 or (answer.error and not broken):
            return Outcome.FAILED
        streamed = isinstance(self._meter, StreamMeter) and answer.readable
        unfinished = streamed and not answer.complete and self._inbound.path in GENERATION_PATHS
        return Outcome.TRUNCATED if broken or unfinished else Outcome.SERVED

    async def _close(self, response: web.StreamResponse, outcome: Outcome, tail: bytes) -> None:
        """End the answer; a broken one is ended so that the client cannot take it for whole."""
        if outcome is not Outcome.TRUNCATED:
            started_s = self._ports.monotonic()
            await response.write_eof(tail)
            if self._added_s is None:
                waited_s = self._asked_s - self._received_s
                self._added_s = waited_s + (self._ports.monotonic() - started_s)
            return
        if isinstance(self._meter, StreamMeter) and response.content_length is None:
            # The connection stays: a client that sends its next request on it must not lose that.
            problem = Problem(502, "upstream_broke", "the replica broke off amid its answer")
            await response.write(tail + problem.event())
            await response.write_eof()
        elif self._request.transport is not None:
            response.force_close()
            self._request.transport.abort()

    def _outcome_of_leaving(self) -> Outcome:
        """How a request ended that was cut: by its client, or by the gateway's own stop.

        A client may leave once it has the whole answer. While stopping, nobody can tell who cut
        the connection, so that the gateway takes the blame.
        """
        if self._meter.answer.complete:
            self._meter.finish()
            return Outcome.SERVED
        transport = self._request.transport
        left = transport is None or transport.is_closing()
        if left and not self._ports.stopping():
            return Outcome.CANCELLED
        return Outcome.TRUNCATED if self._begun else Outcome.FAILED

    def _tally(self) -> ReplicaTally:
        return self._ports.tallies.of(self._key, self._replica)

    def _finish(self, outcome: Outcome) -> None:
        self._counted = True
        tally = self._tally()
        tally.outcomes[outcome] += 1
        seen = self._meter.answer
        latency: dict[Latency, float | None] = {Latency.ADDED: self._added_s}
        if outcome in (Outcome.SERVED, Outcome.TRUNCATED):
            latency[Latency.TTFT] = self._ttft_s()
        if outcome is Outcome.SERVED:
            latency[Latency.TPOT] = seen.tpot_s
            latency[Latency.E2E] = self._ports.monotonic() - self._received_s
        for kind, value_s in latency.items():
            if value_s is not None:
                tally.latency[kind].observe(value_s)
        if self._sampled and outcome in (Outcome.SERVED, Outcome.FAILED, Outcome.TRUNCATED):
            self._sample(outcome)

    def _ttft_s(self) -> float | None:
        first_s = self._meter.answer.first_s
        return None if first_s is None else first_s - self._received_s

    def _sample(self, outcome: Outcome) -> None:
        seen = self._meter.answer
        prompt = prompt_text(self._inbound.fields)
        answer = (seen.text or "") if outcome is Outcome.FAILED else seen.text
        limit = self._ports.tap.text_limit_bytes
        if self._replica is None:
            return
        if prompt is None or answer is None or len(prompt.encode()) > limit:
            self._ports.tap.oversized += 1
            return
        sample = AnswerSample(
            id=self._ports.new_id(),
            tenant=self._key.tenant,
            deployment=self._key.deployment,
            replica=self._replica,
            unit=self._unit,
            stratum=self._inbound.stratum,
            prompt=prompt,
            answer=answer,
            ok=outcome is Outcome.SERVED,
            finish_reason=seen.finish_reason,
            prompt_tokens=seen.prompt_tokens,
            output_tokens=seen.output_tokens,
            ttft_s=self._ttft_s(),
            tpot_s=seen.tpot_s,
            route_version=self._version,
            at=self._ports.clock(),
        )
        self._ports.tap.offer(sample)
