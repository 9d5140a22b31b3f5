"""Scraping real HTTP servers: engines that answer, change, restart, lie, and do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import httpx
import pytest
from aiohttp import web

from optiinfra.agents.collectors.scrape import EngineScraper, ReplicaReadings
from optiinfra.agents.performance.sense import Sensing
from optiinfra.events.facts import MetricsMeasured, TelemetryGap
from optiinfra.schemas.deployment import Engine, Replica
from optiinfra.schemas.telemetry import Known, Reading, Unknown, UnknownReason
from optiinfra.twin.defects import Defect
from optiinfra.twin.emulator import EmulatorConfig, EmulatorServer
from tests.telemetry import NOW, deployment, replica

GAUGES = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 3
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting 1
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc 0.25
# TYPE vllm:request_success_total counter
vllm:request_success_total {finished}
# TYPE vllm:time_to_first_token_seconds histogram
# TYPE vllm:request_time_per_output_token_seconds histogram
# TYPE vllm:inter_token_latency_seconds histogram
# TYPE vllm:e2e_request_latency_seconds histogram
# TYPE vllm:request_queue_time_seconds histogram
# TYPE vllm:request_prompt_tokens histogram
# TYPE vllm:request_generation_tokens histogram
# TYPE vllm:num_preemptions counter
# TYPE vllm:prompt_tokens counter
# TYPE vllm:generation_tokens counter
# TYPE vllm:prefix_cache_hits counter
# TYPE vllm:prefix_cache_queries counter
"""


