"""Counting over windows, sampling by session, and the texts of prompts and headers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from optiinfra.gateway.headers import answer_headers, upstream_headers, usable_request_id
from optiinfra.gateway.inbound import Inbound, prompt_text
from optiinfra.gateway.routes import RouteKey
from optiinfra.gateway.tally import BOUNDS_S, Histogram, Latency, Outcome, Tallies
from optiinfra.gateway.tap import Tap, TapLimits
from optiinfra.gateway.upstream import Suspects
from optiinfra.schemas.errors import Rejected, Unavailable
from optiinfra.schemas.routing import Backend
from optiinfra.schemas.sampling import AnswerSample

KEY = RouteKey("acme", "chat")
START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> datetime:
        return START + timedelta(seconds=self.s)


def served(tallies: Tallies, since_s: float | None) -> int:
    since = None if since_s is None else START + timedelta(seconds=since_s)
    _, rows = tallies.since(since)
    return sum(row.reading.outcomes[list(Outcome).index(Outcome.SERVED)] for row in rows)


def test_a_window_counts_from_its_slot_on() -> None:
    clock = Clock()
    tallies = Tallies(clock, slot_s=5, slots=100)
    for clock.s in (0, 1, 12, 13, 40):
        tallies.of(KEY, "a").outcomes[Outcome.SERVED] += 1
    assert [served(tallies, since) for since in (None, -9, 0, 6, 12, 20, 40, 46)] == [
        5, 5, 5, 3, 3, 1, 1, 0,
    ]  # fmt: skip


def test_a_window_beyond_memory_says_how_far_it_reaches() -> None:
    clock = Clock()
    tallies = Tallies(clock, slot_s=1, slots=3)
    for clock.s in range(10):
        tallies.of(KEY, "a").outcomes[Outcome.SERVED] += 1
    reached, _ = tallies.since(START + timedelta(seconds=2))
    assert (served(tallies, 2), reached) == (3, START + timedelta(seconds=7))


def test_a_latency_lands_in_the_bucket_that_bounds_it() -> None:
    histogram = Histogram()
    for value_s in (0.0, BOUNDS_S[0], BOUNDS_S[3], 1e9):
        histogram.observe(value_s)
    assert (histogram.counts[0], histogram.counts[3], histogram.counts[-1]) == (2, 1, 1)
    assert len(Latency) == len(Tallies(Clock(), slot_s=1, slots=1).of(KEY, None).latency)


def sample(number: int, answer: str = "a") -> AnswerSample:
    return AnswerSample(
        id=f"{number:032x}", tenant="acme", deployment="chat", replica="r", unit="u", prompt="p",
        answer=answer, ok=True, route_version=1, at=START,
    )  # fmt: skip


class Sink:
    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.got: list[str] = []

    async def publish(self, samples: list[AnswerSample]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.got += [sample.id[-2:] for sample in samples]


async def pumped(tap: Tap, samples: Iterable[AnswerSample]) -> None:
    pump = asyncio.create_task(tap.pump())
    for offered in samples:
        tap.offer(offered)
    await tap.flush(5)
    pump.cancel()
    await asyncio.wait([pump])


LIMITS = TapLimits(fraction=1.0, queue_samples=3, retry_first_s=0.001)


async def test_samples_survive_a_sink_that_fails_for_a_while() -> None:
    sink = Sink(Unavailable("x"), OSError("y"), TimeoutError())
    tap = Tap(sink, LIMITS)
    await pumped(tap, [sample(1)])
    assert (sink.got, tap.delivered, tap.dropped, tap.waiting) == (["01"], 1, 0, 0)


async def test_a_rejected_batch_is_counted_as_dropped() -> None:
    tap = Tap(Sink(Rejected("never")), LIMITS)
    await pumped(tap, [sample(1)])
    assert (tap.delivered, tap.dropped) == (0, 1)


async def test_a_full_queue_drops_the_oldest_and_counts_them() -> None:
    sink = Sink()
    tap = Tap(sink, LIMITS)
    await pumped(tap, map(sample, range(5)))
    assert (sink.got, tap.dropped) == (["02", "03", "04"], 2)
    small = Tap(Sink(), TapLimits(fraction=1.0, queue_bytes=10))
    for number in range(3):
        small.offer(sample(number, "abcd"))
    assert (small.waiting, small.dropped) == (2, 1)


async def test_what_cannot_be_delivered_by_the_stop_is_counted() -> None:
    tap = Tap(Sink(*[Unavailable("x")] * 10_000), LIMITS)
    pump = asyncio.create_task(tap.pump())
    tap.offer(sample(1))
    await tap.flush(0.02)
    pump.cancel()
    await asyncio.wait([pump])
    assert tap.dropped == 1


async def test_a_session_is_sampled_whole_and_by_its_deployment() -> None:
    tap = Tap(Sink(), TapLimits(fraction=0.05, fractions={"chat": 0.3}))
    taken = sum(tap.wants(KEY, f"s{n}") for n in range(5_000))
    assert 0.27 < taken / 5_000 < 0.33
    assert all(tap.wants(KEY, "s") == tap.wants(KEY, "s") for _ in range(5))
    other = RouteKey("acme", "batch")
    assert 0.035 < sum(tap.wants(other, f"s{n}") for n in range(5_000)) / 5_000 < 0.065
    silent = Tap(None, LIMITS)
    await silent.pump()
    assert not silent.wants(KEY, "s")


def test_suspects_are_tried_last_until_they_have_rested() -> None:
    now = [0.0]
    suspects = Suspects(2.0, lambda: now[0])
    first, second = (Backend(replica=n, url="http://h", weight=1) for n in "ab")
    suspects.add(first)
    assert suspects.last([first, second]) == [second, first]
    now[0] = 2.5
    assert suspects.last([first, second]) == [first, second]


def test_prompts_become_text() -> None:
    parts: list[Any] = [{"type": "text", "text": "a"}, {"type": "image_url"}, 7]
    user = {"role": "user", "content": parts}
    assert prompt_text({"prompt": "p"}) == "p"
    assert prompt_text({"input": "i"}) == "i"
    assert prompt_text({"messages": [user]}) == "a"
    assert prompt_text({"input": [user, {"role": "assistant", "content": None}]}) == (
        "user: a\n\nassistant: "
    )
    assert prompt_text({"messages": []}) is None
    assert prompt_text({"messages": 3}) is None


def inbound(fields: dict[str, Any], **headers: str) -> Inbound:
    sent = CIMultiDictProxy(CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}))
    return Inbound("rid", "POST", "/v1/completions", sent, b"", fields)


def test_the_unit_is_the_session_then_the_user_then_the_request() -> None:
    fields = {"user": "u", "prompt_cache_key": "k"}
    assert inbound(fields, X_Session_Id="s").unit == "s"
    assert inbound(fields).unit == "u"
    assert inbound({"user": 5, "prompt_cache_key": "k"}).unit == "k"
    assert inbound({"user": ""}).unit == "rid"
    hostile = inbound({"user": "x" * 10_000}).unit
    assert len(hostile) == 32
    assert inbound({"user": "a\nb"}).unit != "a\nb"


def test_a_client_names_the_kind_of_its_work_in_a_few_printable_characters() -> None:
    assert inbound({}, X_OptiInfra_Stratum="code").stratum == "code"
    assert inbound({}).stratum == ""
    assert inbound({}, X_OptiInfra_Stratum="x" * 65).stratum == ""
    assert inbound({}, X_OptiInfra_Stratum="a\x07").stratum == ""
    sent = inbound({}, X_OptiInfra_Stratum="code", X_Other="1").headers
    assert set(upstream_headers(sent, "r")) == {"X-Other", "Accept-Encoding", "X-Request-Id"}


def test_headers_that_cannot_be_written_again_do_not_pass() -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    headers = CIMultiDictProxy(
        CIMultiDict({"X-Odd": odd, "X-Fine": "grün", "Keep-Alive": "1", "Connection": "x-fine"})
    )
    assert dict(answer_headers(headers, "r")) == {"X-Request-Id": "r"}
    assert upstream_headers(headers, "r")["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("value", [None, "", "a b", "x" * 129, "ä"])
def test_a_request_id_that_is_no_token_is_replaced(value: str | None) -> None:
    assert usable_request_id(value) is None
    assert usable_request_id("req-1") == "req-1"
