"""The gateway against real upstream servers: streaming, splitting, draining, retrying."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.integration.gateway_stand import CHAT, Bench, Engine, gone, standing


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with standing(tmp_path / "state") as bench:
        yield bench


@pytest.fixture
async def red() -> AsyncIterator[Engine]:
    async with Engine("red").running() as engine:
        yield engine


@pytest.fixture
async def blue() -> AsyncIterator[Engine]:
    async with Engine("blue").running() as engine:
        yield engine


async def test_a_stream_passes_untouched_and_chunk_by_chunk(bench: Bench, red: Engine) -> None:
    await bench.route((red, 1))
    async with (
        aiohttp.ClientSession() as direct,
        direct.post(red.url + CHAT, json={"stream": True}) as answer,
    ):
        expected = await answer.read()
    red.hold.clear()
    async with bench.http.post(
        bench.gateway.url + CHAT, json={"model": "m", "stream": True}
    ) as answer:
        assert answer.content_type == "text/event-stream"
        first = await asyncio.wait_for(answer.content.readany(), 5)
        assert first.startswith(b"data:")
        assert b"[DONE]" not in first
        red.hold.set()
        assert first + await answer.read() == expected
    assert (await bench.until(lambda t: t["served"] == 1))["failed"] == 0


async def test_realised_shares_follow_the_weights_and_sessions_stay(
    bench: Bench, red: Engine, blue: Engine
) -> None:
    red.tokens = blue.tokens = 1
    await bench.route((red, 0.9), (blue, 0.1))
    arms: dict[str, set[str]] = {}
    for number in range(600):
        session = f"s{number % 300}"
        _, body = await bench.ask(stream=False, session=session)
        arms.setdefault(session, set()).add(json.loads(body)["choices"][0]["message"]["content"])
    assert all(len(arm) == 1 for arm in arms.values())
    share = sum(arm == {"blue"} for arm in arms.values()) / 300
    assert 0.04 < share < 0.17  # 10 % of 300 sessions, 4 standard deviations


async def test_no_request_is_lost_while_draining_under_load(
    bench: Bench, red: Engine, blue: Engine
) -> None:
    red.tokens = blue.tokens = 6
    await bench.route((red, 1), (blue, 1))
    stop = asyncio.Event()
    results: Counter[bool] = Counter()

    async def load(worker: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            status, body = await bench.ask(session=f"{worker}-{number}")
            results[status == 200 and body.endswith(b"data: [DONE]\n\n")] += 1

    async with asyncio.TaskGroup() as group:
        for worker in range(12):
            group.create_task(load(worker))
        await bench.until(lambda t: t["served"] > 100)
        red.hold.clear()  # what is at red now stays open
        await bench.until_in_flight(red, some=True)
        await bench.route((blue, 1), drained=(red,))
        given = await bench.given(red)
        for worker in range(12, 24):  # the first ones may all be held up at red
            group.create_task(load(worker))
        served = (await bench.totals())["served"]
        await bench.until(lambda t: t["served"] > served + 50)
        assert await bench.given(red) == given
        assert (await bench.counters())["red"]["in_flight"] > 0
        await bench.route((blue, 1))  # even removal cuts nothing
        red.hold.set()
        await bench.until_in_flight(red, some=False)
        stop.set()
    totals = await bench.until(lambda t: t["in_flight"] == 0)
    assert results[False] == 0
    assert totals["served"] == results[True]
    assert totals["failed"] == totals["truncated"] == totals["cancelled"] == 0


async def test_a_dead_backend_costs_a_retry_and_no_request(bench: Bench, red: Engine) -> None:
    dead = await gone()
    await bench.route((dead, 1000), (red, 1))
    assert [(await bench.ask(session=str(n)))[0] for n in range(5)] == [200] * 5
    totals = await bench.totals()
    assert (totals["served"], totals["failed"]) == (5, 0)
    assert totals["retried"] >= 1


@pytest.mark.parametrize("mode", ["busy", "hangup", "head_only"])
async def test_what_has_not_begun_to_answer_is_tried_elsewhere(
    bench: Bench, red: Engine, blue: Engine, mode: str
) -> None:
    red.mode = mode
    await bench.route((red, 1e6), (blue, 1))
    status, body = await bench.ask(session="s")
    assert (status, body.endswith(b"[DONE]\n\n")) == (200, True)
    assert (len(red.seen), len(blue.seen)) == (1, 1)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_that_is_closed_as_it_is_used_again_costs_no_request(
    bench: Bench, red: Engine, *, stream: bool
) -> None:
    """There is no other backend to go to."""
    red.mode = "stale"
    await bench.route((red, 1))
    assert [(await bench.ask(stream=stream))[0] for _ in range(4)] == [200] * 4
    assert len(red.seen) > 4, "some came on a connection that was used before"
    totals = await bench.totals()
    assert (totals["served"], totals["failed"]) == (4, 0)


async def test_an_engine_that_hangs_up_on_a_new_connection_is_asked_once(
    bench: Bench, red: Engine
) -> None:
    red.mode = "hangup"
    await bench.route((red, 1))
    assert (await bench.ask())[0] == 502
    assert len(red.seen) == 1


async def test_an_error_is_no_reason_to_try_elsewhere(
    bench: Bench, red: Engine, blue: Engine
) -> None:
    red.mode = "error"
    await bench.route((red, 1e6), (blue, 1))
    assert (await bench.ask(session="s"))[0] == 500
    assert len(blue.seen) == 0
    assert (await bench.counters())["red"]["failed"] == 1


async def test_when_all_backends_are_gone_the_client_is_told(bench: Bench) -> None:
    await bench.route((await gone(), 1))
    status, body = await bench.ask()
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_unreachable")
    assert (await bench.totals())["failed"] == 1


async def test_when_all_are_draining_the_client_may_retry(bench: Bench, red: Engine) -> None:
    await bench.route(drained=(red,))
    status, body = await bench.ask()
    assert (status, json.loads(body)["error"]["code"]) == (503, "no_backend")


@pytest.mark.parametrize("mode", ["breaks", "stops_short"])
async def test_a_broken_answer_is_never_retried_and_ends_with_an_error_event(
    bench: Bench, red: Engine, blue: Engine, mode: str
) -> None:
    red.mode = mode
    await bench.route((red, 1e6), (blue, 1))
    status, body = await bench.ask(session="s")
    last = body.strip().split(b"\n\n")[-1]
    assert status == 200
    assert body.startswith(b"data: ")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_broke"
    assert len(blue.seen) == 0
    row = (await bench.counters())["red"]
    assert (row["truncated"], row["served"], row["in_flight"]) == (1, 0, 0)


async def test_a_broken_stream_leaves_its_clients_connection_for_the_next_request(
    bench: Bench, red: Engine, blue: Engine
) -> None:
    """A client that has read the end keeps the connection, and sends its next request on it."""
    red.mode = "breaks"
    await bench.route((red, 1e6), (blue, 1))
    where = urlsplit(bench.gateway.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)

    async def ask(session: str) -> bytes:
        body = json.dumps({"model": "m", "stream": True, "messages": []}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nX-Session-Id: {session}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(10):
            return await reader.readuntil(b"\r\n0\r\n\r\n")

    try:
        broken = await ask("s")
        red.mode = "good"
        whole = await ask("s")
    finally:
        writer.close()
    assert b"upstream_broke" in broken
    assert whole.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" in whole