class Ticks:
    """A clock that moves on by 10 s at each call."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=10)
        return self.now


class FakeEngine:
    """An HTTP server with a `/metrics` and a `/version` of the test's choice."""

    def __init__(self) -> None:
        self.metrics = GAUGES.format(finished=10)
        self.status = 200
        self.version: object = {"version": "0.32.0"}
        self.version_status = 200
        self.told: dict[str, object] = {}
        self.stalled: asyncio.Event | None = None
        self.url = ""

    async def _metrics(self, _: web.Request) -> web.Response:
        if self.stalled is not None:
            await self.stalled.wait()
        return web.Response(text=self.metrics, status=self.status)

    async def _version(self, _: web.Request) -> web.Response:
        if isinstance(self.version, str):
            return web.Response(text=self.version, status=self.version_status)
        return web.json_response(self.version, status=self.version_status)

    async def _told(self, request: web.Request) -> web.Response:
        """What other engines tell elsewhere."""
        if request.path not in self.told:
            return web.Response(status=404)
        return web.json_response(self.told[request.path])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeEngine]:
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics), web.get("/version", self._version)])
        app.add_routes([web.get("/{path:.*}", self._told)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            if self.stalled is not None:
                self.stalled.set()
            await runner.cleanup()


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine().running() as server:
        yield server


@pytest.fixture
async def scraper() -> AsyncIterator[EngineScraper]:
    async with httpx.AsyncClient() as client:
        yield EngineScraper(client, Ticks(), timeout_s=2.0)


async def scraped(scraper: EngineScraper, *replicas: Replica) -> list[ReplicaReadings]:
    return list(await scraper.scrape(deployment(), replicas))


def reading(readings: ReplicaReadings, metric: str) -> Reading:
    return next(s.reading for s in readings.samples if s.metric == metric)


async def test_two_scrapes_give_levels_and_rates(
    scraper: EngineScraper, engine: FakeEngine
) -> None:
    one = replica("a", url=engine.url)
    first = (await scraped(scraper, one))[0]
    assert first.version == "0.32.0"
    assert reading(first, "requests_running") == Known(value=3)
    engine.metrics = GAUGES.format(finished=40)
    second = (await scraped(scraper, one))[0]
    assert reading(second, "requests_per_s") == Known(value=3)
    assert second.gaps == ()


async def test_all_replicas_are_scraped_at_once_and_a_dead_one_is_unreachable(
    scraper: EngineScraper, engine: FakeEngine, unused_tcp_port: int
) -> None:
    dead = replica("b", url=f"http://127.0.0.1:{unused_tcp_port}")
    unborn = replica("c", url=None)
    found = await scraped(scraper, replica("a", url=engine.url), dead, unborn)
    assert [r.replica for r in found] == ["a", "b", "c"]
    for one in found[1:]:
        assert one.gaps == ()
        assert {s.reading.reason for s in one.samples if isinstance(s.reading, Unknown)} == {
            UnknownReason.UNREACHABLE
        }
        assert not any(isinstance(s.reading, Known) for s in one.samples)


async def test_a_server_that_stalls_is_unreachable_in_time(engine: FakeEngine) -> None:
    engine.stalled = asyncio.Event()
    async with httpx.AsyncClient() as client:
        scraper = EngineScraper(client, Ticks(), timeout_s=0.2)
        async with asyncio.timeout(5):
            found = (await scraped(scraper, replica("a", url=engine.url)))[0]
    why = reading(found, "requests_running")
    assert isinstance(why, Unknown)
    assert why.reason is UnknownReason.UNREACHABLE


@pytest.mark.parametrize(
    ("text", "status", "reason", "gaps"),
    [
        ("<html>", 200, UnknownReason.IMPLAUSIBLE, ("scrape",)),
        ("x" * 8_000_001, 200, UnknownReason.IMPLAUSIBLE, ("scrape",)),
        ("", 503, UnknownReason.UNREACHABLE, ()),
    ],
)
async def test_an_answer_that_is_no_exposition_makes_everything_unknown(
    scraper: EngineScraper,
    engine: FakeEngine,
    text: str,
    status: int,
    reason: UnknownReason,
    gaps: tuple[str, ...],
) -> None:
    engine.metrics, engine.status = text, status
    found = (await scraped(scraper, replica("a", url=engine.url)))[0]
    why = reading(found, "requests_waiting")
    assert isinstance(why, Unknown)
    assert why.reason is reason
    assert tuple(gap.metric for gap in found.gaps) == gaps


@pytest.mark.parametrize(
    ("version", "status"),
    [({"detail": "Not Found"}, 404), ("no json", 200), ([1], 200), ({"version": 3}, 200)],
)
async def test_an_engine_that_does_not_tell_its_version_is_read_by_all_names(
    scraper: EngineScraper, engine: FakeEngine, version: object, status: int
) -> None:
    engine.version, engine.version_status = version, status
    found = (await scraped(scraper, replica("a", url=engine.url)))[0]
    assert found.version is None
    assert found.gaps == ()
    assert {s.labels.get("contract") for s in found.samples} == {"assumed"}


@pytest.mark.parametrize(
    ("kind", "path", "field", "version"),
    [
        (Engine.SGLANG, "/get_server_info", "version", "0.5.10"),
        (Engine.TGI, "/info", "version", "3.3.5"),
        (Engine.LLAMA_CPP, "/props", "build_info", "b5646-1a2b3c4d"),
        (Engine.TENSORRT_LLM, "/v2", "version", "2.40.0"),
    ],
)
async def test_each_engine_is_asked_for_its_version_where_it_tells_it(
    scraper: EngineScraper, engine: FakeEngine, kind: Engine, path: str, field: str, version: str
) -> None:
    engine.told = {path: {field: version}}
    found = await scraper.scrape(deployment(engine=kind), [replica("a", url=engine.url)])
    assert found[0].version == version
    assert "requests_running" in {gap.metric for gap in found[0].gaps}


async def test_of_a_server_with_two_models_only_the_deployments_is_read(
    scraper: EngineScraper, engine: FakeEngine
) -> None:
    name = "vllm:num_requests_running"
    both = f'{name}{{model_name="other"}} 7\n{name}{{model_name="chat-model"}} 3'
    engine.metrics = GAUGES.format(finished=10).replace(f"{name} 3", both)
    ours = deployment(model="chat-model")
    found = (await scraper.scrape(ours, [replica("a", url=engine.url)]))[0]
    assert reading(found, "requests_running") == Known(value=3)
    strange = deployment(model="third")
    found = (await scraper.scrape(strange, [replica("a", url=engine.url)]))[0]
    assert [gap.metric for gap in found.gaps] == ["requests_running"]
    assert "chat-model, other; none of them is third" in found.gaps[0].detail


class One:
    """A fleet of one replica."""

    def __init__(self, only: Replica) -> None:
        self.only = only

    async def replicas(self, tenant: str, deployment: str) -> list[Replica]:
        return [self.only]


async def test_a_renamed_metric_is_unknown_and_said_once(
    scraper: EngineScraper, engine: FakeEngine
) -> None:
    engine.metrics = GAUGES.format(finished=10).replace("kv_cache_usage", "gpu_cache_usage")
    fleet = One(replica("a", url=engine.url))
    sensing = Sensing({"chat": deployment()}, fleet, scraper, lambda: NOW)
    measured, gap = sensing.facts(await sensing.scrape())
    assert isinstance(measured, MetricsMeasured)
    (usage,) = (s.reading for s in measured.samples if s.metric == "kv_usage_fraction")
    assert isinstance(usage, Unknown)
    assert usage.reason is UnknownReason.RENAMED
    assert isinstance(gap, TelemetryGap)
    assert gap.metrics == ("kv_usage_fraction",)
    assert "it exposes vllm:gpu_cache_usage_perc" in gap.detail
    (again,) = sensing.facts(await sensing.scrape())
    assert isinstance(again, MetricsMeasured)


async def test_an_upgrade_in_place_is_noticed_after_the_outage(
    scraper: EngineScraper, engine: FakeEngine
) -> None:
    one = replica("a", url=engine.url)
    await scraped(scraper, one)
    engine.status = 503
    await scraped(scraper, one)
    engine.status, engine.version = 200, {"version": "0.33.0"}
    assert (await scraped(scraper, one))[0].version == "0.33.0"


async def test_a_replica_that_left_starts_afresh_when_it_comes_back(
    scraper: EngineScraper, engine: FakeEngine
) -> None:
    one = replica("a", url=engine.url)
    await scraped(scraper, one)
    await scraped(scraper)
    again = (await scraped(scraper, one))[0]
    assert "requests_per_s" not in {s.metric for s in again.samples}


async def test_an_emulator_says_so_on_every_sample_and_its_defects_are_gaps(
    scraper: EngineScraper,
) -> None:
    async with EmulatorServer(EmulatorConfig(time_scale=50)) as server:
        one = replica("a", url=server.url)
        found = (await scraped(scraper, one))[0]
        assert found.gaps == ()
        assert found.version == "0.32.0+emulator"
        assert {s.labels.get("emulated") for s in found.samples} == {"true"}
        assert {s.labels.get("contract") for s in found.samples} == {None}
        server.degrade(Defect(hide_metrics=("vllm:kv_cache_usage_perc",)))
        hidden = (await scraped(scraper, one))[0]
        assert [gap.metric for gap in hidden.gaps] == ["kv_usage_fraction"]
        server.degrade(Defect())
        assert (await scraped(scraper, one))[0].gaps == ()
