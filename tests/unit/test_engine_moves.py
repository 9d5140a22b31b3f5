"""Tuning engines: which knobs turn, what is refused before anything changes, and the warm-up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest

from optiinfra.agents.actuators.port import Configurable
from optiinfra.agents.moving.execute import Executor
from optiinfra.agents.moving.job import Hands
from optiinfra.agents.moving.warm_up import CompletionWarmUp, WarmUpPolicy
from optiinfra.agents.performance.execute import EngineMoves
from optiinfra.agents.performance.tuning import tuned
from optiinfra.events.commands import ExecutionRequested, RollbackRequested
from optiinfra.events.facts import ExecutionFailed, ExecutionStaged, Fact, RollbackCompleted
from optiinfra.schemas.deployment import Provider, Replica
from optiinfra.schemas.errors import Rejected
from optiinfra.schemas.recommendation import BatchTuning, ChangeSpec, KvCacheTuning, Recommendation
from optiinfra.schemas.rollout import Step, StepKind
from optiinfra.schemas.vote import AgentName
from optiinfra.serving.curves import Tuning
from optiinfra.serving.engines import EngineConfig, SglangConfig, VllmConfig
from tests.cost_stand import (
    DEPLOYMENT,
    START,
    FakeActuator,
    FakeIntents,
    FakeTraffic,
    Time,
    machine,
    pricing,
)
from tests.factories import recommendation

NOW = VllmConfig(model="m", max_num_seqs=64, max_num_batched_tokens=2048)
MORE = BatchTuning(max_num_seqs=128)


class ConfigurableActuator(FakeActuator):
    """Keeps what it launched with; takes no batch above 1,000."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        super().__init__(replicas)
        self.known: dict[str, EngineConfig] = {}

    def require_launchable(self, model: str, engine: EngineConfig) -> None:
        if (engine.max_num_seqs or 0) > 1_000:
            raise Rejected(f"{model} takes no such batch")

    async def engine(self, tenant: str, deployment: str, replica_id: str) -> EngineConfig | None:
        return self.known.get(replica_id)


class Stand:
    """The performance agent's executor over fakes."""

    def __init__(
        self, declared: EngineConfig | None = NOW, warm_up: str | None = None, **ports: Any
    ) -> None:
        replicas = (machine(1), machine(2))
        self.time, self.intents = Time(), FakeIntents()
        self.actuator, self.traffic = ConfigurableActuator(replicas), FakeTraffic(replicas)
        self.warmed: list[str] = []
        self.fence = 0

        async def warm(replica: Replica, model: str, within_s: float) -> str | None:
            self.warmed.append(replica.id)
            return warm_up

        hands = Hands(
            actuators={Provider.AWS: self.actuator},
            traffic=self.traffic,
            intents=self.intents,
            pricing=pricing(self.time),
            drain_timeout_s=30.0,
            clock=self.time.now,
            monotonic=self.time.monotonic,
            sleep=self.time.sleep,
            warm_up=warm,
        )
        configurable: dict[Provider, Configurable] = {Provider.AWS: self.actuator}
        self.moves = EngineMoves(
            {"chat": DEPLOYMENT},
            ports.get("configurable", configurable),
            {"chat": declared} if declared else {},
        )
        self.executor = Executor({("acme", "chat"): DEPLOYMENT}, hands, self.moves)

    async def step(
        self, share: float, spec: ChangeSpec = MORE, kind: StepKind = StepKind.APPLY
    ) -> Fact:
        self.fence += 1
        command = ExecutionRequested(
            change=tuning().id,
            step=Step(kind=kind, stage=int(share * 10), share=share),
            fence=self.fence,
            executor=AgentName.PERFORMANCE,
            recommendation=tuning(spec),
            deadline=START,
        )
        return (await self.executor.execute(command, 600.0, self._say))[0]

    async def _say(self, fact: Fact) -> None:
        pass

    async def rollback(self) -> RollbackCompleted:
        self.fence += 1
        command = RollbackRequested(
            change=tuning().id,
            fence=self.fence,
            executor=AgentName.PERFORMANCE,
            recommendation=tuning(),
            reason="slower",
            deadline=START,
        )
        fact = (await self.executor.roll_back(command, 600.0))[0]
        assert isinstance(fact, RollbackCompleted)
        return fact

    async def refused(self, spec: ChangeSpec = MORE) -> str:
        """The reason; nothing may have been done."""
        fact = await self.step(0.5, spec)
        assert isinstance(fact, ExecutionFailed), fact
        assert (self.actuator.launches, self.traffic.history, self.intents.rows) == ([], [], {})
        return fact.reason


def tuning(spec: ChangeSpec = MORE) -> Recommendation:
    return recommendation(spec=spec, proposer=AgentName.PERFORMANCE)


# Knobs


@pytest.mark.parametrize(
    ("now", "tuning", "changes"),
    [
        (NOW, MORE, {"max_num_seqs": 128}),
        (NOW, BatchTuning(chunked_prefill=False), {"chunked_prefill": False}),
        (NOW, BatchTuning(max_num_batched_tokens=512), {"max_num_batched_tokens": 512}),
        (
            NOW,
            KvCacheTuning(
                gpu_memory_fraction=0.8, dtype="fp8", block_tokens=32, prefix_caching=True
            ),
            {
                "gpu_memory_fraction": 0.8,
                "kv_cache_dtype": "fp8",
                "kv_block_tokens": 32,
                "prefix_caching": True,
            },
        ),
        (SglangConfig(model="m"), MORE, {"max_num_seqs": 128}),
    ],
)
def test_only_the_knobs_that_are_named_turn(
    now: EngineConfig, tuning: Tuning, changes: dict[str, Any]
) -> None:
    assert tuned(now, tuning) == now.model_copy(update=changes)


