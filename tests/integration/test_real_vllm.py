"""vLLM's contract and flags against a real server: nothing is missing, unknown or renamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from optiinfra.agents.collectors.scrape import EngineScraper, ReplicaReadings
from optiinfra.runtime.stores import now
from optiinfra.schemas.deployment import Engine
from optiinfra.schemas.telemetry import Known, Unknown, UnknownReason
from optiinfra.serving.contracts import contract_for
from optiinfra.serving.engine_rules import Severity
from optiinfra.serving.engines import VllmConfig
from optiinfra.serving.flags import disagreements, flag_table
from optiinfra.serving.launch import command, problems
from optiinfra.serving.versions import parse_version
from tests.captures import TINY_MODEL
from tests.real_vllm import MODEL_NAME, completed, needs_vllm, output_of, running
from tests.telemetry import deployment, replica

pytestmark = [needs_vllm, pytest.mark.timeout(600)]
PROMPTS = [f"Q: What is the anthem of place number {number}?\nA:" for number in range(12)]


def config(port: int, **knobs: Any) -> VllmConfig:
    return VllmConfig(
        model=str(TINY_MODEL), served_model_name=MODEL_NAME, host="127.0.0.1", port=port,
        max_model_len=512, max_num_seqs=4, enforce_eager=True, **knobs,
    )  # fmt: skip


def arguments(port: int) -> tuple[str, ...]:
    """What follows the program in its command line."""
    return command(config(port), None)[1:]


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


async def test_the_flags_are_those_that_the_engine_lists_itself() -> None:
    status, version = await output_of("--version")
    assert status == 0
    version = version.split()[-1]
    status, listed = await output_of("serve", "--help=all")
    assert status == 0
    table = flag_table(Engine.VLLM)
    assert table.checked(parse_version(version)), f"{version} is not in the table yet"
    assert disagreements(table, version, listed) == ()


async def test_what_the_rules_call_refused_the_engine_refuses_itself(unused_tcp_port: int) -> None:
    bad = config(unused_tcp_port, max_num_batched_tokens=2)
    (problem,) = problems(bad, None)
    assert problem.severity is Severity.REFUSED
    status, said = await output_of(*arguments(unused_tcp_port), "--max-num-batched-tokens", "2")
    assert status != 0
    assert "max_num_batched_tokens" in said
