"""The gateway against clients and upstreams that misbehave, and what it samples of them."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.integration.gateway_stand import CHAT, Bench, Engine, standing


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with standing(tmp_path / "state", idle_s=1.0) as bench:
        yield bench


@pytest.fixture
async def red() -> AsyncIterator[Engine]:
    async with Engine("red").running() as engine:
        yield engine


@pytest.fixture
async def blue() -> AsyncIterator[Engine]:
    async with Engine("blue").running() as engine:
        yield engine


async def test_a_client_that_leaves_cancels_the_work(bench: Bench, red: Engine) -> None:
    await bench.route((red, 1))
    red.hold.clear()
    answer = await bench.http.post(bench.gateway.url + CHAT, json={"model": "m", "stream": True})
    await answer.content.readany()
    assert (await bench.counters())["red"]["in_flight"] == 1
    answer.close()
    totals = await bench.until(lambda t: t["in_flight"] == 0)
    assert (totals["cancelled"], totals["failed"], totals["truncated"]) == (1, 0, 0)
    await asyncio.wait_for(red.cancelled.wait(), 5)
    assert bench.sink.samples == []


async def test_a_client_that_leaves_before_the_first_byte_cancels_the_work(
    bench: Bench, red: Engine
) -> None:
    red.mode = "silent"
    await bench.route((red, 1))
    asking = asyncio.create_task(bench.ask())
    await asyncio.wait_for(red.begun.wait(), 5)
    asking.cancel()
    await bench.until(lambda t: t["in_flight"] == 0 and t["cancelled"] == 1)
    await asyncio.wait_for(red.cancelled.wait(), 5)


async def test_an_upstream_that_never_answers_runs_into_the_idle_limit(
    bench: Bench, red: Engine, blue: Engine
) -> None:
    red.mode = "silent"
    await bench.route((red, 1e6), (blue, 1))
    status, body = await bench.ask(session="s")
    assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")
    assert len(blue.seen) == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\xfe nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 999999 Sure\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n{}",
    ],
)
async def test_garbage_from_an_upstream_is_a_counted_failure(bench: Bench, garbage: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(garbage)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        engine = Engine("red")
        engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await bench.route((engine, 1))
        try:
            status, _ = await bench.ask()
        except aiohttp.ClientError:
            status = 0
        totals = await bench.until(lambda t: t["in_flight"] == 0)
    assert status in (0, 502)
    assert (totals["served"], totals["failed"] + totals["truncated"]) == (0, 1)


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "json_invalid"),
        (b"[1]", "application/json", 400, "json_invalid"),
        (b"[" * 50_000, "application/json", 400, "json_invalid"),
        (b"{}", "application/json", 400, "model_missing"),
        (b'{"model": 7}', "application/json", 400, "model_missing"),
        (b'{"model": "zz"}', "application/json", 404, "model_not_found"),
        (b'{"model": "m"}', "text/plain", 400, "model_missing"),
        (b"x" * (5 << 20), "application/json", 413, "body_too_large"),
    ],
)
async def test_bad_requests_get_openai_errors(
    bench: Bench, red: Engine, body: bytes, kind: str, status: int, code: str
) -> None:
    await bench.route((red, 1))
    async with bench.http.post(
        bench.gateway.url + CHAT, data=io.BytesIO(body), headers={"Content-Type": kind}
    ) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (status, code)
        assert set(error) == {"message", "type", "param", "code"}
    if code == "model_not_found":
        assert "known models: m" in error["message"]
    assert red.seen == []


async def test_before_the_first_route_clients_are_told_to_come_again(
    bench: Bench, red: Engine
) -> None:
    named = {"X-OptiInfra-Deployment": "chat"}
    for headers in ({}, named):
        async with bench.http.post(
            bench.gateway.url + CHAT, json={"model": "m"}, headers=headers
        ) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert (await answer.json())["error"]["code"] == "no_backend"
    await bench.route((red, 1))
    status, _ = await bench.ask()
    assert status == 200


@pytest.mark.parametrize("target", ["/admin/routes", "/v1/../metrics", "/v1/%2e%2e/metrics", "/"])
async def test_only_v1_passes(bench: Bench, target: str) -> None:
    port = int(bench.gateway.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    await writer.wait_closed()


async def test_headers_that_end_at_a_proxy_do_not_pass(bench: Bench, red: Engine) -> None:
    await bench.route((red, 1))
    async with bench.http.post(
        bench.gateway.url + CHAT,
        json={"model": "m"},
        headers={
            "X-Request-Id": "abc-1",
            "Connection": "keep-alive, X-Hop",
            "X-Hop": "1",
            "TE": "trailers",
            "Authorization": "Bearer engine-key",
        },
    ) as answer:
        assert answer.headers["X-Request-Id"] == "abc-1"
        assert "X-Private" not in answer.headers
    got = red.seen[-1].headers
    assert "X-Hop" not in got
    assert "TE" not in got
    assert (got["X-Request-Id"], got["Authorization"]) == ("abc-1", "Bearer engine-key")
    await bench.ask(stream=False)
    assert "Cookie" not in red.seen[-1].headers


async def test_a_deployment_can_be_named_and_models_are_listed(bench: Bench, red: Engine) -> None:
    await bench.route((red, 1))
    url = bench.gateway.url
    for name, status in (("chat", 200), ("acme/chat", 200), ("nobody", 404)):
        async with bench.http.post(
            url + "/v1/rerank", data=b"raw", headers={"X-OptiInfra-Deployment": name}
        ) as answer:
            assert answer.status == status or name != "nobody"
    async with bench.http.get(url + "/v1/models") as answer:
        assert [row["id"] for row in (await answer.json())["data"]] == ["m"]
    for model, status in (("m", 200), ("zz", 404)):
        async with bench.http.get(f"{url}/v1/models/{model}") as answer:
            assert answer.status == status


async def test_samples_carry_the_whole_answer_and_its_arm(bench: Bench, red: Engine) -> None:
    await bench.route((red, 1))
    await bench.ask(session="s1")
    await bench.ask(stream=False, user="u1", stratum="code")
    red.mode = "error"
    await bench.ask(session="s2")
    red.mode = "blames"
    await bench.ask(session="s3")
    await bench.sampled(3)
    first, second, third = bench.sink.samples
    assert (first.answer, first.unit, first.ok) == ("red0 red1 red2 red3 ", "s1", True)
    assert (first.output_tokens, first.finish_reason, first.prompt) == (4, "stop", "hi")
    assert first.ttft_s is not None
    assert (second.answer, second.unit, second.prompt_tokens, second.ttft_s) == (
        "red",
        "u1",
        3,
        None,
    )
    assert (first.stratum, second.stratum) == ("", "code")
    assert (third.ok, third.unit, third.route_version) == (False, "s2", 1)
    assert (await bench.totals())["rejected"] == 1


async def test_an_answer_beyond_the_limit_passes_whole_but_is_not_sampled(
    bench: Bench, red: Engine
) -> None:
    red.tokens = 600
    await bench.route((red, 1))
    _, body = await bench.ask()
    assert body.count(b"data:") == 602
    async with bench.http.get(bench.gateway.admin_url + "/metrics") as answer:
        assert "optiinfra_gateway_samples_oversized_total 1.0" in await answer.text()
    assert bench.sink.samples == []


async def test_a_large_upload_with_expect_is_continued(bench: Bench, red: Engine) -> None:
    await bench.route((red, 1))
    text = "x" * 3_000_000
    async with bench.http.post(
        bench.gateway.url + CHAT,
        data=io.BytesIO(json.dumps({"model": "m", "prompt": text}).encode()),
        headers={"Content-Type": "application/json"},
        expect100=True,
    ) as answer:
        assert answer.status == 200
    assert int(red.seen[-1].headers["Content-Length"]) > 3_000_000
