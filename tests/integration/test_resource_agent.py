"""The resource agent: the machine under it, offered load from scrapes, and votes on capacity."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pynvml
import pytest

from optiinfra.agents.application.golden import Ask, GoldenRunner, Reply, load_golden
from optiinfra.agents.application.records import golden_samples
from optiinfra.agents.base.agent import Agent
from optiinfra.agents.collectors.host import HostCollector, HostCounters, LocalHost
from optiinfra.agents.collectors.nvml import GpuCollector, GpuReadings, Nvml
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.performance.agent import PerformanceAgent
from optiinfra.agents.performance.policy import PerformancePolicy
from optiinfra.agents.resource.agent import ResourceAgent
from optiinfra.agents.resource.forecast import ForecastPolicy
from optiinfra.agents.resource.policy import FORECAST, OFFERED, ResourcePolicy
from optiinfra.agents.resource.sense import HOST_SCOPE, Machine
from optiinfra.events.commands import VoteRequested
from optiinfra.events.facts import ChangeResumed, Fact, MetricsMeasured, VoteCast
from optiinfra.schemas.answers import ANSWER_SCORE, GOLDEN, SOURCE
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.recommendation import (
    ChangeSpec,
    ParallelismChange,
    Precision,
    Quantisation,
    SpotReplacement,
)
from optiinfra.schemas.telemetry import Known, Sample, Unit, Unknown, UnknownReason
from optiinfra.schemas.vote import AgentName, Verdict, Vote
from optiinfra.serving.cards import load_card
from optiinfra.serving.live import CardModel, LoadModel
from optiinfra.twin.emulator import EmulatorConfig, EmulatorServer
from tests.factories import event, recommendation
from tests.telemetry import NOW, Fleet, Recorded, deployment, replica, steady

CARD = "h100-8b-fp16-tp1"
POLICY = ResourcePolicy(
    vote_window_s=100,
    forecast=ForecastPolicy(bin_s=10, horizon_s=30, recent_s=60),
)
WHY = Unknown(reason=UnknownReason.NOT_SUPPORTED, detail="no sensor")


async def unsaid(fact: Fact) -> None:
    raise AssertionError(f"said {fact.kind}")


class FakeHost:
    """Counters that the test sets."""

    def __init__(self) -> None:
        self.now = HostCounters(10, 100, 4e9, 16e9, 1e9, 4e9, 1000, 2000)

    def counters(self) -> HostCounters:
        return self.now


class FakeGpus:
    def gpus(self) -> Sequence[GpuReadings]:
        return [
            GpuReadings(0, "GPU-1", "L4", Known(value=0.9), Known(value=0.8), Known(value=61), WHY)
        ]


class NoDriver:
    def gpus(self) -> Sequence[GpuReadings]:
        raise Unavailable("NVML: Driver Not Loaded")


class Stand:
    """The agent with its ports, at `NOW`."""

    def __init__(
        self, models: dict[str, LoadModel] | None = None, policy: ResourcePolicy = POLICY
    ) -> None:
        self.telemetry = Recorded()
        self.fleet = Fleet(replica("a"), replica("b"), replica("c"))
        self.host = FakeHost()
        machine = Machine(HostCollector(self.host, host="h1"), GpuCollector(FakeGpus(), host="h1"))
        self.agent = ResourceAgent(
            {"chat": deployment()},
            self.fleet,
            self.telemetry,
            machine,
            models={"chat": CardModel(load_card(CARD))} if models is None else models,
            clock=lambda: NOW,
            policy=policy,
        )

    def load(self, rps: float, points: int = 12) -> None:
        """What steady replicas and this agent would have recorded."""
        self.telemetry.samples = [s for name in "abc" for s in steady(name, rps=rps)]
        for k in range(points):
            self.telemetry.samples.append(
                Sample(
                    metric=OFFERED, unit=Unit.PER_SECOND, reading=Known(value=3 * rps),
                    at=NOW - timedelta(seconds=10 * (points - k)),
                )
            )  # fmt: skip

    async def vote(self, spec: ChangeSpec | None = None, **changes: Any) -> Vote:
        proposal = recommendation(**({"spec": spec} if spec else {}), **changes)
        asked = VoteRequested(
            change=proposal.id, round=2, agents=(AgentName.RESOURCE,),
            recommendation=proposal, deadline=NOW + timedelta(seconds=60),
        )  # fmt: skip
        facts = await self.agent.handle(event(asked), unsaid)
        assert len(facts) == 1
        assert isinstance(facts[0], VoteCast)
        return facts[0].vote


def measured(facts: Sequence[Fact], scope: str) -> dict[str, Sample]:
    return {
        sample.metric: sample
        for fact in facts
        if isinstance(fact, MetricsMeasured) and fact.deployment == scope
        for sample in fact.samples
    }


def test_it_is_an_agent() -> None:
    agent: Agent = Stand(policy=ResourcePolicy()).agent
    assert agent.name is AgentName.RESOURCE
    assert agent.hears == ("vote.requested",)
    assert agent.sense_every_s == 30


async def test_the_machine_is_measured_and_named() -> None:
    stand = Stand()
    first = measured(await stand.agent.sense(), HOST_SCOPE)
    assert first["host_memory_used_fraction"].reading == Known(value=0.25)
    assert first["host_disk_used_fraction"].reading == Known(value=0.25)
    assert "host_cpu_busy_fraction" not in first
    assert first["gpu_busy_fraction"].reading == Known(value=0.9)
    assert first["gpu_power_watts"].reading == WHY
    assert first["gpu_busy_fraction"].labels == {
        "host": "h1", "gpu": "0", "uuid": "GPU-1", "name": "L4",
    }  # fmt: skip


async def test_a_forecast_is_recorded_beside_the_load_once_a_step_and_never_instead_of_it() -> None:
    stand = Stand()
    stand.load(2.0)
    found = measured(await stand.agent.sense(), "chat")
    forecast = found[FORECAST]
    assert isinstance(forecast.reading, Known)
    assert forecast.reading.value - forecast.reading.error == 6.0
    assert (forecast.at, forecast.labels["horizon_s"]) == (NOW, "30.0")
    assert FORECAST not in measured(await stand.agent.sense(), "chat")
    blind = Stand()
    blind.load(2.0)
    blind.telemetry.down_for = {OFFERED}
    assert set(measured(await blind.agent.sense(), "chat")) == {OFFERED}


def test_host_rates_are_over_the_time_between_two_rounds() -> None:
    source = FakeHost()
    collector = HostCollector(source, host="h1")
    collector.collect(NOW)
    source.now = HostCounters(15, 110, 4e9, 0.0, 1e9, 4e9, 3000, 1000)
    found = {s.metric: s for s in collector.collect(NOW + timedelta(seconds=10))}
    assert found["host_cpu_busy_fraction"].reading == Known(value=0.5)
    assert found["host_received_bytes_per_s"].reading == Known(value=200)
    assert found["host_cpu_busy_fraction"].window_s == 10
    for impossible in ("host_sent_bytes_per_s", "host_memory_used_fraction"):
        reading = found[impossible].reading
        assert isinstance(reading, Unknown)
        assert reading.reason is UnknownReason.IMPLAUSIBLE
    assert len(collector.collect(NOW + timedelta(seconds=10))) == 2


def test_this_machine_can_be_read() -> None:
    found = HostCollector(LocalHost("/")).collect(NOW)
    assert {s.metric for s in found} == {"host_memory_used_fraction", "host_disk_used_fraction"}
    assert all(isinstance(s.reading, Known) and 0 < s.reading.value <= 1 for s in found)
    assert found[0].labels["host"]


def test_without_a_driver_gpu_readings_are_not_supported() -> None:
    found = GpuCollector(NoDriver(), host="h1").collect(NOW)
    assert {s.metric for s in found} == {
        "gpu_busy_fraction", "gpu_memory_used_fraction", "gpu_temperature_celsius",
        "gpu_power_watts",
    }  # fmt: skip
    for sample in found:
        assert isinstance(sample.reading, Unknown)
        assert sample.reading.reason is UnknownReason.NOT_SUPPORTED


class FakeDriver:
    """The functions of NVML that are used, over one GPU without a power sensor."""

    class Rates:
        gpu = 75

    class Memory:
        used, total = 20, 80

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: dict[str, Any] = {
            "nvmlInit": None, "nvmlShutdown": None, "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle", "nvmlDeviceGetUUID": "GPU-7",
            "nvmlDeviceGetName": "NVIDIA L4", "nvmlDeviceGetUtilizationRates": self.Rates(),
            "nvmlDeviceGetMemoryInfo": self.Memory(), "nvmlDeviceGetTemperature": 55,
        }  # fmt: skip
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", self.refuse)

    @staticmethod
    def refuse(*_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_the_driver_is_asked_for_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver().install(monkeypatch)
    (gpu,) = Nvml().gpus()
    assert (gpu.uuid, gpu.name, gpu.busy_fraction) == ("GPU-7", "NVIDIA L4", Known(value=0.75))
    assert (gpu.memory_used_fraction, gpu.temperature_celsius) == (
        Known(value=0.25),
        Known(value=55),
    )
    assert isinstance(gpu.power_watts, Unknown)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", FakeDriver.refuse)
    with pytest.raises(Unavailable, match="NVML"):
        Nvml().gpus()
    monkeypatch.setattr(pynvml, "nvmlInit", FakeDriver.refuse)
    with pytest.raises(Unavailable, match="NVML"):
        Nvml().gpus()


async def test_offered_load_is_published_for_each_deployment() -> None:
    stand = Stand()
    stand.load(2.0)
    load = measured(await stand.agent.sense(), "chat")[OFFERED]
    assert isinstance(load.reading, Known)
    assert load.reading.value == pytest.approx(6.0)
    assert (load.at, load.window_s) == (NOW, POLICY.offered_window_s)


async def test_golden_prompts_are_neither_in_the_published_load_nor_in_the_vote() -> None:
    stand = Stand()
    stand.load(2.0)
    plain = offered_in(await stand.vote())
    assert plain == pytest.approx(6.0)
    asked = NOW - timedelta(seconds=45)
    for name in "ab":
        stand.telemetry.samples += [golden_row(name, asked, number) for number in range(10)]
    load = measured(await stand.agent.sense(), "chat")[OFFERED]
    assert isinstance(load.reading, Known)
    assert load.reading.value == pytest.approx(6.0 - 20 / 40)
    assert offered_in(await stand.vote()) == pytest.approx(6.0 - 20 / 60)


def golden_row(replica_id: str, asked: datetime, number: int) -> Sample:
    return Sample(
        metric=ANSWER_SCORE, unit=Unit.SCORE, reading=Known(value=1), replica=replica_id,
        at=asked + timedelta(seconds=20), window_s=20, labels={SOURCE: GOLDEN, "unit": str(number)},
    )  # fmt: skip


def offered_in(vote: Vote) -> float:
    (reading,) = (row.reading for row in vote.evidence if row.name == "offered_rps")
    assert isinstance(reading, Known)
    return reading.value


async def test_load_is_unknown_while_golden_prompts_cannot_be_read() -> None:
    stand = Stand()
    stand.load(2.0)
    stand.telemetry.down_for = {ANSWER_SCORE}
    assert OFFERED not in measured(await stand.agent.sense(), "chat")
    with pytest.raises(Unavailable):
        await stand.vote()


async def test_what_cannot_be_read_is_left_out_and_the_machine_is_measured_still() -> None:
    stand = Stand()
    stand.telemetry.down = True
    assert OFFERED not in measured(await stand.agent.sense(), "chat")
    stand.telemetry.down, stand.fleet.down = False, True
    facts = await stand.agent.sense()
    assert measured(facts, HOST_SCOPE)
    with pytest.raises(Unavailable):
        await stand.vote()


async def test_a_load_that_fits_after_a_loss_is_approved() -> None:
    stand = Stand()
    stand.load(2.0)
    vote = await stand.vote()
    assert vote.verdict is Verdict.APPROVE, vote.reasons
    assert (vote.agent, vote.round) == ("resource", 2)
    evidence = {e.name: e.reading for e in vote.evidence}
    each = evidence["capacity_rps_per_replica"]
    assert isinstance(each, Known)
    assert each.value > 10


async def test_a_load_that_does_not_fit_is_rejected_with_its_numbers() -> None:
    stand = Stand()
    stand.load(30.0)
    vote = await stand.vote()
    assert vote.verdict is Verdict.REJECT
    assert "too little capacity: 2 of 3 replica(s) left after losing 1" in vote.reasons[0]


async def test_what_is_unknown_is_an_abstention() -> None:
    stand = Stand()
    vote = await stand.vote()
    assert vote.verdict is Verdict.ABSTAIN
    assert len(vote.reasons) == 3
    assert any("no request has finished" in reason for reason in vote.reasons)
    stand = Stand(models={})
    stand.load(2.0)
    vote = await stand.vote()
    assert vote.verdict is Verdict.ABSTAIN
    assert "no perf card" in vote.reasons[0]


async def test_a_replacement_needs_no_forecast() -> None:
    spec = recommendation().spec
    assert spec.kind == "spot_migration"
    vote = await Stand().vote(SpotReplacement(replicas=("a",), to=spec.to, reclaim_at=NOW))
    assert vote.verdict is Verdict.APPROVE
    assert vote.reasons == ("doing nothing leaves 2 replica(s), replacing 3",)


async def test_kinds_and_deployments_that_it_cannot_judge_are_abstentions() -> None:
    assert "parallelism" in (await Stand().vote(ParallelismChange(tensor_parallel=2))).reasons[0]
    other = Quantisation(from_precision=Precision.FP16, to_precision=Precision.FP8)
    assert "was not measured" in (await Stand().vote(other)).reasons[0]
    assert "not watched" in (await Stand().vote(deployment="other")).reasons[0]


async def test_what_is_not_for_it_is_not_answered() -> None:
    proposal = recommendation()
    asked = VoteRequested(
        change=proposal.id, round=1, agents=(AgentName.PERFORMANCE,),
        recommendation=proposal, deadline=NOW,
    )  # fmt: skip
    agent = Stand().agent
    assert await agent.handle(event(asked), unsaid) == []
    resumed = ChangeResumed(change=proposal.id, by="ann")
    assert await agent.handle(event(resumed), unsaid) == []


async def golden_replies(url: str, count: int) -> list[Reply]:
    asks = [Ask(item, "a", url) for item in load_golden().items[:count]]
    replies = await GoldenRunner(httpx.AsyncClient).run(
        asks, EmulatorConfig(card=CARD).model, limit_s=60
    )
    assert all(reply.ok for reply in replies)
    return replies


async def test_load_at_an_emulated_replica_is_seen_without_its_golden_prompts() -> None:
    def clock() -> datetime:
        return datetime.now(UTC)

    telemetry = Recorded()
    config = EmulatorConfig(card=CARD, time_scale=10)
    async with EmulatorServer(config) as server, httpx.AsyncClient(timeout=60) as client:
        fleet = Fleet(replica("a", url=server.url))
        performance = PerformanceAgent(
            {"chat": deployment()}, fleet, telemetry, EngineScraper(client, clock),
            models={}, clock=clock, policy=PerformancePolicy(),
        )  # fmt: skip
        machine = Machine(HostCollector(), GpuCollector(NoDriver(), host="h1"))
        resource = ResourceAgent(
            {"chat": deployment()}, fleet, telemetry, machine, models={}, clock=clock,
            policy=ResourcePolicy(golden_settle_s=0),
        )  # fmt: skip
        telemetry.record(await performance.sense())
        began = telemetry.samples[-1].at
        body = {"prompt": "Where is it?", "max_tokens": 8}
        async with asyncio.TaskGroup() as group:
            for _ in range(25):
                group.create_task(client.post(f"{server.url}/v1/completions", json=body))
            asked = group.create_task(golden_replies(server.url, 12))
        for reply in asked.result():
            telemetry.samples += golden_samples(reply, clock(), {"purpose": "gate"})
        telemetry.record(await performance.sense())
        span_s = (telemetry.samples[-1].at - began).total_seconds()
        load = measured(await resource.sense(), "chat")[OFFERED]
    assert isinstance(load.reading, Known)
    assert load.reading.value == pytest.approx(25 / span_s)
