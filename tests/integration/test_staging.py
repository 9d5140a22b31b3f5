"""Staging replicas as real processes: a replay is served, what breaks is told, nothing stays."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median

import httpx
import pytest

from optiinfra.agents.actuators.local import EngineCommand, LocalActuator
from optiinfra.agents.actuators.port import LaunchSpec
from optiinfra.agents.collectors.scrape import EngineScraper
from optiinfra.agents.moving.warm_up import CompletionWarmUp
from optiinfra.agents.performance.replay import Replay, Request, Watch, replay_of
from optiinfra.agents.performance.staging import Staging, StagingPolicy, StagingPorts, staging_of
from optiinfra.demo.vllm.measure import in_turns
from optiinfra.runtime.stores import new_id, now
from optiinfra.schemas.errors import Unavailable
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Known
from optiinfra.schemas.tuning import TrialOutcome, TuningTrial
from optiinfra.serving.engines import VllmConfig
from tests.cost_stand import DEPLOYMENT
from tests.factories import AT
from tests.integration import engine_process
from tests.integration.test_engine_rollout import HERE

COMMAND = (
    sys.executable, str(Path(engine_process.__file__)), "--model", "{model}", "--host", "{host}",
    "--port", "{port}", "--grace", "1", "{engine_arguments}",
)  # fmt: skip
ASIDE = staging_of(DEPLOYMENT.id)
REPLAY = Replay(tuple(Request(0.002 * n, f"Question {n}?", 8 + n % 5) for n in range(30)))


def never(_done: float, _rate: float) -> bool:
    return False


@dataclass
class Bench:
    actuator: LocalActuator
    staging: Callable[..., Staging]

    async def tried(
        self, seqs: int, watch: Watch = never, replay: Replay = REPLAY, **policy: float
    ) -> TuningTrial:
        engine = VllmConfig(model="m", max_num_seqs=seqs)
        return await self.staging(**policy).tried(engine, {"max_num_seqs": seqs}, replay, watch)

    async def left(self) -> int:
        return len(await self.actuator.replicas(DEPLOYMENT.tenant, ASIDE))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as http:
        command = EngineCommand(COMMAND, emulated=True)
        actuator = LocalActuator(tmp_path / "engines", command, http, clock=now)
        ports = StagingPorts(
            actuator=actuator,
            warm_up=CompletionWarmUp(http),
            scraper=EngineScraper(http, now),
            new_id=new_id,
            monotonic=time.monotonic,
        )

        def staging(**policy: float) -> Staging:
            given = {"look_s": 0.05, "measure_s": 0.0, **policy}
            return Staging(DEPLOYMENT, HERE, ports, StagingPolicy(**given))

        yield Bench(actuator, staging)
        for one in await actuator.replicas(DEPLOYMENT.tenant, ASIDE):
            await actuator.terminate(DEPLOYMENT.tenant, ASIDE, one.id)


async def test_a_replay_is_served_whole_and_measured(bench: Bench) -> None:
    trial = await bench.tried(16)
    assert (trial.outcome, trial.served, trial.failed) == (TrialOutcome.COMPLETE, 30, 0)
    for reading in (trial.tokens_per_s, trial.ttft_p95_s, trial.tpot_p95_s):
        assert isinstance(reading, Known)
        assert reading.value > 0
    assert isinstance(trial.tokens_per_s, Known)
    assert trial.tokens_per_s.value < REPLAY.output_tokens / REPLAY.span_s
    assert isinstance(trial.kv_usage_peak, Known)
    assert trial.took_s > 0
    assert await bench.left() == 0


async def test_two_engines_serve_side_by_side_in_turns_and_neither_stays(bench: Bench) -> None:
    engines = [VllmConfig(model="m", max_num_seqs=seqs) for seqs in (1, 16)]
    async with bench.staging().side_by_side(engines) as replicas:
        assert await bench.left() == 2
        urls = [replica.url or "" for replica in replicas]
        slow, fast = await in_turns(urls, REPLAY, 3, DEPLOYMENT.model)
        with pytest.raises(Unavailable, match="not served whole"):
            await in_turns(urls, REPLAY, 1, "another model")
    assert len(slow) == len(fast) == 3
    assert median(slow) < median(fast)
    assert await bench.left() == 0


async def test_the_best_one_stays_for_the_next_to_be_measured_in_turns_with_it(
    bench: Bench,
) -> None:
    staging = bench.staging(beside_best=True)
    standing, rates = [], []
    for seqs in (1, 16, 2):
        engine = VllmConfig(model="m", max_num_seqs=seqs)
        trial = await staging.tried(engine, {"max_num_seqs": seqs}, REPLAY, never)
        assert trial.throughput is not None
        rates.append(trial.throughput)
        (left,) = await bench.actuator.replicas(DEPLOYMENT.tenant, ASIDE)
        standing.append(left.id)
    assert rates[0] < rates[2] < rates[1]
    assert standing[0] != standing[1] == standing[2], "the faster one took the place of the slower"
    await bench.actuator.terminate(DEPLOYMENT.tenant, ASIDE, standing[2])
    with pytest.raises(Unavailable, match="measured against"):
        await staging.tried(VllmConfig(model="m", max_num_seqs=4), {}, REPLAY, never)
    assert await staging.clear() == 0
    assert await bench.left() == 0


async def test_engines_of_which_one_does_not_start_are_told_and_none_stays(bench: Bench) -> None:
    engines = [
        VllmConfig(model="m", max_num_seqs=seqs) for seqs in (16, engine_process.DOES_NOT_START)
    ]
    with pytest.raises(Unavailable, match="cannot be measured"):
        async with bench.staging(ready_s=20.0).side_by_side(engines):
            pass
    assert await bench.left() == 0


async def test_a_short_replay_is_measured_again_and_again_once_the_engine_is_warm(
    bench: Bench,
) -> None:
    looked: list[float] = []

    def watch(done: float, _rate: float) -> bool:
        looked.append(done)
        return False

    long = await bench.tried(16, watch, measure_s=4.0)
    assert long.outcome is TrialOutcome.COMPLETE
    assert long.served >= 60
    assert long.served % 30 == 0, "whole replays alone count"
    assert long.took_s > 6.0, "and half as long before"
    assert looked == [], "to give up a replay that is so short would save nothing"


async def test_a_larger_batch_serves_the_same_replay_faster(bench: Bench) -> None:
    slow, fast = await bench.tried(1), await bench.tried(16)
    assert slow.throughput is not None
    assert fast.throughput is not None
    assert fast.throughput > 2 * slow.throughput


@pytest.mark.parametrize(
    ("seqs", "reason"),
    [
        (engine_process.DOES_NOT_START, "ended before it served"),
        (engine_process.RUNS_OUT_OF_MEMORY, "did not answer a warm-up"),
        (engine_process.LOADS_FOR_EVER, "did not serve within 3 s"),
    ],
)
async def test_an_engine_that_breaks_is_a_failed_trial_and_leaves_nothing(
    bench: Bench, seqs: int, reason: str
) -> None:
    ready_s = 3.0 if seqs == engine_process.LOADS_FOR_EVER else 60.0
    trial = await bench.tried(seqs, ready_s=ready_s)
    assert trial.outcome is TrialOutcome.FAILED
    assert reason in trial.reason
    assert trial.throughput is None
    assert await bench.left() == 0


async def test_a_hopeless_trial_is_stopped(bench: Bench) -> None:
    long = Replay(tuple(Request(0.0, f"Question {n}?", 400) for n in range(40)))
    looks: list[tuple[float, float]] = []

    def watch(done: float, rate: float) -> bool:
        looks.append((done, rate))
        return len(looks) == 2

    trial = await bench.tried(1, watch, long)
    assert trial.outcome is TrialOutcome.PRUNED
    assert trial.throughput is None
    assert trial.served < 40
    assert all(0 <= done < 1 for done, _ in looks)
    assert await bench.left() == 0


async def test_a_study_that_is_cut_off_leaves_nothing(bench: Bench) -> None:
    long = Replay(tuple(Request(0.0, "Question?", 4000) for _ in range(4)))
    task = asyncio.create_task(bench.tried(1, replay=long))
    async with asyncio.timeout(30):
        while not await bench.left():  # noqa: ASYNC110 a process tells nobody that it runs
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert await bench.left() == 0


async def test_what_a_killed_study_left_is_cleared(bench: Bench) -> None:
    spec = LaunchSpec(DEPLOYMENT.tenant, ASIDE, "m", HERE, "left", engine=VllmConfig(model="m"))
    await bench.actuator.launch(spec)
    assert await bench.staging().clear() == 1
    assert await bench.left() == 0


def sampled(number: int, **changes: object) -> AnswerSample:
    given = {
        "id": f"{number:032x}", "tenant": "acme", "deployment": "chat", "replica": "chat-1",
        "unit": f"u{number}", "prompt": f"Question {number}?", "answer": "a", "ok": True,
        "output_tokens": 11, "ttft_s": 0.5, "tpot_s": 0.05, "route_version": 1,
        "at": AT + timedelta(seconds=number),
    }  # fmt: skip
    return AnswerSample.model_validate({**given, **changes})


def test_a_replay_is_made_of_the_newest_whole_requests_in_order_of_arrival() -> None:
    samples = [
        sampled(1),
        sampled(2, ok=False),
        sampled(3, output_tokens=None),
        sampled(5, ttft_s=3.0),
        sampled(4),
        sampled(6, prompt=""),
    ]
    replay = replay_of(samples, 2)
    assert [one.prompt for one in replay.requests] == ["Question 5?", "Question 4?"]
    assert [one.at_s for one in replay.requests] == pytest.approx([0.0, 1.5])
    assert replay.output_tokens == 22
    assert replay_of([], 10).requests == ()


def test_a_replay_comes_at_the_rate_that_is_asked_for_in_its_own_pattern() -> None:
    replay = replay_of([sampled(0), sampled(1), sampled(4)], 10)
    faster = replay.offering(2 * 33 / 4)
    assert [one.at_s for one in faster.requests] == pytest.approx([0.0, 0.5, 2.0])
    assert replay.offering(0.0) is replay
    assert Replay(()).offering(5.0).requests == ()
