"""The contract of vLLM against a real server: nothing that it promises is missing or unknown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from optiinfra.agents.collectors.scrape import EngineScraper, ReplicaReadings
from optiinfra.runtime.stores import now
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.serving.contracts import contract_for
from tests.captures import TINY_MODEL
from tests.real_vllm import MODEL_NAME, completed, needs_vllm, running
from tests.telemetry import deployment, replica

pytestmark = [needs_vllm, pytest.mark.timeout(600)]
PROMPTS = [f"Q: What is the anthem of place number {number}?\nA:" for number in range(12)]


def arguments(port: int) -> list[str]:
    return [
        "serve", str(TINY_MODEL), "--served-model-name", MODEL_NAME, "--host", "127.0.0.1",
        "--port", str(port), "--max-model-len", "512", "--max-num-seqs", "4", "--enforce-eager",
    ]  # fmt: skip


@pytest.fixture
async def scraper() -> AsyncIterator[EngineScraper]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield EngineScraper(client, now, timeout_s=10.0)


async def scraped(scraper: EngineScraper, url: str) -> ReplicaReadings:
    of_model = deployment(model=MODEL_NAME)
    return (await scraper.scrape(of_model, [replica("a", url=url)]))[0]


def known(readings: ReplicaReadings, metric: str, **labels: str) -> Known:
    found = [
        s.reading
        for s in readings.samples
        if s.metric == metric and labels.items() <= s.labels.items()
    ]
    assert len(found) == 1, f"{metric}: {found}"
    assert isinstance(found[0], Known), f"{metric}: {found[0]}"
    return found[0]


def counted(readings: ReplicaReadings, metric: str) -> float:
    return known(readings, metric).value * known(readings, "scrape_window_s").value


async def test_a_real_server_keeps_every_promise_and_counts_what_it_was_asked(
    scraper: EngineScraper, unused_tcp_port: int, tmp_path: Path
) -> None:
    async with running(arguments(unused_tcp_port), unused_tcp_port, tmp_path / "log") as url:
        idle = await scraped(scraper, url)
        assert idle.gaps == ()
        assert known(idle, "kv_usage_fraction").value == 0
        tokens = await completed(url, PROMPTS, 16)
        busy = await scraped(scraper, url)
    assert busy.gaps == ()
    assert not any("contract" in s.labels or "buckets" in s.labels for s in busy.samples)
    unknown = {s.metric for s in busy.samples if isinstance(s.reading, Unknown)}
    assert unknown == {"max_num_seqs"}
    promised = {p.metric for p in contract_for(Engine.VLLM).promises}
    assert promised <= {s.metric for s in busy.samples}
    assert counted(busy, "requests_per_s") == pytest.approx(len(PROMPTS))
    assert counted(busy, "generation_tokens_per_s") == pytest.approx(tokens)
    assert known(busy, "output_length_tokens", quantile="mean").value == pytest.approx(16)
    assert known(busy, "kv_capacity_tokens").value > 512
    ttft = known(busy, "ttft_s", quantile="p95")
    assert 0 < ttft.error < ttft.value < 60


async def test_counters_survive_the_restart_of_a_real_server(
    scraper: EngineScraper, unused_tcp_port: int, tmp_path: Path
) -> None:
    async with running(arguments(unused_tcp_port), unused_tcp_port, tmp_path / "first") as url:
        await completed(url, PROMPTS[:3], 4)
        await scraped(scraper, url)
    gone = await scraped(scraper, url)
    assert {s.reading.reason for s in gone.samples if isinstance(s.reading, Unknown)} == {
        UnknownReason.UNREACHABLE
    }
    async with running(arguments(unused_tcp_port), unused_tcp_port, tmp_path / "second") as url:
        await completed(url, PROMPTS, 4)
        again = await scraped(scraper, url)
    assert counted(again, "requests_per_s") == pytest.approx(len(PROMPTS))
    assert known(again, "ttft_s", quantile="mean").value > 0
