"""The engine emulator over real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from optiinfra.schemas.errors import NotFound, Rejected
from optiinfra.serving.cards import load_card
from optiinfra.serving.scheduler import SchedulerConfig
from optiinfra.serving.steps import step_ms
from optiinfra.twin.defects import Defect
from optiinfra.twin.emulator import EmulatorConfig, EmulatorServer, main

MODEL = "emulated-8b"
PROMPT = (
    "Context: Paris is the capital of France. Rome is old.\nQuestion: Capital of France?\nAnswer:"
)
SLOW = EmulatorConfig(card="l40s-8b-fp16-tp1", model=MODEL, seed=7, grace_s=5.0)
FAST = SLOW.model_copy(update={"card": "h100-8b-fp16-tp1", "time_scale": 20.0})


@dataclass
class Streamed:
    """What a client saw of one stream."""

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    ended: bool = False


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


def body(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 20, **changes}


async def ask(
    client: aiohttp.ClientSession, server: EmulatorServer, **changes: Any
) -> dict[str, Any]:
    async with client.post(f"{server.url}/v1/completions", json=body(**changes)) as response:
        answer: dict[str, Any] = await response.json()
        return {"status": response.status, **answer}


async def stream(
    client: aiohttp.ClientSession, url: str, payload: dict[str, Any], path: str = "completions"
) -> Streamed:
    seen, first_s, last_s, sent_s = Streamed(), 0.0, 0.0, time.perf_counter()
    async with client.post(f"{url}/v1/{path}", json={**payload, "stream": True}) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        async for line in response.content:
            if line == b"data: [DONE]\n":
                seen.ended = True
            elif line.startswith(b"data: "):
                chunk = json.loads(line[6:])
                seen.usage = chunk.get("usage") or seen.usage
                for choice in chunk["choices"]:
                    text = choice["text"] if "text" in choice else choice["delta"].get("content")
                    if text:
                        last_s = time.perf_counter()
                        first_s = first_s or last_s
                        seen.texts.append(text)
                    seen.finish_reason = choice["finish_reason"] or seen.finish_reason
    seen.ttft_s = first_s - sent_s
    seen.tpot_s = (last_s - first_s) / max(1, len(seen.texts) - 1)
    return seen


async def scrape(client: aiohttp.ClientSession, server: EmulatorServer) -> dict[str, float]:
    """Sums over labels of every sample, buckets left out."""
    async with client.get(f"{server.url}/metrics") as response:
        text = await response.text()
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


async def test_latencies_are_those_of_the_card(client: aiohttp.ClientSession) -> None:
    card = load_card(SLOW.card)
    async with EmulatorServer(SLOW) as server:
        long_prompt = " ".join(f"word{n}" for n in range(1500))
        seen = await stream(
            client, server.url, body(prompt=long_prompt, max_tokens=40, ignore_eos=True)
            | {"stream_options": {"include_usage": True}},
        )  # fmt: skip
        assert seen.usage is not None
        prompt_tokens = seen.usage["prompt_tokens"]
        ttft_s = step_ms(card, 0, 0, [(0, prompt_tokens)], 1) / 1e3
        tpot_s = step_ms(card, 1, prompt_tokens + 20) / 1e3
        assert seen.ttft_s == pytest.approx(ttft_s, rel=0.35)
        assert seen.tpot_s == pytest.approx(tpot_s, rel=0.25)
        assert (len(seen.texts), seen.finish_reason, seen.ended) == (40, "length", True)
        totals = await scrape(client, server)
        assert totals["vllm:time_to_first_token_seconds_sum"] == pytest.approx(ttft_s, rel=0.35)
        assert totals["vllm:inter_token_latency_seconds_count"] == 39


async def test_metrics_agree_with_what_was_sent(client: aiohttp.ClientSession) -> None:
    async with EmulatorServer(FAST) as server:
        prompts = [f"{n} {PROMPT}" for n in range(12)]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ask(client, server, prompt=p, ignore_eos=True)) for p in prompts
            ]
        sent = sum(task.result()["usage"]["prompt_tokens"] for task in tasks)
        totals = await scrape(client, server)
    assert totals["vllm:prompt_tokens_total"] == sent
    assert totals["vllm:generation_tokens_total"] == 12 * 20
    assert totals["vllm:request_success_total"] == 12
    assert totals["vllm:e2e_request_latency_seconds_count"] == 12
    assert totals["vllm:request_generation_tokens_sum"] == 12 * 20
    assert totals["vllm:num_requests_running"] == 0
    assert totals["vllm:kv_cache_usage_perc"] == 0
    assert totals["optiinfra_emulator_info"] == 1
    assert totals["http_requests_total"] == 12


async def test_the_exposition_has_the_families_of_a_true_scrape(
    client: aiohttp.ClientSession,
) -> None:
    async with EmulatorServer(FAST) as server, client.get(f"{server.url}/metrics") as response:
        families = {f.name: f for f in text_string_to_metric_families(await response.text())}
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions",
        "prefix_cache_queries", "prefix_cache_hits", "prompt_tokens", "generation_tokens",
        "request_success", "cache_config_info", "time_to_first_token_seconds",
    ):  # fmt: skip
        assert f"vllm:{name}" in families
        assert families[f"vllm:{name}"].documentation.startswith("(emulated) ")
    ttft = families["vllm:time_to_first_token_seconds"].samples
    bounds = [s.labels["le"] for s in ttft if s.name.endswith("_bucket")]
    assert (len(bounds), bounds[0], bounds[-2:]) == (23, "0.001", ["2560.0", "+Inf"])
    assert set(ttft[0].labels) == {"engine", "model_name", "le"}


async def test_chat_streams_the_right_answer_with_usage(client: aiohttp.ClientSession) -> None:
    async with EmulatorServer(FAST) as server:
        payload = {
            "messages": [{"role": "user", "content": PROMPT}],
            "stream_options": {"include_usage": True},
        }
        seen = await stream(client, server.url, payload, "chat/completions")
        assert "".join(seen.texts).strip() == "Paris is the capital of France."
        assert (seen.finish_reason, seen.ended) == ("stop", True)
        assert seen.usage is not None
        assert seen.usage["completion_tokens"] == len(seen.texts)
        async with client.post(f"{server.url}/v1/chat/completions", json=payload) as response:
            whole = await response.json()
        assert whole["choices"][0]["message"]["content"] == "".join(seen.texts)


async def test_kv_is_freed_when_the_client_goes_away(client: aiohttp.ClientSession) -> None:
    async with EmulatorServer(SLOW) as server:
        payload = body(max_tokens=2000, ignore_eos=True, stream=True)
        response = await client.post(f"{server.url}/v1/completions", json=payload)
        await response.content.readline()
        assert (await scrape(client, server))["vllm:kv_cache_usage_perc"] > 0
        response.close()
        async with asyncio.timeout(5):
            while (totals := await scrape(client, server))["vllm:num_requests_running"] > 0:
                pass
    assert totals["vllm:kv_cache_usage_perc"] == 0
    assert totals["vllm:request_success_total"] == 1


async def test_a_tiny_kv_cache_preempts_and_everyone_still_gets_an_answer(
    client: aiohttp.ClientSession,
) -> None:
    tiny = SchedulerConfig(kv_tokens=256, max_num_seqs=8)
    async with EmulatorServer(FAST.model_copy(update={"scheduler": tiny})) as server:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    ask(client, server, prompt=f"{n} a b c", max_tokens=100, ignore_eos=True)
                )
                for n in range(6)
            ]
        totals = await scrape(client, server)
    assert {task.result()["usage"]["completion_tokens"] for task in tasks} == {100}
    assert totals["vllm:num_preemptions_total"] > 0
    assert totals["vllm:request_num_preemptions_sum"] == totals["vllm:num_preemptions_total"]


async def test_a_repeated_prefix_hits_the_cache(client: aiohttp.ClientSession) -> None:
    async with EmulatorServer(FAST) as server:
        prefix = " ".join(f"shared{n}" for n in range(200))
        await ask(client, server, prompt=f"{prefix} first")
        second = await ask(client, server, prompt=f"{prefix} second")
        totals = await scrape(client, server)
    hits = totals["vllm:prefix_cache_hits_total"]
    assert hits == second["usage"]["prompt_tokens_details"]["cached_tokens"] > 100
    assert totals["vllm:prefix_cache_queries_total"] == totals["vllm:prompt_tokens_total"]
    assert totals["vllm:prompt_tokens_cached_total"] == hits


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"max_tokens": 9000}, 400, "maximum context length is 8192 tokens"),
        ({"model": "other"}, 404, "`other` does not exist"),
        ({"prompt": ""}, 400, "prompt is empty"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 2}, 400, "n: "),
    ],
)
async def test_bad_requests_get_errors_in_openais_shape(
    client: aiohttp.ClientSession, changes: dict[str, Any], status: int, message: str
) -> None:
    async with EmulatorServer(FAST) as server:
        answer = await ask(client, server, **changes)
    assert answer["status"] == status
    assert message in answer["error"]["message"]
    assert answer["error"]["code"] == status


async def test_a_request_larger_than_the_kv_cache_is_refused_at_once(
    client: aiohttp.ClientSession,
) -> None:
    tiny = SchedulerConfig(kv_tokens=64, max_num_seqs=8)
    async with EmulatorServer(FAST.model_copy(update={"scheduler": tiny})) as server:
        assert (await ask(client, server, max_tokens=200, ignore_eos=True))["status"] == 400


async def test_defects_show_and_can_be_switched_while_running(
    client: aiohttp.ClientSession,
) -> None:
    async with EmulatorServer(FAST) as server:
        url = f"{server.url}/emulator/defect"
        good = await ask(client, server)
        defect = {"wrong_answer_rate": 1.0, "hide_metrics": ["vllm:kv_cache_usage_perc"]}
        async with client.post(url, json=defect) as response:
            assert (await response.json())["wrong_answer_rate"] == 1.0
        bad = await ask(client, server)
        assert "Paris" in good["choices"][0]["text"]
        assert "Paris" not in bad["choices"][0]["text"]
        assert "vllm:kv_cache_usage_perc" not in await scrape(client, server)
        async with client.post(url, json={"error_rate": 2}) as response:
            assert response.status == 400
        server.degrade(Defect(error_rate=1.0))
        assert (await ask(client, server))["status"] == 500
        server.degrade(Defect(truncate_rate=1.0))
        cut = await ask(client, server, ignore_eos=True, max_tokens=30)
        assert cut["usage"]["completion_tokens"] == 10
        totals = await scrape(client, server)
        assert totals["vllm:request_success_total"] == 4


async def test_a_slowdown_stretches_steps(client: aiohttp.ClientSession) -> None:
    async with EmulatorServer(SLOW.model_copy(update={"time_scale": 2.0})) as server:
        plain = await stream(client, server.url, body(ignore_eos=True))
        server.degrade(Defect(slowdown=4.0))
        slow = await stream(client, server.url, body(ignore_eos=True))
    assert slow.tpot_s == pytest.approx(4 * plain.tpot_s, rel=0.35)


async def test_it_says_that_it_is_an_emulator(client: aiohttp.ClientSession) -> None:
    async with EmulatorServer(FAST) as server:
        async with client.get(f"{server.url}/version") as response:
            version = await response.json()
        async with client.get(f"{server.url}/health") as response:
            assert response.status == 200
        async with client.get(f"{server.url}/v1/models") as response:
            models = await response.json()
        async with client.get(f"{server.url}/nothing/here") as response:
            assert response.status == 404
            assert (await response.json())["error"]["type"] == "NotFoundError"
    assert version["version"] == "0.32.0+emulator"
    assert version["emulator"] is True
    assert [m["id"] for m in models["data"]] == [MODEL]


async def test_the_same_seed_gives_the_same_answers(client: aiohttp.ClientSession) -> None:
    flawed = FAST.model_copy(update={"defect": Defect(wrong_answer_rate=0.5)})
    rounds = []
    for _ in range(2):
        async with EmulatorServer(flawed) as server:
            rounds.append([(await ask(client, server))["choices"] for _ in range(8)])
    assert rounds[0] == rounds[1]
    assert len({json.dumps(choices) for choices in rounds[0]}) > 1


async def test_stopping_lets_requests_under_way_finish(client: aiohttp.ClientSession) -> None:
    server = EmulatorServer(SLOW)
    await server.start()
    payload = body(max_tokens=30, ignore_eos=True, stream=True)
    response = await client.post(f"{server.url}/v1/completions", json=payload)
    await response.content.readline()
    async with asyncio.TaskGroup() as group:
        group.create_task(server.stop())
        text = await response.text()
    assert text.endswith("data: [DONE]\n\n")
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.get(f"{server.url}/health")


async def test_beyond_the_grace_a_stop_breaks_streams_off(client: aiohttp.ClientSession) -> None:
    server = EmulatorServer(SLOW.model_copy(update={"grace_s": 0.05}))
    await server.start()
    payload = body(max_tokens=5000, ignore_eos=True, stream=True)
    response = await client.post(f"{server.url}/v1/completions", json=payload)
    await response.content.readline()
    await server.stop()
    with pytest.raises(aiohttp.ClientError):
        await response.text()


async def test_when_the_engine_dies_health_and_requests_say_so(
    client: aiohttp.ClientSession,
) -> None:
    async with EmulatorServer(SLOW) as server:
        payload = body(max_tokens=500, ignore_eos=True, stream=True)
        response = await client.post(f"{server.url}/v1/completions", json=payload)
        await response.content.readline()
        whole = asyncio.create_task(ask(client, server, max_tokens=500, ignore_eos=True))
        async with asyncio.timeout(5):
            while (await scrape(client, server))["vllm:num_requests_running"] < 2:
                pass
        assert server._driver is not None
        server._driver.cancel()
        with pytest.raises(aiohttp.ClientError):
            await response.text()
        assert (await whole)["status"] == 503
        async with client.get(f"{server.url}/health") as health:
            assert health.status == 503
        assert (await ask(client, server))["status"] == 503


async def test_an_unknown_card_or_a_taken_port_does_not_start() -> None:
    with pytest.raises(NotFound):
        await EmulatorServer(EmulatorConfig(card="abacus")).start()
    with pytest.raises(Rejected):
        EmulatorServer().degrade(Defect())
    async with EmulatorServer(FAST) as server:
        taken = EmulatorServer(FAST.model_copy(update={"port": server.port}))
        with pytest.raises(OSError):
            await taken.start()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_announces_its_port_and_ends_on_a_signal(
    client: aiohttp.ClientSession, tmp_path: Path, number: signal.Signals
) -> None:
    announce = tmp_path / "emulator.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "optiinfra.twin.emulator", "--model", MODEL, "--time-scale", "20",
        "--defect", '{"wrong_answer_rate": 1.0}', "--announce", str(announce),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(15):
            said = json.loads(await process.stdout.readline())
            assert said == json.loads(announce.read_text())
            async with client.post(f"{said['url']}/v1/completions", json=body()) as response:
                assert "Paris" not in (await response.json())["choices"][0]["text"]
            process.send_signal(number)
            assert json.loads(await process.stdout.readline())["event"] == "stopped"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    "arguments", [["--card", "abacus"], ["--defect", "{"], ["--max-num-batched-tokens", "1"]]
)
def test_bad_arguments_end_the_command_with_a_reason(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_command_that_cannot_listen_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", "192.0.2.1"]) == 1
    assert json.loads(capsys.readouterr().out)["event"] == "failed"