@pytest.mark.parametrize(
    ("now", "tuning", "reason"),
    [
        (SglangConfig(model="m"), BatchTuning(max_num_batched_tokens=1), "sglang has no knob"),
        (NOW, BatchTuning(max_num_seqs=64), "runs with that already"),
        (NOW, KvCacheTuning(), "runs with that already"),
        (NOW, KvCacheTuning(dtype="--fp8"), "kv_cache_dtype: String should match"),
    ],
)
def test_a_tuning_that_is_none_is_refused(now: EngineConfig, tuning: Tuning, reason: str) -> None:
    with pytest.raises(Rejected, match=reason):
        tuned(now, tuning)


# Carrying out


async def test_the_whole_fleet_is_replaced_by_engines_with_the_new_knob_on_the_same_machines() -> (
    None
):
    stand = Stand()
    stand.actuator.known["chat-2"] = NOW.model_copy(update={"dtype": "bfloat16"})
    for share in (0.1, 0.5, 1.0):
        fact = await stand.step(share)
        assert isinstance(fact, ExecutionStaged), fact
    await stand.step(1.0, kind=StepKind.FINISH)
    assert [spec.engine for spec in stand.actuator.launches] == [
        NOW.model_copy(update={"max_num_seqs": 128}),
        NOW.model_copy(update={"max_num_seqs": 128, "dtype": "bfloat16"}),
    ]
    bought = {(one.placement.market, one.placement.zone) for one in stand.actuator.launches}
    assert bought == {(machine(1).instance.market, machine(1).instance.zone)}
    assert stand.actuator.terminated == ["chat-1", "chat-2"]
    assert len(stand.warmed) == len(set(stand.warmed)) == 2, "each once, before its first request"


async def test_what_cannot_be_launched_so_is_refused_before_anything_changes() -> None:
    assert "no engine is launched with a configuration" in await Stand(configurable={}).refused()
    assert "nothing says what the engine of chat-1" in await Stand(declared=None).refused()
    assert "no such batch" in await Stand().refused(BatchTuning(max_num_seqs=2_000))
    assert "already" in await Stand().refused(BatchTuning(max_num_seqs=64))
    assert "cannot execute spot_migration" in await Stand().refused(recommendation().spec)
    unrouted = Stand()
    unrouted.traffic.table = unrouted.traffic.table.model_copy(update={"backends": ()})
    assert "no replica is routed" in await unrouted.refused()


async def test_a_replica_that_does_not_get_warm_fails_the_step_and_gets_no_request() -> None:
    stand = Stand(warm_up="it answered with HTTP 500")
    fact = await stand.step(0.5)
    assert isinstance(fact, ExecutionFailed)
    assert "HTTP 500" in fact.reason
    assert stand.traffic.history == []
    assert (await stand.rollback()).proved
    assert set(stand.actuator.machines) == {"chat-1", "chat-2"}


async def test_an_engine_that_ends_with_the_new_knobs_is_not_tried_again() -> None:
    stand = Stand()
    stand.actuator.stillborn = 1
    fact = await stand.step(0.5)
    assert isinstance(fact, ExecutionFailed)
    assert "ended once before it served" in fact.reason
    assert len(stand.actuator.launches) == 1


async def test_one_that_ended_while_it_took_requests_leaves_the_routes_at_the_rollback() -> None:
    stand = Stand()
    before = stand.traffic.table.backends
    fact = await stand.step(0.5)
    assert isinstance(fact, ExecutionStaged)
    del stand.actuator.machines[fact.result.arms.canary[0]]
    found = await stand.rollback()
    assert found.proved, found.detail
    assert stand.traffic.table.backends == before
    assert stand.actuator.terminated == []


# The warm-up


def warm_up(answer: Callable[[httpx.Request], httpx.Response], **policy: Any) -> CompletionWarmUp:
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return CompletionWarmUp(http, WarmUpPolicy(**policy))


async def test_a_warm_up_asks_short_and_long_prompts_and_is_content_with_answers() -> None:
    lengths: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url == "http://10.0.0.1:8000/v1/completions"
        lengths.append(len(request.content))
        return httpx.Response(200, json={})

    assert await warm_up(answer, rounds=3, at_once=2)(machine(1), "m", 60.0) is None
    assert len(lengths) == 12
    assert max(lengths) > 10 * min(lengths)


async def test_a_warm_up_says_what_was_wrong() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    broken = warm_up(lambda _: httpx.Response(500))
    assert await broken(machine(1), "m", 60.0) == "it answered a warm-up request with HTTP 500"
    said = await warm_up(away)(machine(1), "m", 60.0)
    assert said == "it did not answer a warm-up request: ConnectError"


async def test_a_warm_up_ends_with_its_time() -> None:
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    http = httpx.AsyncClient(transport=httpx.MockTransport(hang))
    said = await CompletionWarmUp(http)(machine(1), "m", 0.05)
    assert said == "its warm-up was not over after 0.05 s"
