"""When a study begins, what it tries, and why it does not; its staging replica is a rule."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from optiinfra.agents.base.recent import RecentChange
from optiinfra.agents.performance.replay import Replay, Watch
from optiinfra.agents.performance.study import Studies, StudyPorts
from optiinfra.agents.performance.tuning_policy import Tuning
from optiinfra.events.facts import RecommendationProposed
from optiinfra.schemas.change import ChangeState
from optiinfra.schemas.deployment import SLO, Deployment, Provider
from optiinfra.schemas.ids import derived_id
from optiinfra.schemas.recommendation import BatchTuning, Placement
from optiinfra.schemas.sampling import AnswerSample
from optiinfra.schemas.telemetry import Known, Sample, Unit
from optiinfra.schemas.tuning import KnobValue, TrialOutcome, TuningTrial
from optiinfra.serving.engines import EngineConfig, VllmConfig
from tests.factories import rollout
from tests.telemetry import NOW, Fleet, Recorded, deployment, replica, steady

ENGINE = VllmConfig(model="8b", max_num_seqs=2)
CHAT = deployment(slo=SLO(ttft_p95_s=1.0, tpot_p95_s=0.1))


def capped(name: str = "chat-1", *, generation: float | None = 480.0) -> list[Sample]:
    """A replica that is full at two requests, with its KV cache nearly empty."""
    found = steady(name, rps=10.0, running=2.0, waiting=12.0, ttft_s=2.0)
    extra = {
        "kv_usage_fraction": 0.05, "preemptions_per_s": 0.0, "prefill_seconds_per_s": 0.05,
        "prompt_tokens_per_s": 300.0, "generation_tokens_per_s": generation,
    }  # fmt: skip
    times = sorted({one.at for one in found})
    return found + [
        Sample(
            metric=metric, unit=Unit.PER_SECOND, reading=Known(value=value), at=at, window_s=10.0,
            replica=name,
        )
        for metric, value in extra.items()
        if value is not None
        for at in times
    ]  # fmt: skip


def sampled(number: int) -> AnswerSample:
    return AnswerSample(
        id=derived_id("sample", number), tenant="acme", deployment="chat", replica="chat-1",
        unit=f"u{number}", prompt=f"Question {number}?", answer="a", ok=True, output_tokens=20,
        route_version=1, at=NOW - timedelta(seconds=100 - number),
    )  # fmt: skip


@dataclass
class World:
    """All ports of a study; what was done to them is kept."""

    samples: list[Sample] = field(default_factory=capped)
    fleet: Fleet = field(default_factory=lambda: Fleet(replica("chat-1")))
    engine: EngineConfig | None = ENGINE
    traffic: list[AnswerSample] = field(default_factory=lambda: [sampled(n) for n in range(80)])
    changes: list[RecentChange] = field(default_factory=list)
    is_ours: bool = True
    now: datetime = NOW
    tried_with: list[dict[str, KnobValue]] = field(default_factory=list)
    replays: list[Replay] = field(default_factory=list)
    cleared: int = 0
    swept: int = 0
    left: int = 0
    gain: bool = True

    def studies(self, **policy: Any) -> Studies:
        given = {"trials": 4, "min_requests": 50, "requests": 60, **policy}
        ports = StudyPorts(
            replicas=self.fleet,
            telemetry=Recorded(self.samples),
            configurable={Provider.AWS: Launched(self.engine)},
            declared={},
            cards={},
            traffic=self,
            recent=self,
            staging=self.staging,  # type: ignore[arg-type]
            sweep=self.sweep,
            exclusive=self.exclusive,
            rollout=rollout(),
            rollback_s=30.0,
            clock=lambda: self.now,
            new_id=lambda: derived_id("study"),
        )
        return Studies({"chat": CHAT}, {"chat": Tuning(**given)}, ports)

    async def proposed(self, **policy: Any) -> Any:
        facts = await self.studies(**policy).round()
        return facts[0].recommendation if facts else None  # type: ignore[union-attr]

    def staging(self, _: Deployment, placement: Placement, __: Tuning) -> World:
        assert placement.instance_type == "g5.xlarge"
        return self

    async def clear(self) -> int:
        self.cleared += 1
        return 0

    async def tried(
        self, engine: EngineConfig, knobs: dict[str, KnobValue], replay: Replay, _watch: Watch
    ) -> TuningTrial:
        """Twice the batch, nearly twice the speed; up to 16."""
        self.tried_with.append(knobs)
        self.replays.append(replay)
        seqs = engine.max_num_seqs or 0
        rate = 240.0 * min(seqs, 16) if self.gain else 480.0
        return TuningTrial(
            knobs=knobs, outcome=TrialOutcome.COMPLETE, tokens_per_s=Known(value=rate),
            ttft_p95_s=Known(value=4.0), tpot_p95_s=Known(value=0.05),
            kv_usage_peak=Known(value=0.1), served=60, took_s=1.0,
        )  # fmt: skip

    async def sweep(self, _: Deployment) -> int:
        self.swept += 1
        return self.left

    @asynccontextmanager
    async def exclusive(self, name: str) -> AsyncIterator[bool]:
        assert name == "study:acme:chat"
        yield self.is_ours

    async def since(
        self, _tenant: str, _deployment: str, at: datetime, most: int
    ) -> Sequence[AnswerSample]:
        return [one for one in self.traffic if one.at >= at][-most:]

    async def recent(self, _tenant: str, _deployment: str, kind: str) -> Sequence[RecentChange]:
        return self.changes if kind == "batch_tuning" else []


@dataclass
class Launched:
    """The `Configurable` port: what every replica was launched with."""

    config: EngineConfig | None

    async def engine(self, _tenant: str, _deployment: str, _replica: str) -> EngineConfig | None:
        return self.config

    def require_launchable(self, model: str, engine: EngineConfig) -> None:
        raise AssertionError("a study launches nothing in the fleet")


async def test_a_capped_replica_is_studied_and_the_best_is_proposed() -> None:
    world = World()
    [fact] = await world.studies().round()
    assert isinstance(fact, RecommendationProposed)
    made = fact.recommendation
    assert isinstance(made.spec, BatchTuning)
    assert made.spec.max_num_seqs is not None
    assert made.spec.max_num_seqs >= 16
    assert world.tried_with[0]["max_num_seqs"] == 2, "the present one first"
    assert len(made.curve) == len(world.tried_with) <= 4
    assert world.cleared == 2
    assert any(one.name == "running_per_cap" for one in made.evidence)


async def test_the_replay_is_its_own_traffic_at_many_times_its_rate() -> None:
    world = World()
    await world.studies(saturation=8.0).round()
    replay = world.replays[0]
    assert all(one == replay for one in world.replays)
    assert len(replay.requests) == 60
    assert replay.requests[-1].prompt == "Question 79?"
    assert abs(replay.output_tokens / replay.span_s - 8 * 480) < 1.0


async def test_what_it_can_at_present_is_its_rate_while_requests_wait() -> None:
    idle = [
        one.model_copy(update={"reading": Known(value=0.0)})
        if one.at < NOW - timedelta(seconds=50)
        and one.metric in ("generation_tokens_per_s", "requests_waiting")
        else one
        for one in capped()
    ]
    world = World(samples=idle)
    await world.studies(saturation=8.0).round()
    replay = world.replays[0]
    assert abs(replay.output_tokens / replay.span_s - 8 * 480) < 1.0


async def test_the_others_are_asked_for_many_times_what_the_present_one_serves_in_staging() -> None:
    slow = [
        one.model_copy(update={"reading": Known(value=200.0)})
        if one.metric == "generation_tokens_per_s"
        else one
        for one in capped()
    ]
    world = World(samples=slow)
    await world.studies(saturation=8.0).round()
    asked = [round(one.output_tokens / one.span_s) for one in world.replays]
    assert asked == [8 * 200, *[8 * 480] * (len(asked) - 1)]


async def test_after_a_study_the_deployment_rests() -> None:
    world = World(gain=False)
    studies = world.studies(cooldown_s=3_600.0)
    assert await studies.round() == []
    tried = len(world.tried_with)
    assert tried >= 2
    assert await studies.round() == []
    assert len(world.tried_with) == tried
    world.now += timedelta(seconds=3_601)
    world.samples[:] = [
        one.model_copy(update={"at": one.at + timedelta(seconds=3_601)}) for one in world.samples
    ]
    world.traffic = [
        one.model_copy(update={"at": one.at + timedelta(seconds=3_601)}) for one in world.traffic
    ]
    studies = world.studies()
    await studies.round()
    assert len(world.tried_with) > tried


async def nothing_is_tried(world: World, **policy: Any) -> None:
    assert await world.studies(**policy).round() == []
    assert world.tried_with == []


async def test_no_study_where_something_is_missing() -> None:
    await nothing_is_tried(World(fleet=Fleet()))
    await nothing_is_tried(World(engine=None))
    await nothing_is_tried(World(samples=capped(generation=None)))
    await nothing_is_tried(World(samples=[]))
    await nothing_is_tried(World(traffic=[sampled(n) for n in range(49)]))
    await nothing_is_tried(World(is_ours=False))


async def test_no_study_where_nothing_binds_or_no_knob_mends_it() -> None:
    await nothing_is_tried(World(samples=steady("chat-1")))
    unset = VllmConfig(model="8b")
    await nothing_is_tried(World(engine=unset))


async def test_no_study_while_a_change_is_open_or_was_unwanted_lately() -> None:
    open_one = RecentChange("1", ChangeState.EXECUTING, None)
    await nothing_is_tried(World(changes=[open_one]))
    undone = RecentChange("2", ChangeState.ROLLED_BACK, NOW - timedelta(hours=1))
    await nothing_is_tried(World(changes=[undone]))
    assert await World(changes=[undone]).proposed(cooldown_s=60.0) is not None


async def test_what_a_killed_study_left_is_ended_once_after_a_start() -> None:
    world = World(fleet=Fleet(), left=1)
    studies = world.studies()
    await studies.round()
    await studies.round()
    assert world.swept == 1
    other = World(fleet=Fleet(), left=1, is_ours=False)
    await other.studies().round()
    assert other.swept == 0, "another instance studies: the replica is its own"
